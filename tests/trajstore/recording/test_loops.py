"""Kinds of training loops, each against gradients and parameters that the test keeps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder

Array = npt.NDArray[Any]


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model: nn.Module, step: int) -> Any:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(10, 6, generator=generator)
    return (model(inputs) - inputs[:, :1]).square().mean()


def gradient(model: nn.Module) -> Array:
    return np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters()])  # type: ignore[union-attr]


def iterate(model: nn.Module) -> Array:
    return np.concatenate(
        [p.detach().double().numpy().ravel() for p in model.parameters()]
    )


class Seen:
    """What the test saw of every step."""

    def __init__(self) -> None:
        self.gradients: list[Array] = []
        self.iterates: list[Array] = []

    def before(self, model: nn.Module, factor: float = 1.0) -> None:
        self.gradients.append(gradient(model) / factor)
        self.iterates.append(iterate(model))

    def agrees(self, run: Run, model: nn.Module, rtol: float = 1e-5) -> None:
        """Compare whole gradients and iterates of an exact run."""
        assert run.n_steps == len(self.gradients)
        whole, every = slice(0, run.layout.size), slice(0, run.n_steps)
        gradients = run.stored.large_rows("gradient", every, whole)
        displacements = run.stored.large_rows("displacement", every, whole)
        for k in range(run.n_steps):
            window = int(run.steps.window[k])
            x = run.stored.anchors.decode(window, whole) + displacements[k]
            np.testing.assert_allclose(
                dense(run, gradients[k]), self.gradients[k], rtol, 1e-7
            )
            np.testing.assert_allclose(dense(run, x), self.iterates[k], rtol, 1e-6)
        final = dense(run, run.stored.vector("final", whole))
        np.testing.assert_array_equal(final, iterate(model))


def dense(run: Run, flat: Array) -> Array:
    return np.concatenate([t.ravel() for t in run.layout.unflatten(flat).values()])


def products(seen: Seen) -> Array:
    """Return <g_k, g_(k-1)>, 0 for the first."""
    g = np.stack(seen.gradients)
    return np.concatenate([[0.0], (g[1:] * g[:-1]).sum(1)])


def adjacent(run: Run) -> Array:
    values: Array = run.steps.grad_dot_previous.sum("layer", skipna=False).values
    return values


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "by-name"])
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.Adagrad])
def test_closure(make: Any, by_name: bool, tmp_path: Path):
    model, seen = net(), Seen()
    optimizer = make(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(5):

            def closure(step: int = step) -> Any:
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                recorder.log(loss=loss)
                seen.before(model)
                return loss

            # Gradients of the step before are still there.
            by = {"closure": closure}
            found = optimizer.step(**by) if by_name else optimizer.step(closure)
            assert found.item() == pytest.approx(float(loss_of_array(seen, step)))
        optimizer.zero_grad()
        loss_of(model, 9).backward()
        seen.before(model)
        optimizer.step(None)
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    np.testing.assert_allclose(adjacent(run), products(seen), rtol=1e-4, atol=1e-7)


def loss_of_array(seen: Seen, step: int) -> float:
    model = net()
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(seen.iterates[step]).float(), model.parameters()
    )
    return float(loss_of(model, step).detach())


def test_last_evaluation_of_a_closure_is_recorded(tmp_path: Path):
    class Twice(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    model, seen, n = net(), Seen(), 0
    optimizer = Twice(model.parameters(), lr=0.05)

    def closure() -> Any:
        nonlocal n
        optimizer.zero_grad()
        loss = loss_of(model, n)
        loss.backward()
        if n % 2:
            seen.before(model)
        n += 1
        return loss

    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for _ in range(4):
            optimizer.step(closure)
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    # The gradient of the step before was overwritten by the first evaluation.
    assert np.isnan(adjacent(run)).all()


def test_closure_that_is_not_evaluated(tmp_path: Path):
    class Deaf(optim.SGD):
        def step(self, _closure: Any = None) -> Any:
            return super().step()

    model = net()
    optimizer = Deaf(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer):
        loss_of(model, 0).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="Step 1 was taken without a gradient"):
            optimizer.step(lambda: torch.zeros(()))
        optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 2


def test_lbfgs_is_refused(tmp_path: Path):
    model = net()
    with pytest.raises(NotImplementedError, match=r"LBFGS takes many steps.*SGD"):
        Recorder(tmp_path / "run", model, optim.LBFGS(model.parameters()))
    assert not (tmp_path / "run").exists()


def test_accumulated_gradients_are_one_row(tmp_path: Path):
    model, seen = net(), Seen()
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
    model, seen = net(), Seen()
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
    model, seen = net(), Seen()
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
    """True gradients, and no rows for steps that are skipped."""
    model, seen = net(), Seen()
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
    with pytest.raises(ValueError, match=r"holds copies.*a mapping from name to copy"):
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


def test_several_optimizers_make_one_row(tmp_path: Path):
    model, seen = net(), Seen()
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.Adam(model[2].parameters(), lr=0.01),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True) as recorder:
        for step in range(5):
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            recorder.log(loss=loss)
            seen.before(model)
            for optimizer in optimizers[:: -1 if step % 2 else 1]:
                optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert run.steps.lr.values.tolist() == [0.05] * 5
    assert run.steps.lr_1.values.tolist() == [0.01] * 5
    moved = np.diff([*seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )


def test_several_optimizers_of_which_one_is_left_out(tmp_path: Path):
    """As a GradScaler does where the gradients of one are not finite."""
    model, seen = net(), Seen()
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.Adam(model[2].parameters(), lr=0.01),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True):
        for step in range(6):
            model.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            for optimizer in optimizers[: 1 if step in {2, 5} else 2]:
                optimizer.step()
    seen.agrees(open_run(tmp_path / "run"), model)


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

    model, seen = net(), Seen()
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

    model, seen = net(), Seen()
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
    model, seen = net(), Seen()
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


def test_only_what_is_trained_is_recorded(tmp_path: Path):
    """As with adapters (LoRA): frozen weights take no place."""
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


def test_several_optimizers_of_which_one_is_left_out_keep_what_was_logged(
    tmp_path: Path,
):
    model, seen, n = net(), Seen(), 6
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.SGD(model[2].parameters(), lr=0.05),  # type: ignore[index]
    ]
    path = tmp_path / "run"
    with Recorder(path, model, optimizers, exact=True, samples=2) as recorder:
        for step in range(n):
            optimizers[0].param_groups[0]["lr"] = 0.01 * (step + 1)
            model.zero_grad()
            loss_of(model, step).backward()
            recorder.log(first=step)
            recorder.log_samples([step, step + 1])
            recorder.take_gradient()
            seen.before(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizers[0].step()
            if step % 3 == 0:
                recorder.log(second=step)
                optimizers[1].step()
    run, nan = open_run(path), np.nan
    seen.agrees(run, model)
    moved = np.diff([*seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )
    np.testing.assert_array_equal(run.steps.first, range(n))
    np.testing.assert_array_equal(run.steps.second, [0, nan, nan, 3, nan, nan])
    np.testing.assert_allclose(run.steps.lr, 0.01 * np.arange(1, n + 1))
    np.testing.assert_array_equal(run.samples[:, 0], range(n))


def test_a_step_that_one_was_left_out_of_belongs_to_its_epoch(tmp_path: Path):
    model, seen, states = net(), Seen(), []
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.SGD(model[2].parameters(), lr=0.05),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True) as recorder:
        for epoch in range(4):
            recorder.start_epoch()
            for step in range(2):
                model.zero_grad()
                loss_of(model, step).backward()
                seen.before(model)
                for optimizer in optimizers[: 1 if step == 1 else 2]:
                    optimizer.step()
            if epoch == 1:
                recorder.snapshot("after four")
            if epoch == 2:
                recorder.measure("after six")
            if epoch == 3:
                states.append(recorder.state_dict()["position"]["step"])
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert run.steps.epoch.values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert run.steps.iteration.values.tolist() == [0, 1] * 4
    assert run.stored.document.snapshots["after four"].step == 4
    assert run.measured("after six").stored.step_numbers.tolist() == [6]
    assert states == [8]


def test_a_flush_between_a_gradient_and_its_step(tmp_path: Path):
    model, seen = net(), Seen()
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


def test_the_loss_of_a_step_that_is_skipped_is_not_that_of_the_last(tmp_path: Path):
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
    """Compiling its hooks would warn of what cannot be compiled."""
    model, seen = net(), Seen()
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
    """As those around which another is put that steps in two parts."""

    class Outer(optim.Optimizer):
        def __init__(self, inner: optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def second_step(self) -> None:
            self.inner.step()

    model, seen = net(), Seen()
    outer = Outer(optim.SGD(model.parameters(), lr=0.05))
    loss_of(model, 0).backward()
    recorder = Recorder(tmp_path / "outer", model, outer)
    with Recorder(tmp_path / "inner", model, outer.inner, exact=True):
        seen.before(model)
        outer.second_step()
    with pytest.warns(UserWarning, match="no optimizer step was seen") as w:
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
