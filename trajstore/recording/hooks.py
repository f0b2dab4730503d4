"""Hooks that report when a step of one or several optimizers begins and ends."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import currentframe
from traceback import walk_stack
from typing import Any, Final

import torch
from torch.compiler import disable
from torch.optim import Optimizer

from trajstore.tracking.scaling import Scaling, scaling_at_step

HOOKED_STEP: Final = Optimizer.profile_hook_step(lambda: None).__code__
"""Code object of the wrapper in which torch calls the hooks and the step."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StepHooks:
    """Run callbacks when a step of one or several optimizers begins and ends.

    A step of several optimizers begins when the first of them is about to step. It ends
    when all of them have stepped. A `torch.amp.GradScaler` skips optimizers whose gradients
    are not finite; the step then ends when one of the optimizers is about to step again.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        begin: Callable[[Scaling | None], None],
        begin_later: Callable[[Optimizer], None],
        after: Callable[[bool], None],
        end: Callable[[], None],
    ) -> None:
        # `begin` is called as soon as the gradients of a step are known: before the step,
        # or, if the step has a closure, after each evaluation of the closure.
        self._begin = begin
        # `begin_later` is called before the step of every optimizer except the first.
        self._begin_later = begin_later
        # `after` is called after each optimizer's step, with True if all have now stepped.
        self._after_step = after
        # `end` is called at the end of a step that some optimizers have skipped.
        self._end = end
        self._optimizers = optimizers
        self._started: set[int] = set()
        self._stepped: set[int] = set()
        self._n_inner = [0] * len(optimizers)
        self.n_ended = 0
        """Number of steps that have ended."""
        self._handles = []
        for i, optimizer in enumerate(optimizers):
            # Without `disable`, a compiled step would compile the hooks again and again.
            pre_hook = disable(partial(self._before, i))
            post_hook = disable(partial(self._after, i))
            self._handles.append(optimizer.register_step_pre_hook(pre_hook))
            self._handles.append(optimizer.register_step_post_hook(post_hook))

    def finish(self) -> None:
        """End the current step, even if some optimizers have not stepped."""
        has_stepped = bool(self._stepped)
        self._started.clear()
        self._stepped.clear()
        if has_stepped:
            self.n_ended += 1
            self._end()

    def settle(self) -> None:
        """End the current step, unless an optimizer is still taking it."""
        if self._started == self._stepped:
            self.finish()

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _before(
        self, i: int, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> Arguments | None:
        if _will_be_skipped(optimizer):
            self._started.discard(i)
            return None
        if i in self._started and _n_open_calls(optimizer) > 1:
            # A subclass's `step` calls the `step` of its base class, which runs the hooks again.
            self._n_inner[i] += 1
            return None
        self._n_inner[i] = 0
        if i in self._started:
            # Other optimizers were skipped, or the last step of this optimizer failed.
            self.finish()
        is_first = not self._started
        self._started.add(i)
        if not is_first:
            self._begin_later(optimizer)
            return None
        scaling = scaling_at_step(optimizer, self._optimizers)
        # The first of the positional arguments is the optimizer itself.
        closure = kwargs.get("closure", next(iter(args[1:]), None))
        if closure is None:
            self._begin(scaling)
            return None

        def evaluate(*closure_args: Any, **closure_kwargs: Any) -> Any:
            loss = closure(*closure_args, **closure_kwargs)
            self._begin(scaling)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return (args[0], evaluate, *args[2:]), kwargs

    def _after(self, i: int, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if i not in self._started:
            return
        if self._n_inner[i] > 0:
            self._n_inner[i] -= 1
            return
        self._stepped.add(i)
        is_last = len(self._stepped) == len(self._optimizers)
        if is_last:
            self._started.clear()
            self._stepped.clear()
            self.n_ended += 1
        self._after_step(is_last)


def _n_open_calls(optimizer: Optimizer) -> int:
    """Count the calls of `optimizer.step` that are on the stack."""
    frames = [
        frame for frame, _ in walk_stack(currentframe()) if frame.f_code is HOOKED_STEP
    ]
    return sum(frame.f_locals.get("self") is optimizer for frame in frames)


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will skip its step because scaled gradients overflowed."""
    # For other optimizers, a GradScaler checks for overflow on the host, and does not call their
    # step. A fused optimizer checks on the device, so this function waits for the device.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None or is_capturing(found_inf.device):
        return False
    return bool(found_inf.item())


def refuse_capture(device: torch.device) -> None:
    """Raise an error while a CUDA graph is being captured."""
    if is_capturing(device):
        raise RuntimeError(
            "The recorder was called while a CUDA graph was being captured: replays of the "
            "graph run no hooks, so no step would be recorded. Capture forward and backward "
            "passes only, and call optimizer.step() after each replay."
        )


def is_capturing(device: torch.device) -> bool:
    """Whether operations on a device are being captured instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
