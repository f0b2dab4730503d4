"""Test ``analyzers.distance_travelled``."""

from pathlib import Path

import numpy as np

import analyzers
import trajstore


def test_distances_are_those_of_the_iterates(exact_run: Path):
    run = trajstore.open_run(exact_run)
    every = slice(0, run.layout.size)
    displacements, windows = (
        run.stored.array("displacement")[:],
        run.stored.array("window")[:],
    )
    x = np.array(
        [
            run.stored.anchors.decode(int(windows[k]), every).astype(float)
            + displacements[k]
            for k in range(run.n_steps)
        ]
    )
    travelled = analyzers.distance_travelled(run)
    lengths = np.linalg.norm(np.diff(x, axis=0), axis=1)
    np.testing.assert_allclose(travelled.path_length[1:], lengths.cumsum(), rtol=1e-5)
    assert travelled.path_length[0] == 0
    np.testing.assert_allclose(
        travelled.from_start, np.linalg.norm(x - x[0], axis=1), rtol=1e-4, atol=1e-6
    )
    assert (travelled.path_length >= travelled.from_start - 1e-5).all()


def test_sketched_run_has_standard_errors(example_run: Path, exact_run: Path):
    sketched, exact = (
        analyzers.distance_travelled(trajstore.open_run(path))
        for path in (example_run, exact_run)
    )
    np.testing.assert_allclose(sketched.path_length, exact.path_length, rtol=1e-5)
    error = abs(sketched.from_start - exact.from_start)[1:]
    assert (error <= 5 * sketched.from_start_stderr[1:] + 1e-5).all()
