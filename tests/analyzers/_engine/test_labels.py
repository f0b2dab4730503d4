"""Test ``analyzers._engine.labels``."""

import xarray as xr

from analyzers._engine.labels import describe


def test_standard_errors_are_labelled_after_their_quantity():
    names = ("gamma", "gamma_stderr", "n", "n_stderr", "other")
    labelled = describe(
        xr.Dataset(dict.fromkeys(names, 0.0)),
        {"gamma": ("cosine", "<g, d>"), "n": "number"},
        units={"n": "loss"},
    )
    assert {name: labelled[name].attrs for name in names} == {
        "gamma": {"long_name": "cosine", "definition": "<g, d>", "units": "1"},
        "gamma_stderr": {
            "long_name": "standard error of gamma",
            "definition": "first order",
            "units": "1",
        },
        "n": {"long_name": "number", "units": "loss"},
        "n_stderr": {"long_name": "standard error of n", "units": "loss"},
        "other": {},
    }


def test_labels_replace_older_attributes_and_leave_the_argument_alone():
    before = xr.Dataset({"a": ((), 0.0, {"definition": "old"})})
    after = describe(before, {"a": "new"})
    assert after["a"].attrs == {"long_name": "new", "units": "1"}
    assert before["a"].attrs == {"definition": "old"}
