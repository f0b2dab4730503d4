"""Find the gradient of a step among the evaluations of its closure.

An optimizer may evaluate its closure at any points and any number of times, as line searches and
sharpness-aware optimizers do. The gradient of a step belongs to x_k, the parameters that the step
begins with. It is made by an evaluation there, or after such an evaluation returned, or before the
step. Where x_k may be left before its gradient is known, the parameters and gradients are copied.

Most optimizers evaluate their closure at x_k before anything else. The update that led to x_k is then
measured together with the gradient.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from trajstore.recording.loops.copies import StartCopies, Tensors
from trajstore.recording.loops.gradient_versions import GradientVersions
from trajstore.recording.loops.watch import Marks


class ClosureSteps:
    """Follows the evaluations of closures, one step after another."""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        tensors: Callable[[], Sequence[Tensor | None]],
        begin: Callable[[], None],
        measure: Callable[[StartCopies | None, Sequence[Tensor | None] | None], None],
        complete: Callable[[], None],
    ) -> None:
        # `begin` measures gradients and parameters as they are. `measure` measures gradients, None
        # if they are not known, at copies of parameters, None if there are none. `complete`
        # measures the update of the last step unless that is done.
        self._begin, self._complete = begin, complete
        self._optimizers, self._tensors, self._measure = optimizers, tensors, measure
        self._copies: StartCopies | None = None
        # Whether the last step needed copies, and so the next step may.
        self._needs_copies = True
        # Marks of the last step's tensors.
        self._marks: tuple[Sequence[Tensor | None], Marks] | None = None
        # Whether the first evaluation of the last step made its gradient, at x_k.
        self._is_found_first = False
        # Whether the update of the last step is not measured yet, and whether one was lost.
        self._is_unsettled = self._has_lost = False
        self.is_open = False
        """Whether a step with a closure is being taken."""
        # Gradients at the end of the last step that needed copies, and the number of the next step.
        self._end = GradientVersions(optimizers), 0

    @property
    def start_at_x_k(self) -> bool:
        """Whether the first evaluation of the next step is expected to make its gradient."""
        may_wait = not (self._needs_copies or self._has_lost)
        return self._is_found_first and may_wait

    def begin(self, step: int) -> None:
        """Begin a step with a closure."""
        parameters, self._is_unsettled = self._tensors(), self.start_at_x_k
        if self._marks is None or self._marks[0] is not parameters:
            self._marks = parameters, Marks(parameters)
        marks = self._marks[1]
        self._start = marks, marks.read()
        self._copies = StartCopies(parameters) if self._needs_copies else None
        self.is_open, self._is_found, self._needs_copies = True, False, False
        self._n_evaluations, self._step, self._is_found_first = 0, step, False
        # Whether the gradient at x_k is expected: an evaluation there has made none so far.
        self._is_due = False
        # Whether the gradients that the step finds were made after the step before.
        left, following = self._end
        self._is_fresh = (
            self._copies is not None and step == following and not self._same(left)
        )

    def before_evaluation(self) -> None:
        """Note the gradients before the closure is called."""
        self._take_late_gradient()
        self._is_at_start = self._is_still_there()
        self._gradients = GradientVersions(self._optimizers)

    def after_evaluation(self) -> None:
        """Measure the gradient if the closure made it at x_k."""
        self._n_evaluations += 1
        if not (self._is_at_start and self._is_still_there()):
            return
        if self._same(self._gradients):
            self._is_due = not self._is_found
            self._settle()
            return
        self._begin()
        self._is_found, self._is_due, self._is_unsettled = True, False, False
        self._is_found_first |= self._n_evaluations == 1

    def end(self) -> bool:
        """End the step; return whether its gradient is known."""
        self._take_late_gradient()
        copies, self._copies, self.is_open = self._copies, None, False
        if self._is_unsettled and self._is_still_there():
            self._settle()
        # An optimizer may suddenly leave x_k before it evaluates its closure; this happens once.
        self._has_lost |= self._is_unsettled
        if not self._is_found:
            self._needs_copies = True
            # Without evaluations, the step used the gradients that it found.
            is_used = self._is_fresh or self._n_evaluations == 0
            if copies is not None and is_used and copies.have_gradients():
                self._measure(copies, copies.gradients)
                self._is_found = True
            else:
                self._measure(copies, None)
        if self._needs_copies:
            self._end = GradientVersions(self._optimizers), self._step + 1
        return self._is_found

    def _settle(self) -> None:
        """Complete the last step, now that the parameters are those of the next step."""
        if self._is_unsettled:
            self._is_unsettled = False
            self._complete()

    def _take_late_gradient(self) -> None:
        """Measure a gradient at x_k that was made after the evaluation there had returned."""
        if not self._is_due or self._same(self._gradients):
            return
        self._is_due = False
        if self._is_still_there():
            self._begin()
            self._is_found = True
            return
        self._needs_copies = True
        if self._copies is not None:
            gradients: Tensors = [
                None if p is None else p.grad for p in self._tensors()
            ]
            self._measure(self._copies, gradients)
            self._is_found = True

    def _is_still_there(self) -> bool:
        marks, at_start = self._start
        return marks.read() == at_start

    def _same(self, versions: GradientVersions) -> bool:
        return all(versions.match(optimizer) for optimizer in self._optimizers)
