"""States of the parameters that cannot be recorded end a recording, never the training run."""

import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.choose import CHOICE
from trajstore.tracking.backends.memory import UnrecordableStateError


class Plain(optim.Optimizer):
    """Gradient descent whose learning rate may be anything."""

    def __init__(self, parameters: Any, lr: Any) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data -= 0.05 * p.grad


class Training:
    """A small network that goes on after any of the changes below."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.model: Any = net()
        self.optimizer: Any = Plain(self.model.parameters(), lr=0.05)
        self.inputs = torch.ones(4, 6)
        self.recorder = Recorder(path, self.model, self.optimizer, **options)
        self.n_steps = 0

    @property
    def weight(self) -> Any:
        return self.model[0].weight

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.model(self.inputs).abs().mean()
        if loss.requires_grad:
            loss.backward()
        self.optimizer.step()
        self.n_steps += 1

    def exchange(self, new: Any) -> None:
        """Give the optimizer another tensor for the first weight."""
        old, group = self.weight, self.optimizer.param_groups[0]
        group["params"] = [new if p is old else p for p in group["params"]]
        self.model[0].weight = new


def resize(training: Training) -> None:
    training.inputs, training.weight.data = torch.ones(4, 7), torch.ones(8, 7)


def set_(training: Training) -> None:
    training.inputs = torch.ones(4, 7)
    with torch.no_grad():
        training.weight.set_(torch.ones(8, 7))


def replace(training: Training) -> None:
    training.inputs = torch.ones(4, 7)
    training.exchange(nn.Parameter(torch.ones(8, 7)))


def stretch(training: Training) -> None:
    """Exchange a tensor for one that would be repeated where it is copied."""
    training.optimizer.param_groups[0]["params"][1] = new = nn.Parameter(torch.ones(1))
    training.model[0].bias = new


def make_complex(training: Training) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training.model.to(torch.complex64)
    training.inputs = training.inputs.to(torch.complex64)


def to_meta(training: Training) -> None:
    group = training.optimizer.param_groups[0]
    group["params"][0] = nn.Parameter(torch.ones(8, 6, device="meta"))


ENDS: dict[str, tuple[Callable[[Training], None], str]] = {
    "resize": (resize, r"0.weight has the shape \(8, 7\), but had \(8, 6\)"),
    "set_": (set_, r"0.weight has the shape \(8, 7\), but had \(8, 6\)"),
    "replace": (replace, r"0.weight has the shape \(8, 7\), but had \(8, 6\)"),
    "stretch": (stretch, r"0.bias has the shape \(1,\), but had \(8,\)"),
    "complex": (make_complex, "0.weight is torch.complex64, but was real"),
    "meta": (to_meta, "0.weight is on the device 'meta'"),
}


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("options", [{}, {"float64": True}, "eager"], ids=str)
@pytest.mark.parametrize(("change", "message"), ENDS.values(), ids=ENDS)
def test_parameters_that_cannot_be_recorded_end_the_recording(
    change: Callable[[Training], None],
    message: str,
    options: Any,
    on_error: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if options == "eager":
        monkeypatch.setenv(CHOICE, "eager")
        options = {}
    training = Training(tmp_path / "run", on_error=on_error, **options)
    for _ in range(3):
        training.step()
    change(training)
    with pytest.warns(UserWarning, match=f"before step 3: {message}") as caught:
        training.step()
    assert [w.filename for w in caught] == [__file__]
    training.step()
    training.recorder.log(loss=1.0)
    training.recorder.flush()
    training.recorder.close()
    run = open_run(tmp_path / "run")
    assert training.n_steps == 5
    assert run.n_steps == 3
    assert np.isfinite(run.steps.grad_norm).all()


def double(training: Training) -> None:
    training.model.double()
    training.inputs = training.inputs.double()


def freeze(training: Training) -> None:
    training.weight.requires_grad_(False)


def freeze_all(training: Training) -> None:
    training.model.requires_grad_(False)


def empty(training: Training) -> None:
    training.optimizer.param_groups[0]["params"].clear()


def remove_groups(training: Training) -> None:
    training.optimizer.param_groups.clear()


def half(training: Training) -> None:
    training.model.bfloat16()
    training.inputs = training.inputs.bfloat16()


def rate(value: Any) -> Callable[[Training], None]:
    def change(training: Training) -> None:
        training.optimizer.param_groups[0]["lr"] = value

    return change


GOES_ON: dict[str, tuple[Callable[[Training], None], int]] = {
    "double": (double, 5),
    "bfloat16": (half, 5),
    "one frozen": (freeze, 5),
    "all frozen": (freeze_all, 3),
    "no parameters": (empty, 3),
    "no groups": (remove_groups, 3),
    "rate None": (rate(None), 5),
    "rate of numbers": (rate(np.zeros(2)), 5),
    "rate of tensors": (rate(torch.zeros(2)), 5),
    "rate without value": (rate(torch.zeros((), device="meta")), 5),
}


@pytest.mark.parametrize(("change", "n_rows"), GOES_ON.values(), ids=GOES_ON)
def test_the_recording_goes_on_after_other_changes(
    change: Callable[[Training], None], n_rows: int, tmp_path: Path
):
    training = Training(tmp_path / "run")
    for _ in range(3):
        training.step()
    change(training)
    for _ in range(2):
        training.step()
    training.recorder.close()
    run = open_run(tmp_path / "run")
    assert run.n_steps == n_rows
    assert np.isfinite(run.steps.grad_norm).all()
    if change in {double, half}:
        assert np.isfinite(run.steps.update_norm).all()


def test_updates_that_float32_does_not_resolve_are_lost_from_the_change_on(
    tmp_path: Path,
):
    training = Training(tmp_path / "run")
    for _ in range(3):
        training.step()
    double(training)
    # Smaller than the spacing of float32 numbers near the parameters.
    for p in training.model.parameters():
        p.register_hook(lambda g: g * 1e-9)
    for _ in range(3):
        training.step()
    with pytest.warns(UserWarning, match="does not resolve 3 steps"):
        training.recorder.close()
    norms = open_run(tmp_path / "run").steps.update_norm.values
    assert np.isnan(norms).tolist() == [False] * 3 + [True] * 3


def test_removed_hooks_are_told_of(tmp_path: Path):
    training = Training(tmp_path / "run")
    training.step()
    training.optimizer._optimizer_step_pre_hooks.clear()
    with pytest.warns(UserWarning, match="The hooks of Plain were removed"):
        training.step()
    training.step()
    with pytest.warns(UserWarning, match="changed since the last optimizer step"):
        training.recorder.close()
    assert open_run(tmp_path / "run").n_steps == 1


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_recorder_may_be_closed_in_a_hook_of_the_step(kind: str, tmp_path: Path):
    training = Training(tmp_path / "run")
    training.step()

    def close(*_: Any) -> None:
        training.recorder.close()

    getattr(training.optimizer, f"register_step_{kind}_hook")(close)
    for _ in range(3):
        training.step()
    assert training.n_steps == 4
    assert open_run(tmp_path / "run").n_steps == (1 if kind == "pre" else 2)


def twice(training: Training) -> None:
    training.recorder.snapshot("a")
    training.recorder.snapshot("a")


def nested(training: Training) -> None:
    with training.recorder.step(), training.recorder.step():
        pass


REFUSED: dict[str, tuple[Callable[[Training], object], str]] = {
    "list": (lambda t: t.recorder.log(a=[1, 2]), "'a' must be a real number"),  # type: ignore[arg-type]
    "None": (lambda t: t.recorder.log(a=None), "'a' must be a real number"),  # type: ignore[arg-type]
    "vector": (lambda t: t.recorder.log(a=torch.ones(2)), "must be one number"),
    "meta": (
        lambda t: t.recorder.log(a=torch.ones((), device="meta")),
        "'a' must be a real number",
    ),
    "name": (lambda t: t.recorder.log(epoch=1), "'epoch' is reserved"),
    "samples": (lambda t: t.recorder.log_samples([-1]), "non-negative indices"),
    "snapshot": (twice, "A snapshot cannot be called 'a'"),
    "measure": (lambda t: t.recorder.measure(""), "cannot be called ''"),
    "scalar": (lambda t: t.recorder.measure("m", a="b"), "'a' must be a real"),  # type: ignore[arg-type]
    "start_epoch": (lambda t: t.recorder.start_epoch(), "already determines"),
    "nested": (nested, "within the block of another"),
}


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_is_refused_only_warns_if_errors_do(
    call: Callable[[Training], object], message: str, on_error: Any, tmp_path: Path
):
    training = Training(
        tmp_path / "run", on_error=on_error, samples=2, steps_per_epoch=2
    )
    training.step()
    if on_error == "raise":
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(training)
        # The block of a step that raises an error has no row.
        is_row = False
    else:
        with pytest.warns(UserWarning, match=f"does nothing: .*{message}"):
            call(training)
        is_row = call is nested
    training.step()
    training.recorder.close()
    assert open_run(tmp_path / "run").n_steps == 2 + is_row


def test_only_the_refused_scalars_of_a_call_are_dropped(tmp_path: Path):
    training = Training(tmp_path / "run", on_error="warn")
    with pytest.warns(UserWarning, match="'b' must be a real number"):
        training.recorder.log(a=1.0, b=None, c=2.0)  # type: ignore[arg-type]
    training.step()
    training.recorder.close()
    steps = open_run(tmp_path / "run").steps
    assert "b" not in steps
    assert [float(steps[name][0]) for name in "ac"] == [1, 2]


def test_a_closed_recorder_only_warns_if_errors_do(tmp_path: Path):
    training = Training(tmp_path / "run", on_error="warn")
    training.recorder.close()
    with pytest.warns(UserWarning, match="The recorder is closed"):
        training.recorder.log(a=1.0)
    with (
        pytest.warns(UserWarning, match="The recorder is closed"),
        training.recorder.step(),
    ):
        training.step()
    with pytest.warns(UserWarning, match="The recorder is closed"):
        assert training.recorder.state_dict() == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_a_fork_only_warns_if_errors_do(tmp_path: Path):
    training = Training(tmp_path / "run", on_error="warn")
    training.step()
    gc.collect()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                training.recorder.log(a=1.0)
                training.recorder.flush()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    training.recorder.close()
    assert open_run(tmp_path / "run").n_steps == 1


def test_the_last_row_is_kept_when_a_recording_ends_in_an_error(tmp_path: Path):
    training = Training(tmp_path / "run", on_error="warn")
    for _ in range(3):
        training.step()
    with (
        pytest.warns(UserWarning, match="before step 3: Expected 4 gradients"),
        training.recorder.step(gradients=[torch.ones(2)]),
    ):
        pass
    training.recorder.close()
    run = open_run(tmp_path / "run")
    assert np.isfinite(run.steps.grad_norm.values).tolist() == [True] * 3
    assert np.isnan(run.steps.update_norm.values).tolist() == [False, False, True]


def test_a_gradient_of_another_shape_is_refused(tmp_path: Path):
    training = Training(tmp_path / "run")
    with (
        pytest.raises(ValueError, match=r"gradient of 0.weight has the shape \(2,\)"),
        training.recorder.step(gradients={"0.weight": torch.ones(2)}),
    ):
        pass
    training.recorder.close()


@pytest.mark.parametrize("change", [resize, make_complex])
def test_a_snapshot_of_other_parameters_ends_the_recording(
    change: Callable[[Training], None], tmp_path: Path
):
    training = Training(tmp_path / "run")
    training.step()
    change(training)
    with pytest.warns(UserWarning, match="Recording ended before step 1: 0.weight"):
        training.recorder.snapshot("a")
    training.step()
    training.recorder.close()
    assert open_run(tmp_path / "run").n_steps == 1


@pytest.mark.parametrize("shape", [(8, 7), (6, 8)], ids=str)
def test_a_final_iterate_of_another_shape_is_nan(
    shape: tuple[int, int], tmp_path: Path
):
    training = Training(tmp_path / "run")
    training.step()
    training.weight.data = torch.ones(shape)
    with pytest.warns(UserWarning, match="elements of the final iterate are NaN: 0.w"):
        training.recorder.close()
    run = open_run(tmp_path / "run")
    final = run.layout.unflatten(run.stored.vector("final", slice(0, run.layout.size)))
    assert [bool(np.isnan(v).all()) for v in final.values()] == [True, *[False] * 3]


def test_the_error_is_one_of_values():
    assert issubclass(UnrecordableStateError, ValueError)


def test_a_replaced_tensor_at_the_end_is_told_of(tmp_path: Path):
    training = Training(tmp_path / "run")
    training.step()
    replace(training)
    with pytest.warns(UserWarning, match="lacks the last change of the parameters"):
        training.recorder.close()
    run = open_run(tmp_path / "run")
    assert run.status == "complete"
    assert np.isfinite(run.steps.update_norm).all()


def test_a_mapping_of_other_shapes_at_the_end_is_told_of(tmp_path: Path):
    values = {"x": torch.ones(3)}
    recorder = Recorder(tmp_path / "run", values, None)
    with recorder.step(gradients={"x": torch.ones(3)}):
        values["x"] = values["x"] - 0.1
    values["x"] = torch.ones(4)
    with pytest.warns(
        UserWarning, match="parameters after the last step are not known"
    ):
        recorder.close()
    run = open_run(tmp_path / "run")
    assert run.status == "complete"
    assert np.isnan(run.steps.update_norm).all()
