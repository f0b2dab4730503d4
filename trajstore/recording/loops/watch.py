"""Check in every step that the recorded values are those of the step.

A step costs few microseconds of checks: `LoopWatch` compares identities and counts of writes, and
only where these differ it looks closer.
"""

from collections.abc import Mapping, Sequence
from ctypes import c_char
from functools import cache
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trajstore.recording.loops.gradient_versions import GradientVersions
from trajstore.recording.loops.held import HeldTensors
from trajstore.recording.loops.notices import warn_user
from trajstore.recording.loops.rounding import Rounding
from trajstore.recording.session import Session
from trajstore.tracking.backends.memory import UnrecordableStateError

N_FIRST: Final = 4
EVERY: Final = 64
"""The first steps, and every so many steps, parameters are compared with those after the step."""


N_SAMPLED: Final = 3
"""Number of tensors of which addresses and some elements are compared."""

N_BYTES: Final = 64
"""Number of bytes that are compared in the middle of such a tensor."""

UNKNOWN_END: Final = (
    "The parameters after the last step are not known: its update is NaN, and the final "
    "iterate is the last one known. Update the mapping of parameters in place, as in "
    "`parameters.update(new)`, before the recording ends."
)

UNKNOWN_UPDATE: Final = (
    "The parameters after the last step are not known yet, so its update is recorded as NaN: "
    "recorder.step() was given parameters that the step has not changed. Before flush() and "
    "state_dict(), and in recordings with a journal, update the mapping of parameters in "
    "place, as in `parameters.update(new)`."
)

_version, _dtype = attrgetter("_version"), attrgetter("dtype")


class LoopWatch:
    """Warns of states in which the values of a step are not what they seem."""

    def __init__(self, session: Session) -> None:
        self._tracker, self._optimizers = session.tracker, session.optimizers
        self.has_several = len(session.optimizers) > 1
        """Whether several optimizers take a step."""
        self.held = HeldTensors(
            session.spec.names,
            self._tracker.parameters,
            session.optimizers,
            session.recorded.named,
        )
        if idle := self.held.idle():
            self._tracker.follow(self._tracker.parameters, idle=idle)
        # Whether users give the parameters of every step.
        self._is_given = False
        self._point = GradientPoint(self._tracker.parameters)
        self._marks = Marks(self._tracker.parameters)
        self._marks_after: list[Any] | None = None
        # Whether parameters were moved between the last two steps.
        self._moved_before = False
        # Whether the update of the last step was measured before the next step began.
        self._is_measured_early = self._is_written = False
        self._gradients: GradientVersions | None = None
        self._warned: set[str] = set()
        self.n_logged: dict[str, int] = {}
        """How often each scalar was logged since the last step."""
        self.rounding = Rounding(self._tracker.parameters, session.spec)

    def track(self, tensors: list[Tensor | None], *, idle: list[int]) -> None:
        """Follow these tensors, one per layer; ignore gradients of the layers `idle`."""
        self._tracker.follow(tensors, idle=idle)
        self.rounding.follow(tensors)
        self._marks = Marks(tensors)
        self._marks_after = None
        self._point.remove()
        has_hooks = bool(self._optimizers) and not self._is_given
        self._point = GradientPoint(tensors if has_hooks else [])

    def track_named(self, parameters: Mapping[str, Tensor] | None) -> None:
        """Follow tensors that users update themselves, as the model or a mapping has them."""
        if parameters is not None:
            self.held.named = lambda: parameters
            self._is_given = True
        if self._is_given or not self._optimizers:
            before = self._tracker.parameters
            now = self.held.replace(self.held.named())
            if any(new is not old for new, old in zip(now, before, strict=True)):
                self.track(now, idle=[])

    def track_current(self) -> bool:
        """Follow the parameters after the last step; return whether they can be known."""
        before, marks = self._tracker.parameters, self._marks_after
        is_given, is_same = self._is_given, not self._has_moved()
        try:
            self.track_named(None)
        except UnrecordableStateError:
            return False
        now = zip(self._tracker.parameters, before, strict=True)
        is_same = is_same and all(new is old for new, old in now)
        return not (is_given and is_same and marks is not None)

    def knows_update(self, *, is_written: bool) -> bool:
        """Note that the last update is measured early, or warn that it is not known."""
        if is_known := self.track_current():
            self.measured_early(is_written=is_written)
        else:
            self.warn_once("early update", UNKNOWN_UPDATE)
        return is_known

    def knows_end(self) -> bool:
        """Whether the last update is known when the recording ends; warns if it is not."""
        if not (is_known := self.track_current()):
            self.warn_once("end", UNKNOWN_END)
        return is_known

    def check_iterate(self, what: str, step: int) -> None:
        """Raise an error if the parameters after a step, which a method needs, are not known."""
        if not self.track_current():
            raise ValueError(unknown_iterate(what, step))

    def begin(
        self, step: int, optimizer: Optimizer | None = None, *, is_again: bool
    ) -> None:
        """Check and follow the parameters that a step begins with, maybe again."""
        if optimizer is not None:
            self.check_point(optimizer)
        if not is_again:
            # In a loop that moves parameters after every step, some steps tell.
            if step < N_FIRST or step % EVERY == 0 or self._is_written:
                self._moved_before = self._has_moved()
            if self._is_measured_early:
                self._check_update(step)
            self._marks_after = None
        self.follow()

    def _check_update(self, step: int) -> None:
        """Tell if the update of the last step, measured early, lacks a change of parameters."""
        self._is_measured_early = False
        is_same = (
            not self._moved_before
            if self._is_written
            else self._tracker.parameters_unchanged_since_step()
        )
        if not is_same:
            self.warn_once(
                "early",
                f"The parameters have changed since step {step - 1} was written, and its "
                "update lacks this change. Change parameters before flush() and "
                "state_dict(), and record loops that change them after every step "
                "without a journal.",
            )

    def holds_same(self) -> bool:
        """Whether the optimizers hold the tensors that are followed."""
        ids: list[int] = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                ids += map(id, group["params"])
        return ids == self.held.ids

    def follow(self) -> None:
        """Follow the tensors that the optimizers hold now."""
        if self.holds_same():
            return
        change = self.held.change()
        if change is None:
            return
        if change.n_added:
            warn_user(added_message(change.n_added))
        self.track(change.tensors, idle=change.idle)

    def check_point(self, optimizer: Optimizer) -> None:
        """Warn once if parameters were moved between the backward pass and the step."""
        if self._point.has_moved():
            self.warn_once(
                "point",
                "The parameters were moved between the backward pass and the step of "
                f"{type(optimizer).__name__}. Rows hold the parameters that this step begins "
                "with, but gradients that were computed at another point. If another optimizer "
                "wraps this one, give the recorder the outer optimizer, or call "
                "its step() within `with recorder.step():`.",
            )

    def note_gradients(self) -> None:
        """Keep the versions of the gradients of several optimizers."""
        self._gradients = GradientVersions(self._optimizers)

    def same_gradients(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer has the gradients that were noted, if any were."""
        return self._gradients is None or self._gradients.match(optimizer)

    def end(self) -> None:
        """Note the parameters and forget the gradients when a step has been taken."""
        self._gradients = None
        self.n_logged.clear()
        self._marks_after = self._marks.read()
        # Parameters may become float64 in the middle of a run.
        rounding = self.rounding
        rounding.is_needed = rounding.has_norms and torch.float64 in map(
            _dtype, rounding.held
        )

    def measured_early(self, *, is_written: bool) -> None:
        """Note that the update of the last step is measured before the next step begins."""
        self._is_measured_early, self._is_written = True, is_written

    def moved_at_end(self) -> bool:
        """Whether parameters were moved after the last step, but not after the step before."""
        return self._has_moved() and not self._moved_before

    def warn_once(self, kind: str, message: str) -> None:
        """Warn once per recording for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warn_user(message)

    def close(self) -> None:
        """Remove hooks from parameters."""
        self._point.remove()

    def _has_moved(self) -> bool:
        before = self._marks_after
        return before is not None and before != self._marks.read()


def unknown_iterate(what: str, step: int) -> str:
    """Return the message of an error: a method needs parameters that are not known."""
    return (
        f"{what} needs the parameters after step {step}, which are not known: recorder.step() "
        "was given parameters that the step has not changed. Update that mapping in place, as in "
        f"`parameters.update(new)`, before {what}; or call it at the start of the block of the "
        "next recorder.step()."
    )


def added_message(n_added: int) -> str:
    """Return a warning of tensors that are not recorded."""
    return (
        f"{n_added} tensors were given to the optimizer after the recorder was "
        "made, and are not recorded. Give the optimizer all tensors, including those "
        "frozen with requires_grad=False, before you make the recorder; or make a new "
        "recorder with its own store."
    )


class Marks:
    """Marks that change if tensors are written to, or get other memory.

    Every tensor counts the writes to it. Writes through ``.data`` are not counted; a few tensors
    are therefore also compared by address and, in the memory of a CPU, by some elements.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        # Tensors made in inference mode do not count writes.
        held = [t for t in tensors if t is not None]
        self._counted = [t for t in held if not t.is_inference()]
        # A wrapper, such as a DTensor, has no memory of its own.
        plain = [t for t in held if has_memory(t)]
        sampled = plain[:: max(1, -(-len(plain) // N_SAMPLED))]
        self._samples = [Sample(tensor) for tensor in sampled]

    def read(self) -> list[Any]:
        """Return the current marks; equal lists mean that no change was noticed."""
        marks: list[Any] = [*map(_version, self._counted)]
        marks += map(Sample.read, self._samples)
        return marks


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor holds its elements itself."""
    is_plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return is_plain and tensor.layout is torch.strided


class Sample:
    """Reads the address of a tensor, and some elements if they are in the memory of a CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        # Looking for the elements takes longer than reading them where they were before.
        self._place: tuple[int, int, bool] | None = None
        self._elements: Any = None

    def read(self) -> tuple[int, bytes]:
        """Return the address and the elements, none for an accelerator."""
        tensor = self._tensor
        place = tensor.data_ptr(), tensor.numel(), tensor.is_contiguous()
        if place != self._place:
            self._place, self._elements = place, _elements_in_the_middle(tensor)
        return place[0], self._elements.raw


def _elements_in_the_middle(tensor: Tensor) -> Any:
    """View some elements of a tensor as bytes, none if they cannot be read in place."""
    address, n_bytes = tensor.data_ptr(), tensor.nbytes
    if not tensor.is_cpu or address == 0 or not tensor.is_contiguous():
        return (c_char * 0)()
    middle = n_bytes // 2
    n_read = min(N_BYTES, n_bytes - middle)
    return (c_char * n_read).from_address(address + middle)


class GradientPoint:
    """Notices that parameters were moved between the backward pass and the step.

    A hook of one parameter keeps its marks when its gradient is made.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        suitable = [
            t
            for t in tensors
            if t is not None
            and t.requires_grad
            and t.is_leaf
            and not t.is_inference()
            and has_memory(t)
        ]
        tensor = max(suitable, key=Tensor.numel, default=None)
        self._seen: Any = None
        self._handle: Any = None
        if tensor is not None:
            self._tensor, self._sample = tensor, Sample(tensor)
            # A compiled backward pass would otherwise compile the hook.
            hook = torch.compiler.disable(self._note)
            self._handle = tensor.register_post_accumulate_grad_hook(hook)

    def _note(self, tensor: Tensor) -> None:
        self._seen = tensor._version, self._sample.read()

    def has_moved(self) -> bool:
        """Whether the parameter was moved since its gradient was made; forgets the gradient."""
        seen, self._seen = self._seen, None
        return seen is not None and seen != (
            self._tensor._version,
            self._sample.read(),
        )

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def refuse_capture(device: torch.device) -> None:
    """Raise an error while a CUDA graph is being captured."""
    if is_capturing(device):
        raise RuntimeError(
            "The recorder was called while a CUDA graph was being captured: its replays run no "
            "hooks. Capture forward and backward only, and call optimizer.step() after each."
        )


def is_capturing(device: torch.device) -> bool:
    """Whether operations on a device are being captured instead of run."""
    return _is_cuda(device) and torch.cuda.is_current_stream_capturing()


@cache
def _is_cuda(device: torch.device) -> bool:
    """Whether a device is of CUDA; reading its type takes microseconds."""
    return device.type == "cuda"
