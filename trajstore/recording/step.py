"""Make the rows of optimizer steps and of measurements."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy.typing as npt
from torch import Tensor
from torch.optim import Optimizer

from trajstore.recording.logged import (
    SampleRow,
    Scalar,
    counted,
    empty_sample_row,
    logged_indices,
    sample_row,
    to_floats,
    to_scalars,
)
from trajstore.recording.loops.closing import changes_at_end, late_additions
from trajstore.recording.loops.closures import ClosureSteps
from trajstore.recording.loops.copies import StartCopies
from trajstore.recording.loops.manual import Gradients, ManualSteps, unknown_gradient
from trajstore.recording.loops.own_gradients import OwnGradients, changed_message
from trajstore.recording.loops.still_blocks import STILL, StillBlocks
from trajstore.recording.loops.watch import LoopWatch, refuse_capture
from trajstore.recording.loops.windows import CHECK_EVERY, Windows, check_epochs
from trajstore.recording.measurements import MeasurementRows
from trajstore.recording.row_buffer import Entry
from trajstore.recording.session import Session
from trajstore.tracking.scaling import Scaling
from trajstore.tracking.unknown_values import (
    forget_gradient,
    forget_iterate,
    forget_update,
)


class StepRecorder:
    """Measure every optimizer step as a row, and give the rows to the write queue."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.position = position = session.start.position
        self.measurements = MeasurementRows(session, position, self._entry)
        self._pending: dict[str, Scalar] = dict(position.pending)
        self._samples: SampleRow | None = None
        if position.samples:
            self.log_samples(position.samples)
        self._started = time.monotonic() - position.wall_time
        self._windows = Windows(session, position)
        # The row of the step that begins; None between two steps.
        self._row: dict[str, Tensor] | None = None
        self._step_entry: Entry | None = None
        # The row of the step that was taken last, until its update is measured.
        self._taken: tuple[dict[str, Tensor], Entry] | None = None
        # Names of the scalars in the last row; None before the first row of this session.
        self._last_names: Collection[str] | None = None
        self._gradient_is_taken = False
        self._watch = LoopWatch(session)
        self._own = OwnGradients()
        tracker, start, at = session.tracker, self._measure_start, self._measure_copies
        self._manual = ManualSteps(tracker, session.spec, start, self._settle_last, at)
        self._still = StillBlocks()
        self._closures = ClosureSteps(
            session.optimizers, lambda: tracker.parameters, start, at, self.complete
        )
        self.before_evaluation = self._closures.before_evaluation
        self.after_evaluation = self._closures.after_evaluation

    def log(self, name: str, value: object) -> None:
        """Keep a scalar for the row of the next step."""
        refuse_capture(self._session.device)
        self._pending |= counted(to_scalars({name: value}), self._watch.n_logged)

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Keep indices of examples for the row of the next step."""
        self._samples = sample_row(indices, self._session.spec.samples)

    def start_epoch(self) -> None:
        """Begin an epoch with the next step, and a window unless the epochs are short."""
        check_epochs(self._session.spec)
        position = self.position
        n_steps = position.step - position.epoch_start
        if n_steps > 0:
            position.epoch += 1
            position.epoch_start = position.step
            self._windows.start_with_epoch(n_steps)

    def begin(self, optimizer: Optimizer, scaling: Scaling | None) -> None:
        """Measure the gradient that a step finds, unless its row has a gradient already."""
        if self._gradient_is_taken:
            self._watch.check_point(optimizer)
            self._measure_start(scaling)
            return
        if self._own.is_on:
            self._enter_row(optimizer)
            self._own.begin(self._session.tracker.parameters, optimizer)
            return
        self._begin_row(scaling, None, optimizer)
        if self._watch.has_several:
            self._watch.note_gradients()

    def begin_closure(self, optimizer: Optimizer) -> None:
        """Begin a step whose gradient a closure makes."""
        if self._gradient_is_taken:
            self._watch.check_point(optimizer)
        # The first evaluation measures the last update, too, if it makes the gradient.
        is_later = self._closures.start_at_x_k and self._session.is_alone
        if not (is_later and self._watch.holds_same()):
            self._settle_last()
        self._closures.begin(self.position.step)

    def _measure_start(
        self,
        scaling: Scaling | None = None,
        gradients: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Measure the current gradients and parameters for the row of the step that begins."""
        if self._gradient_is_taken:
            refuse_capture(self._session.device)
            norm = self._session.tracker.gradient_norm(scaling)
            self._pending["step_grad_norm"] = norm
            return
        self._begin_row(scaling, gradients)
        if self._watch.has_several:
            self._watch.note_gradients()

    def _measure_copies(
        self, copies: StartCopies | None, gradients: Sequence[Tensor | None] | None
    ) -> None:
        """Measure gradients, NaN if they are not known, at copies of the parameters."""
        tracker = self._session.tracker
        if self._gradient_is_taken:
            return
        if copies is None:
            # The parameters with which the step began are lost.
            self.complete(is_known=False)
        at = nullcontext() if copies is None else tracker.at(copies.parameters)
        known = [None] * len(tracker.parameters) if gradients is None else gradients
        with at:
            self._begin_row(None, known)
        assert self._row is not None
        if gradients is None:
            self._forget_gradient()
        if copies is None:
            tracker.forget_displacement()
            forget_iterate(self._row, self._session.spec)

    def _forget_gradient(self) -> None:
        """Set the gradient of the row that has begun to NaN."""
        assert self._row is not None
        self._session.tracker.forget_previous_gradient()
        forget_gradient(self._row, self._session.spec)

    def take_gradient(self) -> None:
        """Measure the current gradient for the row of the next step."""
        self._begin_row(None)
        self._gradient_is_taken = True

    def begin_manual(
        self, gradients: Gradients | None, parameters: Mapping[str, Tensor] | None
    ) -> None:
        """Measure the gradients and parameters that a step of the user's begins with."""
        self._watch.track_named(parameters)
        if parameters is None:
            self._still.enter(self._watch.held.named())
        self._manual.begin(gradients, is_taken=self._gradient_is_taken)

    def end_manual(self, gradients: Gradients | None) -> None:
        """End a step of the user's."""
        if not self._manual.end(gradients):
            self._watch.warn_once("manual", unknown_gradient(self.position.step))
        if self._still.leave(self._watch.held.named()):
            self._watch.warn_once("still", STILL)
        self._note()
        self.end()

    def begin_later(self, optimizer: Optimizer) -> None:
        """Check the gradients of an optimizer that is not the first to step."""
        if self._own.is_open:
            self._own.add(optimizer)
        elif self._row is not None and not self._watch.same_gradients(optimizer):
            self._own.is_on = True
            self._forget_gradient()
            n_optimizers = len(self._session.optimizers)
            message = changed_message(optimizer, n_optimizers, self.position.step)
            self._watch.warn_once("own", message)

    def after(self, is_last: bool) -> None:
        """Note scalars after each optimizer's step; finish the row after the last optimizer."""
        if self._closures.is_open and not self._closures.end():
            self._watch.warn_once(
                "closure",
                f"The gradient of step {self.position.step} is not known, and is recorded as "
                "NaN: the optimizer did not make a gradient with its closure where the step "
                "began. If it makes one in later steps, those are recorded.",
            )
        self._note()
        if is_last:
            self.end()

    def end(self) -> None:
        """End the step that the optimizers have taken; `complete` measures its update."""
        if self._own.is_open:
            self._measure_copies(*self._own.end())
        row, entry = self._row, self._step_entry
        assert row is not None
        assert entry is not None
        self._taken = row, entry
        self._row, self._step_entry, self._gradient_is_taken = None, None, False
        self._last_names = entry.scalars.keys()
        self.position.step += 1
        self._watch.end()
        if self._session.options.journal:
            # A step must be in the journal when it returns.
            self._complete_early(is_written=True)

    def complete(self, *, is_known: bool = True) -> None:
        """Measure the update of the last step, if it is not measured yet, and queue the row.

        The update leads to the parameters as they are now: changes that follow the optimizer's
        step, such as clamping, belong to it. Without `is_known`, the update is NaN.
        """
        if self._taken is None:
            return
        row, _ = self._taken
        try:
            if is_known:
                self._session.tracker.after_step(row)
        except ValueError:
            # The shape of a parameter has changed.
            is_known = False
        if not is_known:
            self._session.tracker.skip_after_step(row)
            forget_update(row, self._session.spec)
        self._queue_taken(is_known=is_known)

    def _queue_taken(self, *, is_known: bool = True) -> None:
        """Queue the row of the last step, whose update is measured if it is known."""
        assert self._taken is not None
        (row, entry), self._taken = self._taken, None
        session, number = self._session, self.position.step - 1
        if is_known and self._watch.rounding.is_needed:
            session.tracker.finish()
            self._watch.rounding.forget(row, entry.anchor_sq)
        if is_known and session.options.updates:
            self.measurements.measure_update(number, entry, row)
        if session.queue is not None:
            session.queue.append(number, entry, row)
            session.queue.submit_if_due()

    def flush(self) -> None:
        """Commit every row so far, and wait for the commit."""
        self._complete_early(is_written=False)
        self._session.flush()

    def _complete_early(self, *, is_written: bool) -> None:
        """Complete the last step before the next one begins."""
        if self._taken is not None:
            self.complete(is_known=self._watch.knows_update(is_written=is_written))

    def check_iterate(self, what: str) -> None:
        """Raise an error if the current parameters, which a method needs, are not known."""
        if self._row is None:
            self._watch.check_iterate(what, self.position.step - 1)

    def close(self, status: str, *, is_recording: bool) -> None:
        """Measure the last update, write everything, and close the session."""
        # If training failed, scalars logged for the next step do not belong to the last step.
        amendment = self._amendment() if status == "complete" else {}
        try:
            self._finish(status, is_recording=is_recording)
        finally:
            n = self._end_windows()
            self._session.close(status, amendment, with_final=is_recording, n_windows=n)

    def _finish(self, status: str, *, is_recording: bool) -> None:
        """Measure the update of the last step when the recording ends."""
        self._watch.close()
        if not is_recording:
            # The recording has ended in an error: the row of the last step may still be here.
            self.complete(is_known=False)
            return
        if not self._watch.knows_end():
            self.complete(is_known=False)
        # After a failure, other ranks might not take part in adding up sums.
        is_known = status == "complete" or self._session.is_alone
        if not (is_known or self._session.finishes_rows()):
            # Perhaps the other ranks have not taken this step.
            self._taken = None
        self.complete(is_known=is_known)
        if is_known and (message := self._watch.rounding.message()) is not None:
            self._watch.warn_once("rounding", message)

    def _settle_last(self) -> None:
        """Complete the last step, now that the parameters are those of the next step."""
        try:
            self._watch.begin(self.position.step, is_again=self._row is not None)
        finally:
            self.complete()

    def measure(self, name: str, scalars: dict[str, Scalar]) -> None:
        """Queue the current gradients as a row of a measurement."""
        refuse_capture(self._session.device)
        self._session.background.check()
        self._enter_epoch()
        if self.position.n_windows == 0:
            self._windows.start()
        self.measurements.measure(name, scalars)
        if self._session.options.journal:
            # A journal keeps only steps, so commit the measurement immediately.
            self.flush()

    def state(self, *, is_recording: bool) -> dict[str, Any]:
        """Return the state of the recording for a checkpoint."""
        if not is_recording or self._row is not None:
            # No step was taken with the gradient that was measured last.
            self._session.tracker.forget_previous_gradient()
        position = replace(
            self.position,
            wall_time=time.monotonic() - self._started,
            pending=to_floats(self._pending),
            samples=logged_indices(self._samples),
        )
        return self._session.state(position)

    def _amendment(self) -> dict[str, Scalar]:
        """Return the scalars that were logged after the last step, and that its row lacks."""
        logged = self._pending if self.position.step else {}
        return {n: v for n, v in logged.items() if n not in (self._last_names or ())}

    def _end_windows(self) -> int:
        """Return the number of windows of a recording that is about to be closed."""
        if self._row is not None:
            # The sums of the last window contain a gradient that no step was taken with.
            self._session.tracker.sums.forget()
        return self.position.n_windows

    def closing_warnings(self, *, is_recording: bool) -> Iterator[str]:
        """Yield warnings about a recording that is about to be closed as complete."""
        if is_recording:
            # After a step that failed halfway, the expected parameters are not known.
            state = self._last_names is not None, self._row is None
            yield from changes_at_end(self._session, self._watch, *state)
        yield from late_additions(self._session, self._watch, self.position.step)

    def _begin_row(
        self,
        scaling: Scaling | None,
        gradients: Sequence[Tensor | None] | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Measure gradients and parameters for a row; check the optimizer that steps, if any."""
        session, position = self._session, self.position
        can_join = session.tracker.joins_updates and not session.options.updates
        joined = self._enter_row(optimizer, can_join=can_join)
        if self._row is not None:
            # No step was taken with the gradient measured earlier for this row.
            session.tracker.forget_previous_gradient()
        self._row = row = joined or self.measurements.free_row()
        last = None if joined is None or self._taken is None else self._taken[0]
        try:
            session.tracker.before_step(position.step, row, scaling, gradients, last)
        except ValueError:
            # Nothing has been measured.
            self.complete()
            raise
        except BaseException:
            if last is not None:
                self._queue_taken()
            raise
        if last is not None:
            self._queue_taken()
        if position.step % CHECK_EVERY == 0 or self._windows.is_far:
            self._windows.check_anchor(row)

    def _enter_row(
        self, optimizer: Optimizer | None, *, can_join: bool = False
    ) -> dict[str, Tensor] | None:
        """Check where a row begins, and begin a window if one is due."""
        # Completes the last step. If its update can be measured together with the next row,
        # returns that row instead.
        session, position = self._session, self.position
        if self._own.is_open:
            self._measure_copies(*self._own.end())
        if self._row is not None:
            self._end_failed()
        joined = None
        try:
            self._enter_epoch()
            refuse_capture(session.device)
            is_again = self._row is not None
            self._watch.begin(position.step, optimizer, is_again=is_again)
            begins_window = position.step == position.next_window
            if can_join and self._taken is not None and not begins_window:
                joined = self.measurements.row_after(self._taken[0])
        finally:
            if joined is None:
                self.complete()
        if begins_window:
            self._windows.start()
        return joined

    def _end_failed(self) -> None:
        """End a step that raised an error after moving the parameters, without what was logged."""
        if not self._gradient_is_taken and self._session.tracker.has_moved():
            logged = self._pending, self._samples
            self._pending, self._samples = {}, None
            self._note()
            self.end()
            self._pending, self._samples = logged

    def _enter_epoch(self) -> None:
        """Set the epoch of the next step, if `steps_per_epoch` determines it."""
        position, n_steps = self.position, self._session.spec.steps_per_epoch
        if n_steps is not None:
            position.epoch = position.step // n_steps
            position.epoch_start = position.epoch * n_steps

    def _note(self) -> None:
        """Keep the scalars and place of a step; scalars logged later may be for the next step."""
        rates = self._session.settings.observe(self.position.step)
        if self._session.settings.is_new:
            self._session.keep_settings()
        n_samples, earlier = self._session.spec.samples, self._step_entry
        samples = self._samples
        if earlier is None:
            scalars = self._pending | rates
            if samples is None and n_samples > 0:
                samples = empty_sample_row(n_samples)
        else:
            scalars = earlier.scalars | self._pending | rates
            samples = earlier.samples if samples is None else samples
        self._step_entry = self._entry(scalars, samples)
        self._pending, self._samples = {}, None

    def _entry(
        self, scalars: dict[str, Scalar], samples: SampleRow | None = None
    ) -> Entry:
        position = self.position
        iteration = position.step - position.epoch_start
        place = (position.epoch, iteration, position.n_windows - 1)
        scalars["wall_time"] = time.monotonic() - self._started
        return Entry(place, self._windows.anchor_sq, scalars, samples)
