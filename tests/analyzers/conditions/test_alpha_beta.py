"""Test ``analyzers.alpha_beta`` against what a training in float64 really does."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import analyzers
from trajstore import Run, open_run

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.recording.recorder import Recorder

N_EXAMPLES, BATCH, EPOCHS = 40, 2, 4
PER_EPOCH = N_EXAMPLES // BATCH
N_STEPS = EPOCHS * PER_EPOCH


class Known(NamedTuple):
    """A recorded run, and a_k, l_k, r_k and more by float64 arithmetic."""

    run: Run
    product: Any
    loss: Any
    reference_loss: Any
    full: Any


def train(path: Path, *, seed: int = 0, lr: float = 0.05, **options: Any) -> Known:
    """Train a small net on a little noisy data."""
    torch.manual_seed(seed)
    inputs = torch.randn(N_EXAMPLES, 6)
    targets = inputs[:, :2].sin() + torch.randn(N_EXAMPLES, 2)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    gradients, iterates, batches, losses = [], [], [], []
    full: list[tuple[Any, Any, float]] = []

    def loss_of(indices: Any) -> Any:
        return (model(inputs[indices]) - targets[indices]).square().mean()

    def flat(tensors: Any) -> Any:
        return torch.cat([t.detach().flatten() for t in tensors]).double().numpy()

    def gradient() -> Any:
        return flat([p.grad for p in model.parameters()])

    options = {"exact": True, "samples": BATCH, "steps_per_epoch": PER_EPOCH} | options
    with Recorder(path, model, optimizer, **options) as recorder:
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss = loss_of(slice(None))
            loss.backward()
            recorder.measure("full_batch", loss=loss)
            full.append((gradient(), flat(model.parameters()), loss.item()))
            for indices in torch.randperm(N_EXAMPLES).split(BATCH):
                optimizer.zero_grad()
                loss = loss_of(indices)
                loss.backward()
                recorder.log(loss=loss)
                recorder.log_samples(indices)
                gradients.append(gradient())
                iterates.append(flat(model.parameters()))
                batches.append(indices)
                losses.append(loss.item())
                optimizer.step()
    end = flat(model.parameters())
    with torch.no_grad():
        at_end = np.array([loss_of(indices).item() for indices in batches])
        full_at_end = loss_of(slice(None)).item()
    to_end = np.array(iterates) - end
    measured = {
        "product": np.array([g @ (x - end) for g, x, _ in full]),
        "cosine": np.array(
            [
                g @ (x - end) / np.linalg.norm(g) / np.linalg.norm(x - end)
                for g, x, _ in full
            ]
        ),
        "grad_sq": np.array([g @ g for g, _, _ in full]),
        "loss": np.array([loss for _, _, loss in full]),
        "at_end": full_at_end,
    }
    return Known(
        open_run(path),
        (np.array(gradients) * to_end).sum(1),
        np.array(losses),
        at_end,
        measured,
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return train(tmp_path_factory.mktemp("alpha") / "run.zarr")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return train(tmp_path_factory.mktemp("alpha") / "other.zarr", seed=1)


def compared(known: Known, **options: Any) -> xr.Dataset:
    return analyzers.alpha_beta(
        known.run, reference_losses=known.reference_loss, **options
    ).compute()


def every_margin(knowns: list[Known], alpha: float, beta: float) -> Any:
    return np.concatenate(
        [
            k.product - alpha * (k.loss - k.reference_loss) + beta * k.loss
            for k in knowns
        ]
    )


# What is compared


def test_an_exact_run_has_the_products_and_losses_of_the_training(known: Known):
    result = compared(known)
    np.testing.assert_allclose(result["product"], known.product, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result["product_stderr"], 0)
    np.testing.assert_allclose(result["loss"], known.loss, rtol=1e-6)
    np.testing.assert_array_equal(result["reference_loss"], known.reference_loss)
    assert result.attrs["reference_losses"] == "given by the caller"
    np.testing.assert_array_equal(
        result.sel(epoch=1)["step"], range(PER_EPOCH, 2 * PER_EPOCH)
    )


def test_products_are_lazy(known: Known):
    import dask

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("computed")

    with dask.config.set(scheduler=fail):
        analyzers.alpha_beta(known.run, reference_losses=known.reference_loss)


def test_errors_of_products_have_nothing_of_the_distance(tmp_path: Path):
    """The probes, which the distance rests on, do not move them; the signs do."""
    few, more = (
        train(tmp_path / f"{n}.zarr", exact=False, sketch_bits=512, probes=n)
        for n in (8, 1024)
    )
    assert_same = np.testing.assert_allclose
    a, b = compared(few), compared(more)
    assert_same(a["product"], b["product"], rtol=1e-6, atol=1e-9)
    assert_same(a["product_stderr"], b["product_stderr"], rtol=1e-6, atol=1e-9)
    z = (a["product"] - few.product) / a["product_stderr"].where(a["product"] != 0)
    assert 0 < float(abs(z[:-2]).max()) < 5


def test_the_product_with_a_gradient_of_zeros_is_zero(tmp_path: Path):
    known = train(tmp_path / "run.zarr")
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "flat.zarr", model, optimizer, sketch_bits=64) as recorder:
        for scale in (0, 1, 0):
            optimizer.zero_grad()
            loss = scale * model(torch.ones(1, 3)).square().sum()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    run = open_run(tmp_path / "flat.zarr")
    result = analyzers.alpha_beta(run, reference_losses=np.zeros(3)).compute()
    np.testing.assert_array_equal(result["product"][[0, 2]], 0)
    assert float(result["product"][1]) > 0
    assert known.run.n_steps == N_STEPS


def test_measurements_are_compared_as_well(known: Known):
    measured = known.run.measured("full_batch")
    full = np.full(EPOCHS, known.full["at_end"])
    result = analyzers.alpha_beta(measured, reference_losses=full).compute()
    np.testing.assert_allclose(result["product"], known.full["product"], rtol=1e-4)


def test_losses_that_are_not_there_are_named(known: Known, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"one number for each of the 80 steps .*\(3,\)"
    ):
        analyzers.alpha_beta(known.run, reference_losses=[1, 2, 3])
    with pytest.raises(
        ValueError, match=r"compute them with traj-train replay \S+run.zarr, or give an"
    ):
        analyzers.alpha_beta(known.run)
    with pytest.raises(ValueError, match=r"replay \S+run.zarr --reference 0, or"):
        analyzers.alpha_beta(known.run, reference=0)
    point = {name: np.zeros(s) for name, s in zip(*layout_of(known.run), strict=True)}
    with pytest.raises(
        ValueError, match=r"run.zarr; give an array as reference_losses"
    ):
        analyzers.alpha_beta(known.run, reference=point)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, optimizer, sketch_bits=64) as recorder:
        model(torch.ones(1, 3)).sum().backward()
        recorder.measure("full_batch")
        optimizer.step()
    run = open_run(tmp_path / "run.zarr")
    with pytest.raises(
        ValueError, match=r"record them with recorder.log\(loss=loss\)\.$"
    ):
        analyzers.alpha_beta(run)
    with pytest.raises(
        ValueError, match=r"recorder.measure\('full_batch', loss=loss\)"
    ):
        analyzers.aiming(run, measurement="full_batch")


def layout_of(run: Run) -> Any:
    return run.layout.names, run.layout.shapes


def test_losses_below_the_optimal_one_are_refused(known: Known):
    least = int(known.loss.argmin())
    with pytest.raises(
        ValueError, match=rf"step {least} is .* below optimal_loss = 0.7, .* smaller"
    ):
        compared(known, optimal_loss=0.7)
    losses = known.reference_loss.copy()
    losses[4] = -0.25
    with pytest.raises(ValueError, match=r"step 4 at x\* is -0.25, below"):
        analyzers.alpha_beta(known.run, reference_losses=losses)


# Pairs


def grid() -> Any:
    alpha, beta = np.linspace(0.05, 4, 60), np.linspace(0, 3.5, 56)
    return alpha, beta


@pytest.mark.parametrize("min_gap", [0.1, 1.0])
def test_feasible_pairs_are_those_that_hold_at_every_step(
    known: Known, other: Known, min_gap: float
):
    """Point for point, from the gradients and losses that the training itself saw."""
    knowns = [known, other]
    pairs = analyzers.feasible_set(map(compared, knowns), min_gap=min_gap)
    alpha, beta = grid()
    lower = analyzers.smallest_beta(pairs, alpha).values
    n_inside = 0
    for i, a in enumerate(alpha):
        for b in beta:
            expected = a >= b + min_gap and bool(
                (every_margin(knowns, a, b) >= 0).all()
            )
            assert (lower[i] <= b <= a - min_gap) == expected, (a, b)
            n_inside += expected
    assert 50 < n_inside < alpha.size * beta.size / 2 - 50
    assert int(pairs["n_steps"]) == 2 * N_STEPS
    assert int(pairs["n_missing"]) == 0


def test_no_pair_undercuts_the_smallest(known: Known, other: Known):
    pairs = analyzers.feasible_set([compared(known), compared(other)])
    corners = np.stack([pairs["alpha"], pairs["beta"]], 1)
    smallest = corners[pairs["is_smallest"].values]
    # Along the boundary alpha grows and beta falls; behind it, it does not.
    assert (np.diff(smallest[:, 0]) > 0).all()
    assert (np.diff(smallest[:, 1]) < 0).all()
    assert len(smallest) > 1
    rest = corners[len(smallest) :]
    assert (rest[:, 1] >= smallest[-1, 1]).all()
    best = float(pairs["best_alpha"] + pairs["best_beta"])
    alpha, beta = (axis.ravel() for axis in np.meshgrid(*grid()))
    for a, b in zip(alpha, beta, strict=True):
        if a >= b + 0.1 and (every_margin([known, other], a, b) >= 0).all():
            assert a + b >= best
    T = every_margin(
        [known, other], float(pairs["best_alpha"]), float(pairs["best_beta"])
    )
    assert T.min() == pytest.approx(0, abs=1e-4)


def test_bounds_are_named_by_run_and_step(known: Known, other: Known):
    knowns = [known, other]
    pairs = analyzers.feasible_set([compared(k) for k in knowns])
    assert pairs.attrs["runs"] == [k.run.location for k in knowns]
    for i in range(pairs.sizes["vertex"]):
        step, run = int(pairs["step"][i]), int(pairs["run"][i])
        a, b = float(pairs["alpha"][i]), float(pairs["beta"][i])
        if step < 0:
            assert b == 0
            continue
        T = every_margin([knowns[run]], a, b)
        assert T[step] == pytest.approx(0, abs=1e-4 * max(1, a))
    step, run = int(pairs["limit_step"]), int(pairs["limit_run"])
    assert step >= 0
    a, b = float(pairs["alpha"][0]), float(pairs["beta"][0])
    assert a - b == pytest.approx(0.1)
    assert every_margin([knowns[run]], a, b)[step] == pytest.approx(0, abs=1e-4)


def test_margins_are_the_smallest_of_all(known: Known, other: Known):
    alpha, beta = [0.5, 2.0, 7.0], [0.0, 1.5]
    found = analyzers.margin([compared(known), compared(other)], alpha, beta)
    assert dict(found.sizes) == {"alpha": 3, "beta": 2}
    for i, a in enumerate(alpha):
        for j, b in enumerate(beta):
            T = every_margin([known, other], a, b)
            assert float(found["margin"][i, j]) == pytest.approx(T.min(), abs=1e-5)
            run, step = divmod(int(T.argmin()), N_STEPS)
            assert (int(found["run"][i, j]), int(found["step"][i, j])) == (run, step)


def test_the_optimal_loss_shifts_beta_only(known: Known):
    shifted = compared(known, optimal_loss=-0.5)
    a, b = 2.0, 1.0
    T = known.product - a * (known.loss - known.reference_loss) + b * (known.loss + 0.5)
    found = analyzers.margin(shifted, a, b)["margin"]
    assert found.item() == pytest.approx(T.min(), abs=1e-5)


def test_standard_errors_move_the_boundary(tmp_path: Path):
    known = train(tmp_path / "run.zarr", exact=False, sketch_bits=512)
    one = compared(known)
    alpha = np.linspace(0, 4, 50)
    stricter, plain, looser = (
        analyzers.smallest_beta(analyzers.feasible_set(one, n_stderr=n), alpha)
        for n in (-1, 0, 1)
    )
    highest, middle, lowest = (b.fillna(np.inf) for b in (stricter, plain, looser))
    assert (lowest <= middle).all()
    assert (middle <= highest).all()
    assert float(lowest[-1]) < float(highest[-1])
    by_hand = one.assign(product=one["product"] - one["product_stderr"])
    xr.testing.assert_equal(
        analyzers.feasible_set(by_hand), analyzers.feasible_set(one, n_stderr=-1)
    )


def test_steps_that_are_not_known_are_left_out_and_counted(known: Known):
    one = compared(known)
    worst = analyzers.margin(one, 1.0, 0.0)["step"].item()
    for name, value in {
        "product": np.nan,
        "loss": np.inf,
        "reference_loss": np.nan,
    }.items():
        spoilt = one.copy(deep=True)
        spoilt[name][worst] = value
        pairs = analyzers.feasible_set(spoilt)
        left = one.drop_isel(step=worst)
        without = analyzers.feasible_set(left)
        assert (int(pairs["n_missing"]), int(pairs["n_steps"])) == (1, N_STEPS - 1)
        xr.testing.assert_equal(
            pairs.drop_vars("n_missing"), without.drop_vars("n_missing")
        )
        margins = analyzers.margin(spoilt, 1.0, 0.0)
        assert int(margins["n_missing"]) == 1
        assert margins["step"].item() != worst
    nothing = one.assign(product=one["product"] * np.nan)
    for function in (analyzers.feasible_set, lambda d: analyzers.margin(d, 1.0, 0.0)):
        with pytest.raises(ValueError, match="None of the 80 steps has a product"):
            function(nothing)


def test_an_empty_set_says_why(known: Known):
    one = compared(known)
    spoilt = one.copy(deep=True)
    spoilt["reference_loss"][3] = 0
    spoilt["product"][3] = -1
    pairs = analyzers.feasible_set(spoilt)
    assert pairs.sizes["vertex"] == 0
    assert np.isnan(pairs["best_alpha"])
    assert np.isnan(pairs["best_beta"])
    assert f"step 3 of {known.run.location} has" in pairs.attrs["note"]
    assert pairs.attrs["note"].startswith("no pair is feasible")
    assert np.isnan(analyzers.smallest_beta(pairs, [1.0, 1000.0])).all()


def test_arguments_out_of_range_are_refused(known: Known):
    one = compared(known)
    with pytest.raises(ValueError, match="`min_gap` must be at least 0, got -1"):
        analyzers.feasible_set(one, min_gap=-1)
    with pytest.raises(ValueError, match="at least one dataset of"):
        analyzers.feasible_set([])
    with pytest.raises(ValueError, match=r"must be one-dimensional, got .*\(1, 2\)"):
        analyzers.margin(one, [[1, 2]], 0.5)


# Aiming and PL


def test_aiming_is_that_of_the_training(known: Known):
    found = analyzers.aiming(known.run).compute()
    theta = known.product / known.loss
    np.testing.assert_allclose(found["theta"], theta, rtol=1e-4, atol=1e-6)
    geometry = analyzers.path_geometry(known.run).compute()
    np.testing.assert_array_equal(found["cosine"], geometry["gamma"])
    np.testing.assert_allclose(
        np.cos(np.deg2rad(found["angle"])), found["cosine"], atol=1e-12
    )
    assert found.attrs["gradient"] == "minibatch"
    full = analyzers.aiming(known.run, measurement="full_batch").compute()
    expected = known.full["product"] / known.full["loss"]
    np.testing.assert_allclose(full["theta"], expected, rtol=1e-4)
    np.testing.assert_allclose(full["cosine"], known.full["cosine"], rtol=1e-4)
    assert full.attrs["gradient"] == "measurement 'full_batch'"
    np.testing.assert_array_equal(full["epoch"], range(EPOCHS))


def test_errors_of_aiming_follow_from_those_of_its_parts(tmp_path: Path):
    known = train(tmp_path / "run.zarr", exact=False, sketch_bits=512)
    found = analyzers.aiming(known.run).compute()
    one = compared(known)
    np.testing.assert_allclose(
        found["theta_stderr"], one["product_stderr"] / known.loss, rtol=1e-5
    )
    h, few = 1e-6, found.isel(step=slice(0, 15))
    slope = (np.arccos(few["cosine"] + h) - np.arccos(few["cosine"])) / h
    expected = abs(np.rad2deg(slope)) * few["cosine_stderr"]
    np.testing.assert_allclose(few["angle_stderr"], expected, rtol=1e-4)


def test_pl_constants_are_the_largest_that_hold(known: Known):
    of_steps = known.run.steps["grad_norm"].values ** 2
    for measurement, grad_sq, loss in (
        ("full_batch", known.full["grad_sq"], known.full["loss"]),
        (None, of_steps, known.loss),
    ):
        least = known.full["at_end"]
        found = analyzers.polyak_lojasiewicz(
            known.run, reference_loss=least, measurement=measurement
        )
        assert found["delta"].values.tolist() == [1, 1.25, 1.5, 1.75, 2]
        above = loss > least
        assert int(found["n_missing"]) == (~above).sum()
        assert (~above).any() == (measurement is None)
        for delta in found["delta"].values:
            mu = found["mu"].sel(delta=delta).values
            assert np.isnan(mu[~above]).all()
            # |grad f|^delta = (2 mu)^(delta / 2) (f - f*).
            left = grad_sq[above] ** (delta / 2)
            right = (2 * mu[above]) ** (delta / 2) * (loss[above] - least)
            np.testing.assert_allclose(left, right, rtol=1e-5)
            smallest = float(found["smallest"].sel(delta=delta))
            assert smallest == np.nanmin(mu)
            row = int(np.nanargmin(mu))
            step = int(found["smallest_step"].sel(delta=delta))
            assert step == int(found["step"][row])


def test_pl_bounds_nothing_where_no_loss_is_above(known: Known):
    found = analyzers.polyak_lojasiewicz(known.run, reference_loss=1e6)
    assert np.isnan(found["smallest"]).all()
    assert (found["smallest_step"] == -1).all()
    assert int(found["n_missing"]) == N_STEPS


def test_measurements_that_are_not_there_say_how_to_make_them(
    known: Known, example_run: Path
):
    run = open_run(example_run)
    with pytest.raises(
        KeyError, match=r"traj-train run NAME --full-gradients, or by rec"
    ):
        analyzers.aiming(run, measurement="full_batch")
    with pytest.raises(
        KeyError, match=r"by recorder.measure\('mine', loss=loss\) in a"
    ):
        analyzers.polyak_lojasiewicz(known.run, reference_loss=0, measurement="mine")
    with pytest.raises(
        ValueError, match=r"`delta` must be between 1 and 2, got \[0.5\]"
    ):
        analyzers.polyak_lojasiewicz(known.run, reference_loss=0, delta=[0.5])
