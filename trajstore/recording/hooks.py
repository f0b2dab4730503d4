"""When a step of one or several optimizers begins and ends."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import currentframe
from traceback import walk_stack
from typing import Any, Final

from torch.compiler import disable
from torch.optim import Optimizer

from trajstore.recording.capture import is_capturing
from trajstore.tracking.scaling import Scaling, scaling_at_step

HOOKED_STEP: Final = Optimizer.profile_hook_step(lambda: None).__code__
"""The code that calls the hooks, and then the step."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StepHooks:
    """Tells of the steps of optimizers.

    A step of several optimizers begins when the first of them is about to step, and ends
    when all of them have stepped, or when one that has is about to step again: a
    `torch.amp.GradScaler` leaves out those whose gradients are not finite.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        Whose steps.
    begin : callable
        Is called where the gradients of a step are known, with what they still contain:
        before the step, or after each evaluation of the closure that it was given. May be
        called again before `end`.
    later : callable
        Is called with each optimizer but the first, before it steps.
    note : callable
        Is called after the step of each of them.
    end : callable
        Is called after the step.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        begin: Callable[[Scaling | None], None],
        later: Callable[[Optimizer], None],
        note: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._begin, self._later, self._note, self._end = begin, later, note, end
        self._optimizers = optimizers
        self._started: set[int] = set()
        self._stepped: set[int] = set()
        self._n_inner = [0] * len(optimizers)
        self._handles = []
        for i, optimizer in enumerate(optimizers):
            # A compiled step would otherwise have the hooks compiled, again and again.
            before = disable(partial(self._before, i))
            after = disable(partial(self._after, i))
            self._handles.append(optimizer.register_step_pre_hook(before))
            self._handles.append(optimizer.register_step_post_hook(after))

    def finish(self) -> None:
        """End a step that not all optimizers have taken."""
        has_stepped = bool(self._stepped)
        self._started.clear()
        self._stepped.clear()
        if has_stepped:
            self._end()

    def settle(self) -> None:
        """End a step that not all have taken, unless one of them is at it."""
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
        if i in self._started and _n_steps_inside(optimizer) > 1:
            # The step of a class calls that of its base, which has the same hooks.
            self._n_inner[i] += 1
            return None
        self._n_inner[i] = 0
        if i in self._started:
            # The others were left out, or this one failed halfway through its last step.
            self.finish()
        is_first = not self._started
        self._started.add(i)
        if not is_first:
            self._later(optimizer)
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
        self._note()
        if len(self._stepped) == len(self._optimizers):
            self.finish()


def _n_steps_inside(optimizer: Optimizer) -> int:
    """Count the calls of `optimizer.step` that are under way."""
    frames = [
        frame for frame, _ in walk_stack(currentframe()) if frame.f_code is HOOKED_STEP
    ]
    return sum(frame.f_locals.get("self") is optimizer for frame in frames)


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer finds that gradients under a GradScaler overflowed."""
    # Other optimizers are not called then, and the host has waited for the device to know;
    # so it does here.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None or is_capturing(found_inf.device):
        return False
    return bool(found_inf.item())
