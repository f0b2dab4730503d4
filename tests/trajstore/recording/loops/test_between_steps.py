"""Parameters that are changed outside of the optimizer's step."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.trajstore.recording.observed import Observed, iterate, loss_of, net
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder


def decay(model: Any) -> None:
    for p in model.parameters():
        p.data.mul_(0.99)


def clamp(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-0.1, 0.1)


def noise(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = p.data + 0.01 * torch.randn(p.shape, generator=generator)


START = net().state_dict()


def restore(model: Any) -> None:
    model.load_state_dict(START)


def assert_updates(run: Run, seen: Observed, model: Any) -> None:
    """Compare the recorded updates with the differences of the iterates."""
    seen.agrees(run, model)
    moved = np.linalg.norm(np.diff([*seen.iterates, iterate(model)], axis=0), axis=1)
    np.testing.assert_allclose(run.steps.update_norm, moved, rtol=1e-4)


@pytest.mark.parametrize("change", [decay, clamp, noise, restore])
@pytest.mark.parametrize("by_hook", [False, True], ids=["loop", "hook"])
def test_a_change_between_steps_belongs_to_the_update(
    change: Callable[[Any], None], by_hook: bool, tmp_path: Path
):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True, updates=True) as r:
        if by_hook:
            optimizer.register_step_post_hook(lambda *_: change(model))
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            optimizer.step()
            r.measure("before the change")
            if not by_hook:
                change(model)
    run = open_run(tmp_path / "run")
    assert_updates(run, seen, model)
    updates = run.measured("update").steps.grad_norm
    np.testing.assert_allclose(updates, run.steps.update_norm, rtol=1e-6)


@pytest.mark.parametrize("early", ["flush", "state_dict"])
def test_a_change_after_a_flush_is_warned_of(early: str, tmp_path: Path):
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        loss_of(model, 0).backward()
        optimizer.step()
        getattr(recorder, early)()
        optimizer.step()
        getattr(recorder, early)()
        model[2].bias.data[-1] += 1  # type: ignore[index]
        with pytest.warns(UserWarning, match="changed since step 1 was written") as w:
            optimizer.step()
    assert w[0].filename == __file__


def test_a_change_is_warned_of_if_a_journal_has_the_step(tmp_path: Path):
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, journal=True):
        loss_of(model, 0).backward()
        optimizer.step()
        optimizer.step()
        decay(model)
        with pytest.warns(UserWarning, match="loops that change them .* a journal"):
            optimizer.step()


@pytest.mark.parametrize("change", [decay, restore])
def test_a_change_at_the_end_is_warned_of(
    change: Callable[[Any], None], tmp_path: Path
):
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    recorder = Recorder(tmp_path / "run", model, optimizer)
    loss_of(model, 0).backward()
    for _ in range(3):
        optimizer.step()
    change(model)
    with pytest.warns(
        UserWarning,
        match="changed since the last optimizer step.* close the recorder before",
    ):
        recorder.close()


@pytest.mark.parametrize("when", ["before", "after", "in the loop", "global"])
def test_a_hook_that_clips_may_be_added_later(when: str, tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05)

    def clip(optimizer: Any, *_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        seen.before(model)

    if when == "before":
        optimizer.register_step_pre_hook(clip)
    everywhere = register_optimizer_step_pre_hook(clip) if when == "global" else None
    with (
        Recorder(tmp_path / "run", model, optimizer, exact=True),
        Recorder(tmp_path / "other", model, optimizer, exact=True),
    ):
        if when == "after":
            optimizer.register_step_pre_hook(clip)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if step == 0 and when == "in the loop":
                optimizer.register_step_pre_hook(clip)
            optimizer.step()
    for name in ("run", "other"):
        seen.agrees(open_run(tmp_path / name), model)
    assert len(optimizer._optimizer_step_pre_hooks) == (everywhere is None)
    if everywhere is not None:
        everywhere.remove()
    optimizer.step()


class Lookahead:
    """Moves towards the parameters that another optimizer has reached, every second step."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.n = inner, 0
        self.slow = [p.detach().clone() for p in inner.param_groups[0]["params"]]

    def step(self) -> None:
        self.inner.step()
        self.n += 1
        if self.n % 2 == 0:
            parameters = self.inner.param_groups[0]["params"]
            for p, slow in zip(parameters, self.slow, strict=True):
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)


def test_a_wrapper_that_moves_parameters_after_the_step(tmp_path: Path):
    model, seen = net(), Observed()
    outer = Lookahead(optim.SGD(model.parameters(), lr=0.05))
    with Recorder(tmp_path / "run", model, outer.inner, exact=True):
        for step in range(7):
            model.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            outer.step()
    assert_updates(open_run(tmp_path / "run"), seen, model)


class Averaging:
    """Evaluates gradients at an average, and lets another optimizer move other points."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.points = [p.detach().clone() for p in inner.param_groups[0]["params"]]

    def step(self) -> None:
        parameters = self.inner.param_groups[0]["params"]
        averages = [p.detach().clone() for p in parameters]
        for p, z in zip(parameters, self.points, strict=True):
            p.data.copy_(z)
        self.inner.step()
        for p, z, y in zip(parameters, self.points, averages, strict=True):
            z.copy_(p.detach())
            p.data.copy_(0.1 * z + 0.9 * y)


def test_a_wrapper_that_moves_parameters_before_the_step_is_warned_of(tmp_path: Path):
    model = net()
    outer = Averaging(optim.SGD(model.parameters(), lr=0.05))
    recorder = Recorder(tmp_path / "run", model, outer.inner)
    loss_of(model, 0).backward()
    outer.step()
    model.zero_grad()
    loss_of(model, 1).backward()
    with pytest.warns(UserWarning, match="moved between the backward pass") as w:
        outer.step()
    assert w[0].filename == __file__
    with pytest.warns(UserWarning, match="stored as the final iterate"):
        recorder.close()


def test_a_finite_blow_up_is_taken_back(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with Recorder(tmp_path / "run", model, optimizer, reference_every=10) as recorder:
        for step in range(60):
            if step == 20:
                kept = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
            if step == 28:
                optimizer.param_groups[0]["lr"] = 1e5
            if step == 32:
                model.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            recorder.log(step_number=step)
            optimizer.step()
    run = open_run(tmp_path / "run")
    truth = np.linalg.norm(np.array(seen.iterates), axis=1)
    found = run.steps.param_norm.values
    known = np.isfinite(found)
    np.testing.assert_allclose(found[known], truth[known], rtol=1e-3)
    assert known[36:].all()
    assert np.flatnonzero(~known).tolist() == [*range(32, 32 + (~known).sum())]


@pytest.mark.parametrize("moves", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("options", [{}, {"journal": True}])
def test_a_step_that_fails_is_a_row_if_it_has_moved_the_parameters(
    moves: bool, options: dict[str, Any], tmp_path: Path
):
    model, seen, is_failing = net(), Observed(), False
    optimizer = optim.SGD(model.parameters(), lr=0.05)

    def fail(*_: Any) -> None:
        if is_failing:
            raise RuntimeError("stop")

    with Recorder(
        tmp_path / "run", model, optimizer, exact=True, **options
    ) as recorder:
        register = optimizer.register_step_post_hook
        # A hook of the recorder's comes first if it was registered first.
        (register if moves else optimizer.register_step_pre_hook)(fail)
        if moves:
            hooks: Any = optimizer._optimizer_step_post_hooks
            hooks.move_to_end(next(reversed(hooks)), last=False)
        for k in range(8):
            optimizer.zero_grad()
            loss_of(model, k).backward()
            recorder.log(loss=float(k))
            is_failing = k == 3
            if moves or not is_failing:
                seen.before(model)
            try:
                optimizer.step()
            except RuntimeError:
                continue
    run = open_run(tmp_path / "run")
    assert run.n_steps == (8 if moves else 7)
    assert_updates(run, seen, model)
    logged = [0, 1, 2, np.nan, 4, 5, 6, 7] if moves else [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(run.steps.loss, logged)
