"""Various training loops, compared with gradients and parameters that the tests keep."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import (
    Observed,
    adjacent,
    dense,
    gradient,
    iterate,
    loss_of,
    net,
    products,
)
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


def test_accumulated_gradients_are_one_row(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for batch in range(12):
            loss = loss_of(model, batch) / 3
            loss.backward()
            if batch % 3 == 2:
                recorder.log(loss=3 * loss)
                seen.before(model)
                optimizer.step()
                optimizer.zero_grad()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert run.n_steps == 4


@pytest.mark.parametrize("raw", [False, True], ids=["clipped", "raw"])
def test_clipping(raw: bool, tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    norms = []
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if raw:
                recorder.take_gradient()
                seen.before(model)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if not raw:
                recorder.log(raw_grad_norm=norm)
                seen.before(model)
            norms.append([float(norm), float(np.linalg.norm(gradient(model)))])
            optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    names = ("grad_norm", "step_grad_norm") if raw else ("raw_grad_norm", "grad_norm")
    found = np.stack([run.steps[name] for name in names], 1)
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    np.testing.assert_allclose(adjacent(run), products(seen), rtol=1e-4, atol=1e-7)


def test_a_gradient_taken_twice_is_the_last_one(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            recorder.take_gradient()
            if step == 1:
                loss_of(model, 7).backward()
                recorder.take_gradient()
            seen.before(model)
            optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert np.isnan(adjacent(run)).tolist() == [False, True, False]


FUSED: list[Callable[[Iterator[Any]], Any]] = [
    lambda parameters: optim.SGD(parameters, lr=0.05),
    lambda parameters: optim.SGD(parameters, lr=0.05, fused=True),
    lambda parameters: optim.AdamW(parameters, lr=0.05, fused=True),
]


@pytest.mark.parametrize("make", FUSED, ids=["sgd", "fused-sgd", "fused-adamw"])
@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled"])
def test_grad_scaler(make: Any, unscaled: bool, tmp_path: Path):
    """Gradients are recorded unscaled, and skipped steps have no rows."""
    model, seen = net(), Observed()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(7):
            optimizer.zero_grad()
            loss = loss_of(model, step) * (torch.inf if step in {0, 4} else 1)
            scaler.scale(loss).backward()
            recorder.log(loss=loss)
            factor = scaler.get_scale()
            if unscaled:
                scaler.unscale_(optimizer)
            if step not in {0, 4}:
                seen.before(model, 1.0 if unscaled else factor)
            scaler.step(optimizer)
            scaler.update()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert np.isfinite(run.steps.loss).all()
    np.testing.assert_allclose(adjacent(run), products(seen), rtol=1e-4, atol=1e-7)


def test_float32_copies_of_low_precision_parameters(tmp_path: Path):
    model = net().bfloat16()
    copies = {
        name: p.detach().float().requires_grad_()
        for name, p in model.named_parameters()
    }
    optimizer = optim.SGD(copies.values(), lr=1e-3)
    with pytest.raises(
        ValueError, match=r"holds copies.*a mapping from names to copies"
    ):
        Recorder(tmp_path / "none", model, optimizer)
    gradients, iterates = [], []
    with Recorder(tmp_path / "run", copies, optimizer, exact=True):
        for step in range(4):
            model.zero_grad()
            inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            model(inputs.bfloat16()).square().mean().backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                copies[name].grad = p.grad.float()
            gradients.append(
                np.concatenate([c.grad.numpy().ravel() for c in copies.values()])  # type: ignore[union-attr]
            )
            optimizer.step()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(copies[name])
            iterates.append([c.detach().numpy().copy() for c in copies.values()])
    run = open_run(tmp_path / "run")
    assert list(run.layout.names) == list(copies)
    stored = run.stored.large_rows("gradient", slice(0, 4), slice(0, run.layout.size))
    np.testing.assert_array_equal([dense(run, g) for g in stored], gradients)
    final = run.layout.unflatten(run.stored.vector("final", slice(0, run.layout.size)))
    for value, expected in zip(final.values(), iterates[-1], strict=True):
        np.testing.assert_array_equal(value, expected)


def test_an_optimizer_that_overwrites_gradients(tmp_path: Path):
    class Greedy(optim.SGD):
        def step(self, _closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.mul_(0.5)
            super().step()
            self.zero_grad(set_to_none=False)
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(0.9)

    model, seen = net(), Observed()
    optimizer = Greedy(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(4):
            loss_of(model, step).backward()
            seen.before(model)
            optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    np.testing.assert_allclose(adjacent(run), products(seen), rtol=1e-4, atol=1e-7)
    moved = np.diff([*seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )


def test_a_step_that_fails_halfway_is_measured_again(tmp_path: Path):
    class Fragile(optim.SGD):
        is_broken = False

        def step(self, _closure: Any = None) -> Any:
            if self.is_broken:
                raise ValueError("broken")
            return super().step()

    model, seen = net(), Observed()
    optimizer = Fragile(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.is_broken = step == 2
            if optimizer.is_broken:
                with pytest.raises(ValueError, match="broken"):
                    optimizer.step()
                continue
            seen.before(model)
            optimizer.step()
    seen.agrees(open_run(tmp_path / "run"), model)


def test_compiled_models_have_the_names_of_their_modules(tmp_path: Path):
    model, seen = net(), Observed()
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = optim.SGD(compiled.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", compiled, optimizer, exact=True):
        for step in range(3):
            optimizer.zero_grad()
            loss_of(compiled, step).backward()
            seen.before(model)
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert list(run.layout.names) == [name for name, _ in model.named_parameters()]
    seen.agrees(run, model)


def test_only_trained_parameters_are_recorded(tmp_path: Path):
    """As with adapters (LoRA), frozen weights are not recorded."""
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.AdamW(trained, lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer):
        loss_of(model, 0).backward()
        optimizer.step()
    run = open_run(tmp_path / "run")
    assert list(run.layout.names) == ["2.weight", "2.bias"]


def test_a_moving_average_is_a_reference(tmp_path: Path):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    import analyzers

    model = net()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    iterates = []
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            iterates.append(iterate(model))
            optimizer.step()
            ema.update_parameters(model)
    geometry = analyzers.path_geometry(
        open_run(tmp_path / "run"), reference=ema.module.state_dict()
    )
    expected = np.linalg.norm(np.array(iterates) - iterate(ema.module), axis=1)
    np.testing.assert_allclose(geometry.distance, expected, rtol=1e-5)


def test_a_flush_between_a_gradient_and_its_step(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            recorder.take_gradient()
            for _ in range(step):
                recorder.measure("another")
                recorder.flush()
            optimizer.step()
    seen.agrees(open_run(tmp_path / "run"), model)


def test_the_loss_of_a_skipped_step_is_not_given_to_the_last_step(tmp_path: Path):
    model, losses = net(), [1.0, 2.0, float("nan")]
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        for loss in losses:
            loss_of(model, 0).backward()
            recorder.log(loss=loss)
            if np.isfinite(loss):
                optimizer.step()
        recorder.log(accuracy=0.5)
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(steps.loss, [1, 2])
    np.testing.assert_array_equal(steps.accuracy, [np.nan, 0.5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_leaves_the_recorder_as_it_is(tmp_path: Path):
    """If the hooks were compiled, torch would warn of code that cannot be compiled."""
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    step_compiled: Any = torch.compile(optimizer.step, backend="eager")
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            step_compiled()
    seen.agrees(open_run(tmp_path / "run"), model)


def test_an_optimizer_whose_step_is_not_called(tmp_path: Path):
    """Such an optimizer may be wrapped by another optimizer that steps in two parts."""

    class Outer(optim.Optimizer):
        def __init__(self, inner: optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def second_step(self) -> None:
            self.inner.step()

    model, seen = net(), Observed()
    outer = Outer(optim.SGD(model.parameters(), lr=0.05))
    loss_of(model, 0).backward()
    recorder = Recorder(tmp_path / "outer", model, outer)
    with Recorder(tmp_path / "inner", model, outer.inner, exact=True):
        seen.before(model)
        outer.second_step()
    with pytest.warns(UserWarning, match="saw no optimizer step") as w:
        recorder.close()
    assert w[0].filename == __file__
    assert open_run(tmp_path / "outer").n_steps == 0
    seen.agrees(open_run(tmp_path / "inner"), model)


@pytest.mark.parametrize("at_a_window", [False, True], ids=["at-the-end", "earlier"])
def test_parameters_that_the_optimizer_is_given_later(
    at_a_window: bool, tmp_path: Path
):
    model = net()
    optimizer = optim.SGD(model[2].parameters(), lr=0.05)  # type: ignore[index]
    recorder = Recorder(tmp_path / "run", model, optimizer, reference_every=1)
    loss_of(model, 0).backward()
    optimizer.step()
    optimizer.add_param_group({"params": model[0].parameters()})  # type: ignore[index]
    end = optimizer.step if at_a_window else recorder.close
    with pytest.warns(UserWarning, match="2 tensors were given to the optimizer after"):
        end()
    recorder.close()
    assert open_run(tmp_path / "run").layout.names == ("2.weight", "2.bias")
