"""Test ``analyzers.average_of_epochs``."""

from pathlib import Path

import numpy as np
import pytest

import analyzers
import trajstore
from trajstore.reading.run import Run


@pytest.fixture(scope="module")
def run(example_run: Path) -> Run:
    return trajstore.open_run(example_run)


def references(
    run: Run, epochs: list[int]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    every = slice(0, run.layout.size)
    return np.array(
        [
            run.stored.anchors.decode(run.stored.epoch_windows[e], every).astype(float)
            for e in epochs
        ]
    )


def test_average_is_the_mean_of_the_anchors(run: Run):
    average = analyzers.average_of_epochs(run, range(1, 4))
    assert list(average) == list(run.layout.names)
    expected = run.layout.unflatten(references(run, [1, 2, 3]).mean(0).astype("f4"))
    for name, values in average.items():
        assert values.shape == expected[name].shape
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-7)


def test_epochs_count_as_often_as_they_are_given(run: Run):
    average = analyzers.average_of_epochs(run, [4, 1, 1])
    flat = run.layout.flatten(average)
    expected = references(run, [4, 1, 1]).mean(0)
    np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-7)


def test_average_of_one_epoch_is_its_anchor(run: Run):
    average = analyzers.average_of_epochs(run, [3])
    given = analyzers.path_geometry(run, reference=average).compute()
    stored = analyzers.path_geometry(run, reference=3).compute()
    # The step at the anchor is left out where the target is known to be that of the run.
    known = stored.gamma.notnull().values
    assert (~known).sum() == 1
    np.testing.assert_allclose(given.gamma[known], stored.gamma[known], rtol=1e-9)


def test_parts_are_put_together(run: Run, monkeypatch: pytest.MonkeyPatch):
    whole = analyzers.average_of_epochs(run, [1, 2])
    import sys

    monkeypatch.setattr(
        sys.modules["analyzers.geometry.average_of_epochs"], "PART", 1024
    )
    parts = analyzers.average_of_epochs(run, [1, 2])
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)


def test_epochs_without_an_anchor_are_reported(run: Run):
    with pytest.raises(KeyError, match=r"start of epochs 7-8 in .* for epochs 0-4\."):
        analyzers.average_of_epochs(run, [2, 7, 8])


def test_an_empty_list_of_epochs_is_refused(run: Run):
    with pytest.raises(ValueError, match="names no epoch to average"):
        analyzers.average_of_epochs(run, [])
