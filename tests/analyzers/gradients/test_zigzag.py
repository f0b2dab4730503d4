"""Test ``analyzers.zigzag`` against whole gradients, and quadratics in closed form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import analyzers
import trajstore
from tests.analyzers.laziness import fail_if_computed
from tests.analyzers.quadratic import descend

pytest.importorskip("torch")


@contextmanager
def kept(
    model: Any, optimizer: Any, *, path: Path, kept_to: list[Any], **options: Any
) -> Iterator[trajstore.Recorder]:
    """Record a run, and return its whole gradients, a list of float64 for every step."""

    def keep(*_: object) -> None:
        kept_to.append([p.grad.double().flatten().numpy() for p in model.parameters()])

    handle = optimizer.register_step_pre_hook(keep)
    with trajstore.Recorder(path, model, optimizer, **options) as recorder:
        yield recorder
    handle.remove()


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_cosines_agree_with_whole_gradients(
    tmp_path: Path, train_small: Callable[..., Any], exact: bool
):
    from functools import partial

    gradients: list[Any] = []
    path = tmp_path / "run.zarr"
    options = {} if exact else {"sketch_bits": 64, "probes": 16}
    train_small(partial(kept, path=path, kept_to=gradients), exact=exact, **options)
    run = trajstore.open_run(path)
    whole = analyzers.zigzag(run).cosine.compute()
    by_layer = analyzers.zigzag(run, layers=True).cosine.compute()
    assert by_layer.dims == ("step", "layer")
    assert len(gradients) == run.n_steps == 60
    for k in range(1, 60):
        now, before = gradients[k], gradients[k - 1]
        expected = cosine(np.concatenate(now), np.concatenate(before))
        assert float(whole[k]) == pytest.approx(expected, abs=1e-5)
        for layer, (a, b) in enumerate(zip(now, before, strict=True)):
            assert float(by_layer[k, layer]) == pytest.approx(cosine(a, b), abs=1e-5)
    assert np.isnan(whole[0])
    assert np.isnan(by_layer[0]).all()


@pytest.mark.parametrize("has_state", [True, False], ids=["state", "no state"])
def test_a_resumed_run_needs_its_state_to_know_the_previous_gradient(
    tmp_path: Path, has_state: bool
):
    import torch

    model = torch.nn.Linear(30, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []

    def go(path: Path, n: int, **options: Any) -> Any:
        with trajstore.Recorder(path, model, optimizer, **options) as recorder:
            for _ in range(n):
                optimizer.zero_grad()
                model(torch.randn(4, 30)).square().mean().backward()
                grads: list[Any] = [p.grad for p in model.parameters()]
                flat = torch.cat([grad.double().flatten() for grad in grads])
                gradients.append(flat.numpy())
                optimizer.step()
            return recorder.state_dict()

    path = tmp_path / "run.zarr"
    state = go(path, 5)
    options = {"resume": state} if has_state else {"resume": True, "step": 5}
    go(path, 5, **options)
    found = analyzers.zigzag(trajstore.open_run(path)).cosine.values
    expected = [cosine(a, b) for a, b in pairwise(gradients)]
    if not has_state:
        expected[4] = np.nan
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)


def test_one_mode_zigzags_if_the_step_is_too_long_for_it(tmp_path: Path):
    run = descend(tmp_path / "run.zarr", [0.9] * 5 + [1.1] * 5, [1.0])
    # g_(k+1) = (1 - lr) g_k, with the learning rate of step k.
    expected = [np.nan] + [1] * 5 + [-1] * 4
    np.testing.assert_allclose(analyzers.zigzag(run).cosine, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.6])
def test_cosine_of_noise_is_minus_half_the_rate_times_the_curvature(
    tmp_path: Path, rate: float
):
    """Test the formula of `zigzag_segments` for stationary iterates on 4000 equal modes."""
    n = 120
    run = descend(
        tmp_path / "run.zarr", [rate] * n, np.ones(4000), start=0.0, noise=1.0
    )
    found = analyzers.zigzag(run).cosine[40:]
    # Cosines of noise have a standard deviation of 1 / sqrt(4000); at most 3 are correlated.
    assert float(found.mean()) == pytest.approx(
        -rate / 2, abs=4 * 0.0158 * np.sqrt(3 / 80)
    )


def test_gradients_of_length_zero_have_no_cosine(tmp_path: Path):
    run = descend(tmp_path / "run.zarr", [1.0] * 4, [1.0])
    assert np.isnan(analyzers.zigzag(run).cosine[1:]).all()


def test_nothing_is_computed_before_it_is_asked_for(example_run: Path):
    run = trajstore.open_run(example_run)
    with dask.config.set(scheduler=fail_if_computed):
        found = analyzers.zigzag(run, layers=True)
    assert found.cosine.sel(epoch=2).sizes == {"step": 12, "layer": 4}


def test_chunks_do_not_matter(example_run: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    run = trajstore.open_run(example_run)
    whole = analyzers.zigzag(run).cosine.values
    monkeypatch.setattr(sys.modules["analyzers._engine.tables"], "VALUES", 28)
    np.testing.assert_array_equal(analyzers.zigzag(run).cosine.values, whole)


def test_measurements_are_refused(tmp_path: Path, train_small: Callable[..., Any]):
    from functools import partial

    path = tmp_path / "run.zarr"
    train_small(partial(trajstore.Recorder, path, updates=True), exact=True)
    measured = trajstore.open_run(path).measured("update")
    with pytest.raises(ValueError, match=r"'update' .*lagged_gradients\(run\.measured"):
        analyzers.zigzag(measured)
    # The alternative in the message works.
    lagged = analyzers.lagged_gradients(measured, lags=[1], every=1).cosine
    assert np.isfinite(lagged[:-1]).all()


def test_one_step_is_too_few(tmp_path: Path):
    run = descend(tmp_path / "run.zarr", [1.0], [1.0])
    with pytest.raises(
        ValueError, match="holds 1 steps, and adjacent gradients need two"
    ):
        analyzers.zigzag(run)
