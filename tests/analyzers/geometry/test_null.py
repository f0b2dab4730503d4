"""Test ``analyzers.geometry.null``."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from tests.analyzers.laziness import fail_if_computed
from trajstore.format.optimizer_facts import GroupFacts


def walked(norms: Any, facts: Sequence[GroupFacts] = ()) -> Any:
    """Return the parts of a run that the null model reads."""
    values = np.asarray(norms, float)
    steps = xr.Dataset({"update_norm": ("step", values)})
    attributes = {
        "n_steps": len(values),
        "steps": steps.assign_coords(step=np.arange(len(values))),
        "stored": SimpleNamespace(
            epochs=np.arange(len(values)) // 3,
            document=SimpleNamespace(optimizer=facts),
        ),
        "location": "run.zarr",
    }
    # A run is recognised by its class.
    return type("Walked", (), attributes)()


def test_steps_of_one_length_have_the_closed_form():
    gamma = analyzers.random_walk_gamma(walked(np.full(20, 0.3)))
    np.testing.assert_allclose(gamma, 1 / np.sqrt(20 - np.arange(20)), rtol=1e-12)


def test_simulated_walk_in_many_dimensions_agrees():
    rng = np.random.default_rng(0)
    lengths, n_dims = rng.uniform(0.2, 2.0, 12), 200_000
    steps = rng.normal(size=(12, n_dims))
    steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
    x = np.concatenate([np.zeros((1, n_dims)), np.cumsum(steps, axis=0)])
    from_end = x[:-1] - x[-1]
    cosine = -(steps * from_end).sum(1) / lengths / np.linalg.norm(from_end, axis=1)
    # A cosine of independent directions has a standard deviation of 1 / sqrt(n_dims) = 0.0022.
    np.testing.assert_allclose(
        analyzers.random_walk_gamma(walked(lengths)), cosine, atol=5 * 0.0022
    )


def test_walk_may_end_early():
    norms = [1.0, 2.0, 2.0, 5.0, 7.0]
    early = analyzers.random_walk_gamma(walked(norms), stop=3)
    np.testing.assert_allclose(early[:3], [1 / 3, 2 / np.sqrt(8), 1], rtol=1e-12)
    assert np.isnan(early[3:]).all()


def test_unknown_step_makes_earlier_steps_unknown():
    gamma = analyzers.random_walk_gamma(walked([1.0, np.nan, 3.0, 4.0]))
    assert np.isnan(gamma.values).tolist() == [True, True, False, False]
    np.testing.assert_allclose(gamma[2:], [3 / 5, 1], rtol=1e-12)


def test_run_that_stands_still_has_no_direction():
    gamma = analyzers.random_walk_gamma(walked([1.0, 0.0, 0.0]))
    assert gamma[0] == 1
    assert np.isnan(gamma[1:]).all()


@pytest.mark.parametrize("stop", [0, 4, -1])
def test_walk_cannot_end_outside_of_the_run(stop: int):
    with pytest.raises(ValueError, match=rf"between 1 and 3, .* run.zarr; got {stop}"):
        analyzers.random_walk_gamma(walked([1.0, 1.0, 1.0]), stop=stop)


def measured(reference: str) -> xr.Dataset:
    variables = {
        "gamma": ("step", np.full(9, 0.5)),
        "gamma_stderr": ("step", [0.1] * 9),
    }
    return xr.Dataset(variables, {"step": np.arange(9)}, attrs={"reference": reference})


@pytest.mark.parametrize(
    ("reference", "stop"), [("final", 9), ("epoch 2", 6), ("epoch 1", 3)]
)
def test_excess_is_over_the_walk_that_ends_at_the_reference(reference: str, stop: int):
    run = walked(np.ones(9))
    result = analyzers.excess_gamma(measured(reference), run)
    expected = 0.5 - 1 / np.sqrt(stop - np.arange(stop))
    np.testing.assert_allclose(result.excess[:stop], expected, rtol=1e-12)
    np.testing.assert_allclose(
        result.excess + result.gamma_null, 0.5 + 0 * result.excess
    )
    assert np.isnan(result.excess[stop:]).all()
    np.testing.assert_array_equal(result.excess_stderr, [0.1] * 9)


@pytest.mark.parametrize("reference", ["epoch 0", "snapshot warm", "given"])
def test_point_to_which_no_steps_lead_is_refused(reference: str):
    with pytest.raises(
        ValueError, match=f"relative to '{reference}', to which no steps"
    ):
        analyzers.excess_gamma(measured(reference), walked(np.ones(9)))


def test_run_is_measured_by_its_steps(exact_run: Path):
    run = trajstore.open_run(exact_run)
    norms = np.linalg.norm(_updates(run), axis=1)
    gamma = analyzers.random_walk_gamma(run)
    k = 17
    expected = norms[k] / np.sqrt((norms[k:] ** 2).sum())
    np.testing.assert_allclose(gamma[k], expected, rtol=1e-5)
    assert {"epoch", "iteration"} <= set(gamma.coords)


def _updates(run: trajstore.Run) -> np.ndarray[Any, Any]:
    """Return the differences of successive iterates of an exact run, (step, param)."""
    all_elements = slice(0, run.layout.size)
    displacements, windows = (
        run.stored.array("displacement")[:],
        run.stored.array("window")[:],
    )
    x = [
        run.stored.anchors.decode(int(windows[k]), all_elements).astype(float)
        + displacements[k]
        for k in range(run.n_steps)
    ]
    return np.diff(np.array([*x, run.stored.vector("final", all_elements)]), axis=0)


@pytest.mark.parametrize("direction", ["update", "gradient + 0.1 x"])
def test_other_directions_are_not_compared_with_a_walk(
    example_run: Path, direction: str
):
    run = trajstore.open_run(example_run)
    geometry = analyzers.path_geometry(run).assign_attrs(direction=direction)
    with pytest.raises(ValueError, match=f"got gamma of {re.escape(repr(direction))}"):
        analyzers.excess_gamma(geometry, run)


def test_layers_are_not_compared_with_a_walk(example_run: Path):
    run = trajstore.open_run(example_run)
    geometry = analyzers.path_geometry(run, layers=True)
    with pytest.raises(ValueError, match=r"the dimensions \('step', 'layer'\)"):
        analyzers.excess_gamma(geometry, run)


def test_excess_over_a_recorded_walk_has_the_error_of_both():
    geometry, null = measured("final"), measured("final") * 0.5
    null.attrs = geometry.attrs
    result = analyzers.excess_gamma(geometry, walked(np.ones(9)), null=null)
    np.testing.assert_allclose(result.excess, 0.25)
    np.testing.assert_allclose(result.gamma_null, 0.25)
    np.testing.assert_allclose(result.excess_stderr, np.hypot(0.1, 0.05))


@pytest.mark.parametrize("change", ["steps", "reference", "direction"])
def test_another_kind_of_null_is_refused(change: str):
    geometry, null = measured("final"), measured("final")
    if change == "steps":
        null = null.isel(step=slice(1))
    else:
        null = null.assign_attrs({change: "other"})
    with pytest.raises(ValueError, match=r"has the dimensions, target and direction"):
        analyzers.excess_gamma(geometry, walked(np.ones(9)), null=null)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return three trainings with other rates, each under four recorders."""
    torch = pytest.importorskip("torch")
    from tests.analyzers.geometry.seeded import FOUR, train

    folder = tmp_path_factory.mktemp("excess")
    return [
        train(
            folder / f"{lr}",
            lambda model, lr=lr: torch.optim.AdamW(model.parameters(), lr=lr),  # type: ignore[misc]
            **FOUR,
        )
        for lr in (0.01, 0.02, 0.005)
    ]


@pytest.mark.filterwarnings("ignore:.*not parallel to gradients:UserWarning")
def test_epoch_means_of_the_excess_agree_with_their_errors(seeded: Any):
    """Recorders with other seeds estimate one exact excess."""
    runs, nulls, _ = seeded
    exact = [t.exact()["gamma"] for t in (runs, nulls)]
    walk = analyzers.random_walk_gamma(runs.runs[0]).values
    scores: dict[str, list[Any]] = {"recorded": [], "computed": []}
    for i in range(4):
        geometry = analyzers.path_geometry(runs.runs[i])
        null = analyzers.path_geometry(nulls.runs[(i + 1) % 4])
        for name, options, of_null in (
            ("recorded", {"null": null}, exact[1]),
            ("computed", {}, walk),
        ):
            with dask.config.set(scheduler=fail_if_computed):
                excess = analyzers.excess_gamma(geometry, runs.runs[i], **options)
                means = analyzers.epoch_means(excess)
            means = means.compute()
            expected = (exact[0] - of_null).reshape(4, 16).mean(1)
            scores[name].append((means.excess - expected) / means.excess_stderr)
    for of_name in scores.values():
        # 16 scores, of which those of one recorder depend on each other.
        assert 0.5 < np.sqrt(np.mean(np.square(of_name))) < 1.6


def test_several_walks_are_averaged_with_their_spread(seeded: Any):
    run = seeded[0].runs[0]
    geometry, *walks = (analyzers.path_geometry(t.runs[0]).compute() for t in seeded)
    excess = analyzers.excess_gamma(geometry, run, null=walks)
    own, a, b = (analyzers.epoch_means(g) for g in (geometry, *walks))
    means = analyzers.epoch_means(excess)
    np.testing.assert_allclose(means.excess, own.gamma - (a.gamma + b.gamma) / 2)
    spread = abs(a.gamma - b.gamma) / 2  # of two numbers: s / sqrt(2)
    estimated = np.hypot(a.gamma_stderr, b.gamma_stderr) / 2
    expected = np.hypot(own.gamma_stderr, np.maximum(spread, estimated))
    np.testing.assert_allclose(means.excess_stderr, expected)
    step = abs(walks[0].gamma - walks[1].gamma) / 2
    at_step = np.hypot(walks[0].gamma_stderr, walks[1].gamma_stderr) / 2
    expected = np.hypot(geometry.gamma_stderr, np.maximum(step, at_step))
    np.testing.assert_allclose(excess.excess_stderr, expected)
    ax = analyzers.plots.epoch_means(means, "excess", band=False)
    assert ax.get_ylabel() == r"$\gamma - \gamma_0$"
    assert not ax.collections[1:]  # error bars alone
    plt.close("all")


@pytest.mark.filterwarnings("ignore:.*not parallel to gradients:UserWarning")
def test_steps_with_an_imprecise_distance_are_left_out_of_the_mean(seeded: Any):
    run = seeded[0].runs[0]
    geometry = analyzers.path_geometry(run).compute()
    geometry["distance_stderr"][3] = 0.4 * geometry["distance"][3]
    means = analyzers.epoch_means(analyzers.excess_gamma(geometry, run))
    assert means.n_imprecise.values.tolist() == [1, 0, 0, 0]
    excess = geometry.gamma - analyzers.random_walk_gamma(run)
    expected = np.delete(excess.values[:16], 3).mean()
    np.testing.assert_allclose(means.excess[0], expected)


def test_no_walks_are_refused():
    with pytest.raises(ValueError, match="`null` is empty"):
        analyzers.excess_gamma(measured("final"), walked(np.ones(9)), null=[])


def facts(name: str, *settings: dict[str, float]) -> GroupFacts:
    """Return facts of a group whose settings change in every step."""
    return GroupFacts(name, (0,), tuple(enumerate(settings)))


@pytest.mark.parametrize(
    ("group", "is_plain"),
    [
        (facts("torch.optim.sgd.SGD", {"momentum": 0.0, "weight_decay": 0.1}), True),
        (facts("trajstore.optim.sps_max.SPSmax"), True),
        (facts("torch.optim.sgd.SGD", {"momentum": 0.0}, {"momentum": 0.9}), False),
        (facts("torch.optim.adam.Adam"), False),
    ],
)
def test_walk_of_updates_of_another_optimizer_than_sgd_is_warned_of(
    group: GroupFacts, is_plain: bool
):
    run = walked(np.ones(9), [group])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        excess = analyzers.excess_gamma(measured("final"), run)
    assert excess.excess.notnull().all()
    expected = rf"run.zarr was trained with {group.optimizer}, .*noise_gradients"
    assert [bool(re.match(expected, str(w.message))) for w in found] == (
        [] if is_plain else [True]
    )
    assert all(w.filename == __file__ for w in found)


def test_walk_of_another_optimizer_is_warned_of(seeded: Any):
    run = seeded[0].runs[0]
    geometry, walk = (analyzers.path_geometry(t.runs[0]) for t in seeded[:2])
    assert geometry.optimizer.startswith("torch.optim.adamw.AdamW(")
    assert "weight_decay=0.01" in geometry.optimizer
    analyzers.excess_gamma(geometry, run, null=walk)  # no warning
    older = walk.copy()
    del older.attrs["optimizer"]
    analyzers.excess_gamma(geometry, run, null=[walk, older])
    other = walk.assign_attrs(optimizer="torch.optim.sgd.SGD(momentum=0.9)\x1b")
    with pytest.warns(
        UserWarning, match=r"trained with torch.optim.adamw.*`null` with .*0.9\)\\x1b:"
    ) as found:
        analyzers.excess_gamma(geometry, run, null=[walk, other])
    assert found[0].filename == __file__
