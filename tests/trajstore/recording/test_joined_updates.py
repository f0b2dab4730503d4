"""The update of a step is measured together with the next step, or before it."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import optim

from tests.trajstore.recording.regression import SMALL, regression
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.cpu import measuring
from trajstore.tracking.tracker import Tracker

N_STEPS = 7


def record(
    path: Path,
    between: Any = lambda _recorder: None,
    *,
    has_closure: bool = False,
    make: Any = None,
    skipped: int | None = None,
    **options: Any,
) -> Run:
    """Record some steps, and call a function of the recorder after each of them."""
    training = regression()
    if make is not None:
        optimizer = make(training.model.parameters(), lr=0.1)
        training = training._replace(optimizer=optimizer)
    arguments = SMALL | options
    with Recorder(path, training.model, training.optimizer, **arguments) as recorder:
        for step in range(N_STEPS):

            def closure(step: int = step) -> Any:
                if step == skipped:
                    return None
                training.optimizer.zero_grad()
                loss = training.loss(step)
                loss.backward()
                return loss

            if has_closure:
                training.optimizer.step(closure)
            else:
                closure()
                training.optimizer.step()
            between(recorder)
    return open_run(path)


@pytest.mark.parametrize("options", [{}, {"exact": True}], ids=["sketched", "exact"])
def test_rows_are_the_same_bits_whenever_updates_are_measured(
    options: dict[str, Any], tmp_path: Path
):
    joined = record(tmp_path / "joined", **options)
    early = record(tmp_path / "early", Recorder.flush, **options)
    closures = record(tmp_path / "closures", has_closure=True, **options)
    for name, values in joined.steps.drop_vars("wall_time").items():
        np.testing.assert_array_equal(early.steps[name], values, err_msg=name)
        np.testing.assert_array_equal(closures.steps[name], values, err_msg=name)


@pytest.mark.parametrize("has_closure", [False, True], ids=["plain", "closures"])
def test_updates_are_measured_together_with_the_next_step(
    has_closure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    numbers = []
    whole = Tracker.after_step

    def count(self: Tracker, row: Any) -> None:
        numbers.append(1)
        whole(self, row)

    monkeypatch.setattr(Tracker, "after_step", count)
    run = record(tmp_path / "run", steps_per_epoch=3, has_closure=has_closure)
    # Only the last update of each window is measured alone.
    assert len(numbers) == run.n_windows < N_STEPS


class Wanderer(optim.SGD):
    """Evaluates its closure only at other parameters in some steps."""

    def step(self, closure: Any = None) -> Any:
        parameters, state = (
            self.param_groups[0]["params"],
            cast("dict[str, Any]", self.state),
        )
        n = state.setdefault("n", [0])
        n[0] += 1
        moved = parameters if n[0] in {4, 6} else []
        for p in moved:
            p.data.mul_(2)
        loss = closure()
        for p in moved:
            p.data.mul_(1 / 2)
        super().step()
        return loss


def test_a_closure_at_another_place_costs_one_update_at_most(tmp_path: Path):
    path = tmp_path / "run"
    with pytest.warns(UserWarning, match="gradient of step 3 is not known"):
        record(path, has_closure=True, make=Wanderer)
    lost = np.flatnonzero(np.isnan(open_run(path).steps.update_norm)).tolist()
    # Steps 3 and 5 have no known displacement, and only step 2 was measured too late.
    assert lost == [2, 3, 5]


def test_a_closure_without_a_gradient_costs_no_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    numbers = []
    whole = Tracker.after_step

    def count(self: Tracker, row: Any) -> None:
        numbers.append(1)
        whole(self, row)

    monkeypatch.setattr(Tracker, "after_step", count)
    path = tmp_path / "run"
    with pytest.warns(UserWarning, match="gradient of step 3 is not known"):
        record(path, has_closure=True, skipped=3)
    steps = open_run(path).steps
    assert np.flatnonzero(np.isnan(steps.update_norm)).tolist() == [3]
    # Those of steps 2 and 3, after which copies are made, and of the last step.
    assert len(numbers) == 3


@pytest.mark.parametrize("is_late", [True, False], ids=["after", "before"])
def test_an_update_is_known_after_an_interruption_in_the_next_step(
    is_late: bool,
    tmp_path: Path,
):
    """If the kernel has run; in both cases the gradient counts once."""
    training, path = regression(), tmp_path / "run"
    whole = measuring.measure_before

    def interrupted(*arguments: Any) -> None:
        if is_late:
            whole(*arguments)
        raise KeyboardInterrupt("in a kernel")

    recorder = Recorder(path, training.model, training.optimizer, **SMALL)
    training.loss(0).backward()
    before = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()
    training.optimizer.step()
    after = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()
    tracker: Any = recorder._session.tracker
    backend = tracker._backend
    backend._kernels = backend._kernels._replace(
        before=lambda *arguments: interrupted(0, *arguments)
    )
    with pytest.raises(KeyboardInterrupt, match="in a kernel"):
        training.optimizer.step()
    recorder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    run = open_run(path)
    assert run.status == "failed"
    expected = (after - before).norm().item() if is_late else np.nan
    np.testing.assert_allclose(run.steps.update_norm, [expected], rtol=1e-5)
    energy = tracker._gradient_energy.sum().item()
    np.testing.assert_allclose(energy, run.steps.grad_norm**2, rtol=1e-5)


def test_an_update_is_known_if_the_next_gradient_cannot_be_read(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        training.loss(0).backward()
        training.optimizer.step()
        with (
            pytest.raises(ValueError, match="has the shape"),
            recorder.step(
                gradients=[torch.ones(1), *[None] * 20][
                    : len(list(training.model.parameters()))
                ]
            ),
        ):
            pass
    run = open_run(tmp_path / "run")
    assert run.n_steps == 1
    assert np.isfinite(run.steps.update_norm).all()
