"""Steps that no optimizer takes through its hooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor

from trajstore.format.run_spec import RunSpec
from trajstore.recording.hooks import StepHooks
from trajstore.recording.loops.copies import StartCopies
from trajstore.tracking.scaling import Scaling
from trajstore.tracking.tracker import Tracker

Gradients = Mapping[str, Tensor | None] | Sequence[Tensor | None]


class HasSteps(Protocol):
    """A recorder, of which `step` is a method."""

    def _start_step(
        self, gradients: Gradients | None, parameters: Mapping[str, Tensor] | None
    ) -> AbstractContextManager[None]: ...


def step(
    self: HasSteps,
    gradients: Gradients | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> AbstractContextManager[None]:
    """Record an update that no hooks of an optimizer report.

    Write ``with recorder.step():`` around the update of the parameters. Calls of
    ``optimizer.step()`` within the block are parts of this step.

    Parameters
    ----------
    gradients : mapping from str to torch.Tensor, or sequence of torch.Tensor, optional
        Gradients by name, or in the order of the recorded parameters. Default: the attributes
        ``grad``. They are read when the block begins or, if there are none yet, when it ends.
        If there are none at all, the gradient of the step is NaN.
    parameters : mapping from str to torch.Tensor, optional
        The parameters before the update, if updates make new tensors. Default: those of the
        recorder's model or mapping. A mapping is read again at the next step and at the end of
        the recording: update it in place.

    Returns
    -------
    context manager
        The block of the step. If it raises an exception, there is no row.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        If the gradients or parameters do not match the recorded parameters, or if the block of
        another step has not ended.

    Examples
    --------
    >>> import torch
    >>> from trajstore import Recorder
    >>> x = torch.ones(3, requires_grad=True)
    >>> with Recorder(tmp_path / "run.zarr", {"x": x}, None) as recorder:
    ...     x.square().sum().backward()
    ...     with recorder.step():
    ...         x.data -= 0.1 * x.grad
    """
    return self._start_step(gradients, parameters)


def check_block(hooks: StepHooks) -> None:
    """Raise an error if the block of a step has not ended."""
    if hooks.is_suspended:
        raise RuntimeError(
            "recorder.step() was called within the block of another recorder.step(). "
            "Leave the first block before the next step."
        )


@contextmanager
def manual_step(
    hooks: StepHooks, begin: Callable[[], None], end: Callable[[], None]
) -> Iterator[None]:
    """Call `begin` and `end` around an update, and ignore calls of optimizers within it."""
    hooks.is_suspended = True
    try:
        begin()
        yield
        hooks.n_ended += 1
        end()
    finally:
        hooks.is_suspended = False


class ManualSteps:
    """Finds the gradients of steps that no optimizer takes, when they begin or when they end."""

    def __init__(
        self,
        tracker: Tracker,
        spec: RunSpec,
        measure: Callable[[Scaling | None, Sequence[Tensor | None] | None], None],
        settle: Callable[[], None],
        measure_copies: Callable[
            [StartCopies | None, Sequence[Tensor | None] | None], None
        ],
    ) -> None:
        # `measure` measures gradients at the parameters; `settle` completes the last step;
        # `measure_copies` measures gradients, None if they are not known, at copies of parameters.
        self._tracker, self._spec = tracker, spec
        self._measure, self._settle = measure, settle
        self._measure_copies = measure_copies
        # Copies for a step whose gradient is not known yet.
        self._copies: StartCopies | None = None

    def begin(self, gradients: Gradients | None, *, is_taken: bool) -> None:
        """Measure the gradients, given or found, unless they are made later."""
        known = by_layer(gradients, self._spec)
        if known is None and gradients is None:
            known = by_layer(self._tracker.gradients(), self._spec)
        self._copies = None
        if is_taken or known is not None:
            self._measure(None, known)
            return
        self._settle()
        self._copies = StartCopies(self._tracker.parameters)

    def end(self, gradients: Gradients | None) -> bool:
        """Measure the gradients if this is still to be done; return whether they are known."""
        copies, self._copies = self._copies, None
        if copies is None:
            return True
        found = self._tracker.gradients() if gradients is None else gradients
        known = by_layer(found, self._spec)
        self._measure_copies(copies, known)
        return known is not None


def by_layer(gradients: Gradients | None, spec: RunSpec) -> list[Tensor | None] | None:
    """Return gradients in the order of the layers; None if there are none."""
    if gradients is None:
        return None
    names = spec.names
    if isinstance(gradients, Mapping):
        if unknown := sorted(set(gradients) - set(names)):
            raise ValueError(
                f"Gradients of {unknown} were given, but only parameters of these names are "
                f"recorded: {list(names)}."
            )
        listed: list[Any] = [gradients.get(name) for name in names]
    else:
        listed = list(gradients)
        if listed and len(listed) != len(names):
            raise ValueError(
                f"Expected {len(names)} gradients, one for each of {list(names)}, got "
                f"{len(listed)}. Give None for a parameter without a gradient."
            )
    for name, gradient, shape in zip(names, listed, spec.shapes, strict=False):
        if gradient is None:
            continue
        if not isinstance(gradient, Tensor):
            raise TypeError(
                f"The gradient of {name} is a {type(gradient).__name__}, expected a torch tensor "
                "or None. Convert an array with torch.from_numpy."
            )
        if gradient.shape != shape:
            raise ValueError(
                f"The gradient of {name} has the shape {tuple(gradient.shape)}, expected "
                f"{tuple(shape)}, the shape of the parameter."
            )
    return listed if any(g is not None for g in listed) else None


def unknown_gradient(step: int) -> str:
    """Return a warning of a gradient that is not known."""
    return (
        f"The gradient of step {step} is not known, and is recorded as NaN: no gradient was "
        "found when the block of recorder.step() began and when it ended. Give it to "
        "recorder.step(gradients=...), or keep `grad` until the block ends."
    )
