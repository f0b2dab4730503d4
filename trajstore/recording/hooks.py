"""Hooks that report when a step of one or several optimizers begins and ends, and their guard."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from inspect import currentframe
from traceback import walk_stack
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import disable
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trajstore.recording.loops.notices import warn_user
from trajstore.recording.options import OnError
from trajstore.recording.resume import Position
from trajstore.tracking.backends.memory import UnrecordableStateError
from trajstore.tracking.scaling import Scaling, scaling_at_step

HOOKED_STEP: Final = Optimizer.profile_hook_step(lambda: None).__code__
"""Code object of the wrapper in which torch calls the hooks and the step."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Steps(NamedTuple):
    """Functions that are called while optimizers step."""

    begin: Callable[[Optimizer, Scaling | None], None]
    """Called before the step of the first optimizer, unless the step has a closure."""
    begin_closure: Callable[[Optimizer], None]
    """Called before the step of the first optimizer if the step has a closure."""
    before_evaluation: Callable[[], None]
    after_evaluation: Callable[[], None]
    begin_later: Callable[[Optimizer], None]
    """Called before the step of every optimizer except the first."""
    after: Callable[[bool], None]
    """Called after each optimizer's step, with True if all have now stepped."""
    end: Callable[[], None]
    """Called at the end of a step that some optimizers have skipped."""


class Guard:
    """Call recording functions in the recorder's process only, and handle their errors."""

    def __init__(
        self, on_error: OnError, position: Position, *, is_alone: bool
    ) -> None:
        self._raises, self._position = on_error == "raise", position
        # If one of several ranks stopped recording, the others would wait for it.
        self._is_alone = is_alone
        self.pid = os.getpid()
        self.is_recording = True
        """False after an error that led only to a warning."""

    def check_owner(self) -> None:
        """Raise an error if this process is a fork of the recorder's process."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"The recorder belongs to process {self.pid}, and this process, "
                f"{os.getpid()}, is a fork of it. Call the recorder only in process "
                f"{self.pid}; forked processes, such as DataLoader workers, cannot write to "
                "its store."
            )

    def record(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a recording function, unless recording has ended or this process is a fork."""
        # Every call of a function counts here: in training, the caches hold none of its code.
        if self.is_recording and os.getpid() == self.pid:
            try:
                function(*arguments)
            except Exception as error:
                if not self._ends(error):
                    raise

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function; raise its error, or warn and end the recording."""
        try:
            function(*arguments)
        except Exception as error:
            if not self._ends(error):
                raise

    def _ends(self, error: Exception) -> bool:
        """End the recording with a warning, unless the error should be raised."""
        # A state that cannot be recorded is no failure: training continues in any case.
        is_state = isinstance(error, UnrecordableStateError)
        leads_to_warning = self._is_alone if is_state else not self._raises
        if leads_to_warning:
            self._end(error)
        return leads_to_warning

    def attempt(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call a function that checks what a user gives; raise its error, or warn of it."""
        # Returns whether there was no error.
        try:
            function(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            if self._raises:
                raise
            warn_user(f"A call of the recorder does nothing: {error}")
            return False
        return True

    def _end(self, error: Exception) -> None:
        """Warn of an error, and end the recording."""
        if self.is_recording:
            self.is_recording = False
            warn_user(
                f"Recording ended before step {self._position.step}: {error} Training "
                "continues."
            )


class StepHooks:
    """Run callbacks when a step of one or several optimizers begins and ends.

    A step of several optimizers begins when the first of them is about to step. It ends
    when all of them have stepped. A `torch.amp.GradScaler` skips optimizers whose gradients
    are not finite; the step then ends when one of the optimizers is about to step again.

    The hook before a step runs after all other such hooks, which may change gradients.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        steps: Steps,
    ) -> None:
        self._steps = steps
        self._optimizers, self._has_several = optimizers, len(optimizers) > 1
        self._started: set[int] = set()
        self._stepped: set[int] = set()
        self._n_inner = [0] * len(optimizers)
        self.n_ended = 0
        """Number of steps that have ended."""
        self.is_suspended = False
        """Whether calls of `step` are ignored, because they are parts of a step of the user's."""
        self._handles: list[Any] = []
        # Keys of the hooks before a step, in the optimizers' dictionaries of hooks.
        self._keys: dict[int, int] = {}
        for i, optimizer in enumerate(optimizers):
            # Without `disable`, a compiled step would compile the hooks again and again.
            pre_hook = optimizer.register_step_pre_hook(
                disable(partial(self._before, i))
            )
            self._keys[id(optimizer)] = pre_hook.id
            post_hook = disable(partial(self._after, i))
            self._handles += [pre_hook, optimizer.register_step_post_hook(post_hook)]
        # Hooks of all optimizers run first, when the order of the other hooks may still change.
        self._handles.append(
            register_optimizer_step_pre_hook(disable(self._become_last))
        )

    def finish(self) -> None:
        """End the current step, even if some optimizers have not stepped."""
        has_stepped = bool(self._stepped)
        self._started.clear()
        self._stepped.clear()
        if has_stepped:
            self.n_ended += 1
            self._steps.end()

    def settle(self) -> None:
        """End the current step, unless an optimizer is still taking it."""
        if self._started == self._stepped:
            self.finish()

    def remove(self) -> None:
        """Remove the hooks."""
        self.is_suspended = True
        self._started.clear()
        if _n_open_calls() == 0:
            # Otherwise torch is going through the hooks; they do nothing from now on.
            for handle in self._handles:
                handle.remove()

    def _warn_of_lost_hooks(self, optimizer: Optimizer) -> None:
        del self._keys[id(optimizer)]
        warn_user(
            f"The hooks of {type(optimizer).__name__} were removed, and with them the recorder's: "
            "steps of this optimizer are no longer recorded. Remove hooks one by one, with the "
            "handle that registering each has returned."
        )

    def _become_last(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """Move the hook before a step to the end: hooks that users add later may clip."""
        key = self._keys.get(id(optimizer))
        if key is not None:
            hooks: Any = optimizer._optimizer_step_pre_hooks
            if key not in hooks:
                self._warn_of_lost_hooks(optimizer)
            elif next(reversed(hooks)) != key:
                hooks.move_to_end(key)

    def _before(
        self, i: int, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> Arguments | None:
        if self.is_suspended:
            return None
        if hasattr(optimizer, "found_inf") and _will_be_skipped(optimizer):
            self._started.discard(i)
            return None
        if i in self._started and _n_open_calls(optimizer) > 1:
            # A subclass's `step` calls the `step` of its base class, which runs the hooks again.
            self._n_inner[i] += 1
            return None
        # The first of the positional arguments is the optimizer itself.
        has_closure = any(map(_is_closure, (*args[1:], *kwargs.values())))
        if not has_closure and _is_idle(optimizer):
            self._started.discard(i)
            return None
        self._n_inner[i] = 0
        if i in self._started:
            # Other optimizers were skipped, or the last step of this optimizer failed.
            self.finish()
        steps, is_first = self._steps, not self._started
        self._started.add(i)
        if not is_first:
            steps.begin_later(optimizer)
            if not has_closure:
                return None
            before = _nothing
            after: Callable[[], None] = partial(steps.begin_later, optimizer)
        elif not has_closure:
            may_be_scaled = hasattr(optimizer, "grad_scale") or self._has_several
            scaling = (
                scaling_at_step(optimizer, self._optimizers) if may_be_scaled else None
            )
            steps.begin(optimizer, scaling)
            return None
        else:
            steps.begin_closure(optimizer)
            before, after = steps.before_evaluation, steps.after_evaluation

        def evaluated(argument: Any) -> Any:
            if not _is_closure(argument):
                return argument
            return _around(argument, before=before, after=after)

        return (args[0], *map(evaluated, args[1:])), {
            name: evaluated(argument) for name, argument in kwargs.items()
        }

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
        self._steps.after(is_last)


def _is_closure(argument: Any) -> bool:
    """Whether an argument of `step` is a function that may make gradients, not the model."""
    # Other optimizers' steps take a loss, a direction or the model, first or by name.
    return callable(argument) and not isinstance(argument, nn.Module)


def _around(
    closure: Callable[..., Any],
    *,
    before: Callable[[], None],
    after: Callable[[], None],
) -> Callable[..., Any]:
    """Return a closure that also calls other functions, before and after each evaluation."""

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        before()
        loss = closure(*args, **kwargs)
        after()
        return loss

    return evaluate


def _nothing() -> None:
    """Do nothing."""


def _n_open_calls(optimizer: Optimizer | None = None) -> int:
    """Count the calls of `optimizer.step`, or of any optimizer's, that are on the stack."""
    frames = [
        frame for frame, _ in walk_stack(currentframe()) if frame.f_code is HOOKED_STEP
    ]
    if optimizer is None:
        return len(frames)
    return sum(frame.f_locals.get("self") is optimizer for frame in frames)


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will skip its step because scaled gradients overflowed."""
    # For other optimizers, a GradScaler checks for overflow on the host, and does not call their
    # step. A fused optimizer checks on the device, so this function waits for the device.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return False
    is_cuda = found_inf.device.type == "cuda"
    if is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(found_inf.item())


def _is_idle(optimizer: Optimizer) -> bool:
    """Whether a step changes nothing: there are no gradients, or only zeros at the rate 0."""
    # Functions that return or load the state of an optimizer take such a step to make the state.
    # Loops, because in most steps the first rate and the first gradient tell.
    groups = optimizer.param_groups
    for group in groups:
        rate = group.get("lr")
        if (type(rate) is float and rate) or not _is_zero(rate):
            break
    else:
        gradients = [p.grad for group in groups for p in group["params"]]
        return not any(g.count_nonzero() for g in gradients if g is not None)
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                return False
    return True


def _is_zero(rate: Any) -> bool:
    """Whether a learning rate is 0; a rate on an accelerator is not waited for."""
    if isinstance(rate, Tensor):
        return rate.is_cpu and rate.numel() == 1 and bool(rate == 0)
    # Any other object may be a rate, such as an array of rates.
    return isinstance(rate, (int, float)) and rate == 0
