"""The two-run protocol agrees with float64 arithmetic over a whole training run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train.observer import unobserved
from train.protocols.two_run import two_run

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")


class Silent:
    def log(self, **scalars: Any) -> None:
        pass

    def measure(self, name: str, **scalars: Any) -> None:
        pass


@pytest.fixture(scope="module")
def trace(train_small: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Return gradients, iterates and final parameters of the small training run by name."""
    kept: dict[str, dict[str, Any]] = {"g": {}, "x": {}, "end": {}}

    @contextmanager
    def watch(model: Any, optimizer: Any, **_: int) -> Iterator[Silent]:
        def keep_step(*_: object) -> None:
            for name, p in model.named_parameters():
                gradient = p.grad.double().numpy().ravel().copy()
                kept["g"].setdefault(name, []).append(gradient)
                point = p.detach().double().numpy().ravel().copy()
                kept["x"].setdefault(name, []).append(point)

        handle = optimizer.register_step_pre_hook(keep_step)
        yield Silent()
        handle.remove()

    model = train_small(watch)
    for name, p in model.named_parameters():
        kept["end"][name] = p.detach().double().numpy().ravel()
        kept["g"][name] = np.stack(kept["g"][name])
        kept["x"][name] = np.stack(kept["x"][name])
    return kept


def geometry(g: Any, a: Any) -> dict[str, Any]:
    """Return the paper's quantities for rows of gradients g and of differences a = x - x*."""
    h = (g * a).sum(1)
    norm, distance = np.sqrt((g**2).sum(1)), np.sqrt((a**2).sum(1))
    rsi, eb = h / distance**2, norm / distance
    values = {"rsi": rsi, "eb": eb, "gamma": rsi / eb, "lolr": rsi / eb**2}
    return values | {"distance": distance}


def test_equals_a_float64_reference(
    trace: dict[str, Any], train_small: Callable[..., Any]
):
    exact = two_run(train_small)
    names = list(trace["end"])
    g = np.concatenate([trace["g"][n] for n in names], 1)
    a = np.concatenate([trace["x"][n] - trace["end"][n] for n in names], 1)
    assert set(exact.data_vars) == set(QUANTITIES)
    for name, expected in geometry(g, a).items():
        assert exact[name].dims == ("step",)
        np.testing.assert_allclose(exact[name], expected, rtol=1e-11)
    assert exact.epoch.values.tolist() == [k // 12 for k in range(60)]
    assert exact.iteration.values.tolist() == [k % 12 for k in range(60)]
    assert exact.attrs["reference"] == "final"


def stacked(trace: dict[str, Any], key: str) -> Any:
    return np.concatenate([trace[key][name] for name in trace["end"]], 1)


def test_weight_decay_is_added_to_gradients(
    trace: dict[str, Any], train_small: Callable[..., Any]
):
    exact = two_run(train_small, weight_decay=0.3)
    end = np.concatenate(list(trace["end"].values()))
    g, x = stacked(trace, "g"), stacked(trace, "x")
    for name, expected in geometry(g + 0.3 * x, x - end).items():
        np.testing.assert_allclose(exact[name], expected, rtol=1e-11)


def test_updates_are_measured_where_steps_begin(
    trace: dict[str, Any], train_small: Callable[..., Any]
):
    exact = two_run(train_small, direction="update")
    end = np.concatenate(list(trace["end"].values()))
    x = stacked(trace, "x")
    u = np.diff(np.vstack([x, end]), axis=0)
    for name, expected in geometry(u, x - end).items():
        np.testing.assert_allclose(exact[name], expected, rtol=1e-9)


def test_other_gradients_are_measured_where_they_are_taken():
    def train(observe: Any) -> None:
        x = torch.nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            x.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        optimizer = torch.optim.SGD(x.parameters(), lr=0.5)
        with observe(x, optimizer, steps_per_epoch=2, total_steps=4) as observer:
            for step in range(4):
                if step % 2 == 1:
                    x.weight.grad = torch.tensor([[1.0, 0.0, 0.0]])
                    observer.measure("other", note=1.0)
                    observer.measure("else")
                x.weight.grad = x.weight.detach().clone()
                optimizer.step()

    exact = two_run(train, direction="other")
    assert exact.step.values.tolist() == [1, 3]
    assert exact.epoch.values.tolist() == [0, 1]
    # Each step halves x: x_1 = x_0 / 2, x_3 = x_0 / 8, x_4 = x_0 / 16.
    away = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(exact.gamma, away[0] / np.linalg.norm(away), rtol=1e-12)
    expected = np.array([1 / 2 - 1 / 16, 1 / 8 - 1 / 16]) * np.linalg.norm(away)
    np.testing.assert_allclose(exact.distance, expected, rtol=1e-12)
    with pytest.raises(
        RuntimeError, match="made no measurement 'unheard'; nothing was measured"
    ):
        two_run(train, direction="unheard")


def test_tells_layers_apart(trace: dict[str, Any], train_small: Callable[..., Any]):
    exact = two_run(train_small, layers=True)
    assert exact.layer.values.tolist() == list(trace["end"])
    for layer, end in trace["end"].items():
        expected = geometry(trace["g"][layer], trace["x"][layer] - end)
        for name, values in expected.items():
            assert exact[name].dims == ("step", "layer")
            np.testing.assert_allclose(exact[name].sel(layer=layer), values, rtol=1e-11)


def drifting(train_small: Callable[..., Any]) -> Callable[..., Any]:
    calls = []

    def train(observe: Any) -> None:
        calls.append(1)

        @contextmanager
        def nudge(model: Any, optimizer: Any, **options: Any) -> Iterator[Any]:
            with observe(model, optimizer, **options) as log:
                yield log
                if len(calls) == 2:
                    with torch.no_grad():
                        model[2].bias[1] += 1e-6

        train_small(nudge)

    return train


def test_runs_that_end_at_different_parameters_are_refused(
    train_small: Callable[..., Any],
):
    with pytest.raises(
        RuntimeError, match=r"1 of 4 tensors differ, including \['2\.bias'\]"
    ):
        two_run(drifting(train_small))


@contextmanager
def observed(observe: Any, model: Any, optimizer: Any, n: int) -> Iterator[None]:
    with observe(model, optimizer, steps_per_epoch=n, total_steps=n):
        yield


def pull(*parameters: Any) -> Any:
    return sum((p - 0.3).square().sum() for p in parameters)


def test_zero_norms_read_as_nan():
    def train(observe: Any) -> None:
        model = torch.nn.ParameterDict({"x": torch.ones(3), "still": torch.ones(2)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with observed(observe, model, optimizer, 3):
            for step in range(3):
                optimizer.zero_grad()
                # "still" never has a gradient; that of "x" is zero after the first step.
                (pull(model["x"]) * (step == 0)).backward()
                optimizer.step()

    whole, layers = two_run(train), two_run(train, layers=True)
    # The whole path is one step, so later gradients and distances are zero.
    assert np.isfinite(whole.gamma.values).tolist() == [True, False, False]
    for name in ("gamma", "rsi", "eb", "lolr"):
        assert np.isnan(whole[name].values[1:]).all()
        assert np.isnan(layers[name].sel(layer="still")).all()
    assert whole.distance.values[1:].tolist() == [0, 0]
    np.testing.assert_allclose(whole.gamma.values[0], 1, rtol=1e-6)


def test_hooks_are_gone_after_an_exception():
    optimizers: list[Any] = []

    def train(observe: Any) -> None:
        model = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.ones_(model.bias)
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.1))
        with observed(observe, model, optimizers[-1], 1):
            assert len(optimizers[-1]._optimizer_step_pre_hooks) == len(optimizers) - 1
            if len(optimizers) == 2:
                raise ValueError("in the second run")

    with pytest.raises(ValueError, match="in the second run"):
        two_run(train)
    assert len(optimizers) == 2
    assert not optimizers[1]._optimizer_step_pre_hooks


def test_measuring_does_not_change_the_run(train_small: Callable[..., Any]):
    models = []

    def train(observe: Any) -> None:
        models.append(train_small(observe))

    two_run(train)
    train(unobserved)
    first, second, alone = (list(model.parameters()) for model in models)
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


def test_parameters_that_the_optimizer_does_not_hold_do_not_count():
    def train(observe: Any) -> None:
        model = torch.nn.ParameterDict({"x": torch.ones(3), "other": torch.ones(50)})
        optimizer = torch.optim.SGD([model["x"]], lr=0.1)
        with observed(observe, model, optimizer, 2):
            for _ in range(2):
                model.zero_grad()
                pull(*model.values()).backward()
                optimizer.step()

    exact = two_run(train)
    # The path of the parameters that the optimizer updates is straight.
    np.testing.assert_allclose(exact.gamma, 1, rtol=1e-6)


def test_runs_that_diverge_identically_are_accepted():
    def train(observe: Any) -> None:
        model = torch.nn.ParameterDict({"x": torch.ones(3)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with observed(observe, model, optimizer, 2):
            (pull(model["x"]) * torch.nan).backward()
            optimizer.step()

    assert np.isnan(two_run(train).gamma).all()


def test_a_run_without_steps_is_refused():
    def train(observe: Any) -> None:
        model = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.ones_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with observed(observe, model, optimizer, 1):
            pass

    with pytest.raises((RuntimeError, ValueError), match="step"):
        two_run(train)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_a_device_are_measured():
    def train(observe: Any) -> None:
        model = torch.nn.ParameterDict({"x": torch.ones(3, device="cuda")})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with observed(observe, model, optimizer, 1):
            pull(model["x"]).backward()
            optimizer.step()

    np.testing.assert_allclose(two_run(train).gamma, 1, rtol=1e-6)
