"""Methods of the recorder that record gradients other than those that a step finds."""

from typing import Any

from torch import Tensor

from trajstore.recording.logged import Scalar, to_scalars
from trajstore.recording.loops.notices import warn_user


def measure(self: Any, name: str, **scalars: float | Tensor) -> None:
    """Record the current gradients as a row of a measurement, separate from the steps.

    Call this between two optimizer steps, after a backward pass of your choice, for example
    over the whole data set or a fixed batch. The gradients are those in ``.grad``; set it first
    if your loop has them elsewhere. Without any, nothing is recorded, with a warning. `trajstore.Run.measured` returns the rows. To
    choose the gradient in the row of the next step, call `take_gradient` instead.

    Parameters
    ----------
    name : str
        Name of the measurement; its rows are numbered in the order of calls.
    **scalars : float or torch.Tensor
        Scalars of the row, as in `log`.

    Raises
    ------
    ValueError, TypeError
        If the name is empty, if it is ``"update"`` while updates are recorded, or if `log`
        would refuse the scalars; or if the parameters are not known, because the last `step`
        was given parameters and made new tensors.
    """
    if (steps := self._opened()) is not None:
        noted: dict[str, Scalar] = {}

        def check() -> None:
            steps.measurements.check_name(name)
            noted.update(to_scalars(scalars))

        if self._guard.attempt(check):
            self._settle(steps)
            if not self._knows_iterate(steps, "measure()"):
                return
            if steps.measurements.has_gradients():
                self._guard.record(steps.measure, name, noted)
            else:
                warn_user(
                    f"Nothing was measured as {name!r}: no recorded tensor has a gradient. Call "
                    "measure() after backward(), or set `grad` of the tensors before, for example "
                    "to torch.from_numpy(gradient)."
                )


def take_gradient(self: Any) -> None:
    """Record the current gradient in the row of the next step.

    Call this before a change, such as clipping, that the recorded gradient should lack.
    The norm of the gradient that the step finds is recorded as ``step_grad_norm``, in
    addition to ``grad_norm``. Under a `torch.amp.GradScaler`, call
    ``scaler.unscale_(optimizer)`` first. After several calls before a step, the gradient of
    the last call is recorded, and the product with the previous step's gradient,
    ``grad_dot_previous``, is NaN.
    """
    if (steps := self._opened()) is not None:
        self._settle(steps)
        self._guard.record(steps.take_gradient)
