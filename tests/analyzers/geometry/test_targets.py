"""Test ``analyzers.path_geometry`` relative to targets of every kind."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

import analyzers
import trajstore
from tests.analyzers.geometry.descent import z_scores
from trajstore.reading.run import Run

torch = pytest.importorskip("torch")

Vector = npt.NDArray[np.float32]

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")
TARGETS = ["final", "epoch", "snapshot", "mapping", "other run", "tensors"]


def slow_geometry(run: Run, target: Vector, *, layers: bool) -> xr.Dataset:
    """Evaluate the definitions in float64 on gradients and iterates of an exact run."""
    rows = []
    gradients, displacements = (
        run.stored.array("gradient")[:],
        run.stored.array("displacement")[:],
    )
    windows = run.stored.array("window")[:]
    for k in range(run.n_steps):
        anchor = run.stored.anchors.decode(int(windows[k]), slice(0, run.layout.size))
        x = anchor.astype(np.float64) + displacements[k]
        d = run.layout.unflatten(x - target)
        g = run.layout.unflatten(gradients[k].astype(np.float64))
        rows.append(
            [[(g[n] * d[n]).sum(), (d[n] ** 2).sum(), (g[n] ** 2).sum()] for n in d]
        )
    h, d_sq, g_sq = np.moveaxis(np.array(rows), -1, 0)
    if not layers:
        h, d_sq, g_sq = h.sum(1), d_sq.sum(1), g_sq.sum(1)
    # The step at a target on the path is not compared.
    d_sq = np.where(d_sq > 0, d_sq, np.nan)
    values = {
        "gamma": h / np.sqrt(g_sq * d_sq),
        "rsi": h / d_sq,
        "eb": np.sqrt(g_sq / d_sq),
        "lolr": h / g_sq,
        "distance": np.sqrt(d_sq),
    }
    dims = ["step", "layer"] if layers else ["step"]
    return xr.Dataset({name: (dims, value) for name, value in values.items()})


def choose(kind: str, run: Run, other: Run) -> tuple[Any, Vector]:
    """Return a value for ``reference=``, and the vector that it names."""
    whole = slice(0, run.layout.size)
    match kind:
        case "final":
            return "final", run.stored.array("final")[:]
        case "epoch":
            return 2, run.stored.anchors.decode(run.stored.epoch_windows[2], whole)
        case "snapshot":
            snapshot = run.stored.document.snapshots["middle"].array
            return "middle", run.stored.array(snapshot)[:]
        case "other run":
            return other, other.stored.array("final")[:]
    between = (run.stored.array("final")[:] + other.stored.array("final")[:]) / 2
    named: dict[str, Any] = dict(run.layout.unflatten(between))
    if kind == "tensors":
        named = {name: torch.from_numpy(value) for name, value in named.items()}
        named["running_mean"] = torch.zeros(3)
    return named, between


def _starts_at(kind: str, run: Run) -> xr.DataArray:
    """Whether a step starts at the anchor of `choose`, (step,)."""
    window = run.stored.epoch_windows[2]
    start = run.windows.variables["start"].values[window]
    return xr.DataArray(
        (run.stored.step_numbers == start) & (kind == "epoch"), dims="step"
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_any_target_of_an_exact_run(exact: Run, other: Run, kind: str):
    reference, vector = choose(kind, exact, other)
    for layers in (False, True):
        result = analyzers.path_geometry(exact, reference=reference, layers=layers)
        expected = slow_geometry(exact, vector, layers=layers)
        for name in QUANTITIES:
            # x - x* is a difference of float32 vectors of norm 1, and as short as 0.1. At
            # the step of the snapshot the distance is 0.
            away = (expected.distance > 1e-3) & ~_starts_at(kind, exact)
            np.testing.assert_allclose(
                result[name].where(away),
                expected[name].where(away),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("kind", TARGETS)
def test_any_target_of_a_sketched_run(sketched: Run, exact: Run, other: Run, kind: str):
    reference, vector = choose(kind, sketched, other)
    result = analyzers.path_geometry(sketched, reference=reference).compute()
    expected = slow_geometry(exact, vector, layers=False)
    # Next to x* the only errors are rounding errors.
    estimated = result.gamma_stderr > 1e-5
    z = z_scores(result, expected, "gamma").where(estimated, drop=True)
    assert z.size > 20
    # The bounds are three standard errors of the standard deviation of 21 numbers.
    assert 0.5 < float(z.std()) < 1.5
    assert abs(float(z.mean())) < 3.5 / np.sqrt(z.size)
    assert float(abs(z).max()) < 4.5
    # At x* itself, gamma is not defined.
    known = ~estimated & (expected.distance > 1e-6) & ~_starts_at(kind, sketched)
    np.testing.assert_allclose(
        result.gamma.where(known, drop=True),
        expected.gamma.where(known, drop=True),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
        )
        if kind == "epoch"
        else kind
        for kind in TARGETS
    ],
)
def test_distances_to_any_target_are_within_a_few_percent(
    sketched: Run, exact: Run, other: Run, kind: str
):
    reference, vector = choose(kind, sketched, other)
    result = analyzers.path_geometry(sketched, reference=reference)
    expected = slow_geometry(exact, vector, layers=False)
    away = expected.distance > 1e-3
    relative = abs(result.distance / expected.distance - 1).where(away, drop=True)
    # A cosine from 256 probes has a standard error of 6 %.
    assert float(relative.max()) < 3 * 0.06


def test_nothing_is_estimated_where_the_target_lies_in_the_basis(
    example_run: Path, exact: Run
):
    """This holds for the window that begins at x*, and for the two windows after it."""
    sketched = trajstore.open_run(example_run)
    window = sketched.stored.epoch_windows[2]
    vector = sketched.stored.anchors.decode(window, slice(0, sketched.layout.size))
    result = analyzers.path_geometry(sketched, reference=2)
    expected = slow_geometry(exact, vector, layers=False)
    start = int(sketched.windows.start[window])
    stop = int(sketched.windows.stop[window + 2])
    steps = slice(start, stop)
    # The step at x* would be 0 / 0, but the stored anchor is rounded.
    np.testing.assert_allclose(
        result.gamma[steps][1:], expected.gamma[steps][1:], atol=2e-5
    )
    np.testing.assert_allclose(
        result.distance[steps][1:], expected.distance[steps][1:], rtol=2e-5
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_tasks_can_be_sent_to_other_processes(sketched: Run, other: Run, kind: str):
    reference, _ = choose(kind, sketched, other)
    lazy = analyzers.path_geometry(sketched, reference=reference)
    # The first computation fills caches of the run, which cannot be pickled.
    expected = lazy.compute()
    result = pickle.loads(pickle.dumps(lazy)).compute()
    xr.testing.assert_equal(result, expected)


@pytest.mark.parametrize(
    ("kind", "label", "note"),
    [
        ("final", "final", "last iterate"),
        ("epoch", "epoch 2", "lossy code"),
        ("snapshot", "snapshot middle", "before step 27"),
        ("mapping", "given", "given by the caller"),
        ("other run", "final of slow.zarr", "last iterate of slow.zarr"),
    ],
)
def test_result_names_its_target(
    sketched: Run, other: Run, kind: str, label: str, note: str
):
    reference, _ = choose(kind, sketched, other)
    attributes = analyzers.path_geometry(sketched, reference=reference).attrs
    assert attributes["reference"] == label
    assert note in attributes["reference_note"]


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("warm", KeyError, r"No snapshot 'warm' in .*it has \['middle'\]"),
        (7, KeyError, r"start of epoch 7 .*start with one: 0-4"),
        (
            True,
            TypeError,
            "an epoch, 'step:4500', another run, a file, or a mapping.*got bool",
        ),
        ({}, ValueError, r"4 of 4 differ:\n0.weight: missing"),
    ],
    ids=["no such snapshot", "no such epoch", "bool", "empty mapping"],
)
def test_unusable_target_is_refused(
    sketched: Run, reference: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        analyzers.path_geometry(sketched, reference=reference)
