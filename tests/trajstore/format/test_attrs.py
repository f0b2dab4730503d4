"""Test the keys that training and analysis share."""

from trajstore.format.attrs import (
    ENVIRONMENT_SETTINGS,
    NON_ESSENTIAL_SETTINGS,
    TRAINING,
    training_settings,
)


def test_a_run_without_settings_has_an_empty_mapping():
    assert training_settings({}) == {}
    assert training_settings({TRAINING: {"lr": 0.1}}) == {"lr": 0.1}


def test_settings_of_the_environment_are_not_essential():
    assert set(ENVIRONMENT_SETTINGS) < set(NON_ESSENTIAL_SETTINGS)
