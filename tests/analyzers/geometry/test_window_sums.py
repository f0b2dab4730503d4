"""Test that known displacements of windows sharpen the estimates, with honest errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

from torch import nn
from torch.optim import SGD, Optimizer

import analyzers
from analyzers._engine import measured_window
from analyzers._engine.arrays.displacement_product import layer_products
from analyzers._engine.arrays.geometry import Estimate
from analyzers.geometry import path_geometry as module
from tests.analyzers.geometry.seeded import Seeded, flat, train
from trajstore import Recorder, open_run
from trajstore.reading.run import Run

MIDDLE = slice(16, 48)


def two_groups(model: nn.Module) -> Optimizer:
    """Return SGD with weight decay for matrices only."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2]},
    ]
    return SGD(groups, lr=0.05, momentum=0.8, nesterov=True)


class Case(NamedTuple):
    make: Callable[[nn.Module], Optimizer]
    gain: float  # largest error of epoch means relative to the error without sums


CASES = {
    "plain": Case(lambda m: SGD(m.parameters(), lr=0.3), 0.3),
    "decay": Case(lambda m: SGD(m.parameters(), lr=0.3, weight_decay=0.05), 0.3),
    "momentum": Case(lambda m: SGD(m.parameters(), lr=0.05, momentum=0.8), 0.75),
    "damped": Case(
        lambda m: SGD(m.parameters(), lr=0.3, momentum=0.5, dampening=0.4), 0.6
    ),
    "ascent": Case(lambda m: SGD(m.parameters(), lr=1e-3, maximize=True), 0.3),
    "groups": Case(two_groups, 0.75),
}


def geometries(trained: Seeded, **options: Any) -> list[xr.Dataset]:
    return [
        analyzers.path_geometry(run, **options).compute(scheduler="sync")
        for run in trained.runs
    ]


def without_sums(run: Run) -> Run:
    """Return a run as if its store had no facts about the optimizer."""
    from dataclasses import replace

    document = replace(run.stored.document, optimizer=())
    return Run(replace(run.stored, document=document, _arrays={}, _reported=set()))


def errors(
    found: list[xr.Dataset], exact: dict[str, Any], name: str
) -> tuple[Any, Any]:
    """Return the errors of steps and of epoch means, (seed, step or epoch)."""
    steps = np.array([geometry[name].values for geometry in found]) - exact[name]
    return steps, steps.reshape(len(steps), -1, 16).mean(2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sums_sharpen_means_and_errors_stay_honest(tmp_path: Path, case: Case):
    trained = train(tmp_path, case.make)
    exact, found = trained.exact(), geometries(trained)
    assert all((g.uses_window_sum == 1).all() for g in found)
    before = geometries(
        trained._replace(runs=[without_sums(run) for run in trained.runs])
    )
    assert all((g.uses_window_sum == 0).all() for g in before)
    means = [analyzers.epoch_means(geometry) for geometry in found]
    for name in ("gamma", "rsi", "lolr", "distance"):
        by_step, by_epoch = errors(found, exact, name)
        stderr = np.array([geometry[f"{name}_stderr"].values for geometry in found])
        z = by_step[:, MIDDLE] / stderr[:, MIDDLE]
        # 128 values: the spread is known to 6 percent. Errors of distances are shared by the
        # steps of a window: they are worth some ten values.
        assert (0.5 if name == "distance" else 0.75) < np.sqrt((z**2).mean()) < 1.3, (
            name
        )
        assert abs(z).max() < 6, name
        stderr = np.array([mean[f"{name}_stderr"].values for mean in means])
        # Eight values. In a net this small, few elements share a probe, so the ends of windows
        # are better known than stated.
        z = by_epoch[:, 1:3] / stderr[:, 1:3]
        assert 0.25 < np.sqrt((z**2).mean()) < 1.7, name
    for name in ("gamma", "lolr"):
        _, after = errors(found, exact, name)
        _, earlier = errors(before, exact, name)
        ratio = np.sqrt((after[:, 1:3] ** 2).mean() / (earlier[:, 1:3] ** 2).mean())
        assert ratio < case.gain, name


def test_layers_with_sums_need_no_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is usual of layers does not count between the ends of a window."""
    trained = train(tmp_path, CASES["plain"].make, n_seeds=1)
    [expected] = geometries(trained, layers=True)

    def misled(*arguments: Any, **options: Any) -> Any:
        found = layer_products(*arguments, **options)
        value, stderr = found.estimate
        value = value.copy()
        value[1:-1] += 1
        return found._replace(estimate=Estimate(value, stderr))

    monkeypatch.setattr(measured_window, "layer_products", misled)
    [found] = geometries(trained, layers=True)
    assert (found.uses_window_sum == 1).all()
    np.testing.assert_allclose(found.distance, expected.distance)


class Clipping(SGD):
    """An optimizer whose updates are not those of its base class."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(0.5)
        return super().step(closure)


def shift(step: int, model: nn.Module, _optimizer: Any) -> None:
    """Change a parameter by hand after step 20."""
    if step == 20:
        next(model.parameters()).mul_(1.01)


def forget(step: int, _model: Any, optimizer: Optimizer) -> None:
    """Clear the momentum after step 20."""
    if step == 20:
        optimizer.state.clear()


def skip(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Undo step 20, as if it had been skipped."""
    if step == 20:
        for p in model.parameters():
            assert p.grad is not None
            p.add_(p.grad, alpha=optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("make", "intervene", "used"),
    [
        (lambda m: Clipping(m.parameters(), lr=0.3), None, 0.0),
        (lambda m: SGD(m.parameters(), lr=0.3), shift, 0.75),
        (lambda m: SGD(m.parameters(), lr=0.3), skip, 0.75),
        (lambda m: SGD(m.parameters(), lr=0.05, momentum=0.8), forget, 0.75),
        (lambda m: torch.optim.Adam(m.parameters(), lr=0.01), None, 0.0),
    ],
    ids=["clipping", "shift", "skip", "forget", "adam"],
)
def test_windows_whose_updates_break_the_rule_are_left_alone(
    tmp_path: Path, make: Any, intervene: Any, used: float
):
    options = {} if intervene is None else {"intervene": intervene}
    trained = train(tmp_path, make, n_seeds=1, **options)
    [geometry] = geometries(trained)
    [before] = geometries(trained._replace(runs=[without_sums(trained.runs[0])]))
    marks = geometry.uses_window_sum.values
    assert marks.mean() == used
    if used:
        assert (marks[16:32] == 0).all()
        np.testing.assert_array_equal(geometry.gamma[16:32], before.gamma[16:32])


def test_rates_that_fall_to_zero_leave_rounding_errors(tmp_path: Path):
    trained = train(
        tmp_path,
        lambda m: SGD(m.parameters(), lr=0.3),
        rate=lambda step: 10.0 ** -(step / 8),
    )
    exact, found = trained.exact(), geometries(trained)
    by_step, _ = errors(found, exact, "gamma")
    stderr = np.array([geometry["gamma_stderr"].values for geometry in found])
    assert (abs(by_step) <= 6 * stderr)[:, :-2].all()


def test_layers_are_constrained_one_by_one(tmp_path: Path):
    trained = train(tmp_path, CASES["plain"].make)
    ends = np.cumsum(trained.sizes)
    found = geometries(trained, layers=True)
    assert all((geometry.uses_window_sum == 1).all() for geometry in found)
    for i, (size, end) in enumerate(zip(trained.sizes, ends, strict=True)):
        part = slice(end - size, end)
        layer = trained._replace(x=trained.x[:, part], g=trained.g[:, part])
        exact, own = layer.exact(), [geometry.isel(layer=i) for geometry in found]
        for name in ("gamma", "distance"):
            by_step, _ = errors(own, exact, name)
            stderr = np.array([geometry[f"{name}_stderr"].values for geometry in own])
            z = by_step[:, MIDDLE] / stderr[:, MIDDLE]
            if size > 200:
                assert 0.7 < np.sqrt((z**2).mean()) < 1.4, (size, name)
            assert abs(z).max() < 7, (size, name)


def test_the_geometry_says_if_sums_are_used(tmp_path: Path):
    trained = train(tmp_path, CASES["plain"].make, n_seeds=1, n_steps=16)
    [run] = trained.runs
    assert "are those of SGD" in module.path_geometry(run).attrs["window_sums"]
    plain = module.path_geometry(without_sums(run))
    assert "does not say that SGD" in plain.attrs["window_sums"]


def test_a_change_that_no_product_of_the_updates_shows_is_found_in_the_sum(
    tmp_path: Path,
):
    # The second half of the parameters has no gradients, and no product with the basis. Moved by
    # hand, it changes |x - r|^2 by less than rounding does, but it is on the way to x*.
    model = torch.nn.Linear(64, 1, bias=False)
    with torch.no_grad():
        model.weight[:, 32:] = 0
    optimizer = SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(4)
    path, x, g = tmp_path / "run.zarr", [], []
    with Recorder(path, model, optimizer, steps_per_epoch=16, total_steps=64):
        for step in range(64):
            noise = torch.randn(1, 64, generator=generator)
            model.weight.grad = model.weight.detach() + noise
            model.weight.grad[:, 32:] = 0
            x.append(flat([model.weight]))
            g.append(flat([model.weight.grad]))
            optimizer.step()
            with torch.no_grad():
                model.weight[:, 32:] += {24: 3e-4, 40: 0.5}.get(step, 0.0)
    final = flat([model.weight])
    geometry = analyzers.path_geometry(open_run(path)).compute(scheduler="sync")
    marks = geometry.uses_window_sum.values
    assert marks[:16].all()
    assert not marks[16:48].any()
    product = (np.array(g) * (np.array(x) - final)).sum(1)
    exact = product / (np.array(g) ** 2).sum(1)
    z = (geometry.lolr - exact) / geometry.lolr_stderr
    assert (abs(z) < 6).all()
