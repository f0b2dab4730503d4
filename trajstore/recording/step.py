"""Make the rows of optimizer steps and of measurements."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from warnings import warn

import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from trajstore.format.arrays import KEYFRAME_EVERY, first_sign_number
from trajstore.format.attrs import UPDATE
from trajstore.recording.gradient_versions import GradientVersions
from trajstore.recording.hooks import refuse_capture
from trajstore.recording.logged import (
    SampleRow,
    Scalar,
    empty_sample_row,
    logged_indices,
    rate_or_nan,
    sample_row,
    to_floats,
    to_scalars,
)
from trajstore.recording.row_buffer import Entry
from trajstore.recording.session import Session
from trajstore.recording.write_queue import NewMeasurement, NewWindow
from trajstore.tracking.scaling import Scaling

RATES: Final = ("lr", "step_size")
"""Settings of parameter groups that are recorded with every step."""


class StepRecorder:
    """Measure every optimizer step as a row, and give the rows to the write queue."""

    def __init__(self, session: Session) -> None:
        self._session, self._queue = session, session.queue
        self.position = position = session.start.position
        self._n_measured = dict(session.start.n_measured)
        self._pending: dict[str, Scalar] = dict(position.pending)
        self._samples: SampleRow | None = None
        if position.samples:
            self.log_samples(position.samples)
        self._started = time.monotonic() - position.wall_time
        self._anchor_sq = torch.empty(0)
        if position.n_windows > 0:
            self._anchor_sq = session.tracker.anchor_sq()
        # Ranks without a queue fill the same row in every step.
        self._own_row = self._new_row() if self._queue is None else {}
        self._row: dict[str, Tensor] | None = None
        self._step_entry: Entry | None = None
        self._gradients: GradientVersions | None = None
        # Names of the scalars in the last row; None before the first row of this session.
        self._last_names: Collection[str] | None = None
        self._gradient_is_taken = False

    def log(self, scalars: Mapping[str, object]) -> None:
        """Keep scalars for the row of the next step."""
        copies = to_scalars(scalars)
        refuse_capture(self._session.device)
        self._pending |= copies

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Keep indices of examples for the row of the next step."""
        self._samples = sample_row(indices, self._session.spec.samples)

    def start_epoch(self) -> None:
        """Begin an epoch, and a window, with the next step."""
        position = self.position
        if position.step > position.epoch_start:
            position.epoch += 1
            position.epoch_start = position.next_window = position.step

    def begin(self, scaling: Scaling | None) -> None:
        """Measure the gradient that a step finds, unless its row has a gradient already."""
        if self._gradient_is_taken:
            refuse_capture(self._session.device)
            norm = self._session.tracker.gradient_norm(scaling)
            self._pending["step_grad_norm"] = norm
            return
        # Keep the gradients' versions once per window, and again if a closure is called again.
        is_new_window = self.position.step == self.position.next_window
        is_due = is_new_window or self._gradients is not None
        self._begin_row(scaling)
        optimizers = self._session.optimizers
        if is_due and len(optimizers) > 1:
            self._gradients = GradientVersions(optimizers)

    def take_gradient(self) -> None:
        """Measure the current gradient for the row of the next step."""
        self._begin_row(None)
        self._gradient_is_taken = True

    def begin_later(self, optimizer: Optimizer) -> None:
        """Warn, once per window, if an optimizer's gradients changed after the step began."""
        if self._gradients is None or self._gradients.match(optimizer):
            return
        self._gradients = None
        warn(
            f"The gradients of {type(optimizer).__name__} have changed since they were "
            f"recorded, when the first of {len(self._session.optimizers)} optimizers was "
            "about to step. Clip all gradients before the first optimizer steps. If each "
            "optimizer steps after its own backward pass, make a recorder for each.",
            stacklevel=4,
        )

    def after(self, is_last: bool) -> None:
        """Note scalars after each optimizer's step; finish the row after the last optimizer."""
        self._note()
        if is_last:
            self.end()

    def end(self) -> None:
        """Measure the step that the optimizers have taken, and queue its row."""
        row, entry, step = self._row, self._step_entry, self.position.step
        self._step_entry = self._gradients = None
        if row is None or entry is None:
            raise RuntimeError(
                f"The recorder saw no gradient before step {step} was taken: the optimizer "
                "did not evaluate its closure. Evaluate the closure yourself with "
                "`loss = closure()`, and then call `optimizer.step()`."
            )
        self._session.tracker.after_step(row)
        if self._session.options.updates:
            self._measure_update(row)
        if self._queue is not None:
            self._queue.append(step, entry, row)
        self._row, self._gradient_is_taken = None, False
        self._last_names = entry.scalars.keys()
        self.position.step = step + 1
        if self._queue is not None:
            self._queue.submit_if_due()

    def check_measurement(self, name: str) -> None:
        """Raise an error if a name cannot be given to a measurement."""
        if not name or (self._session.options.updates and name == UPDATE):
            raise ValueError(
                f"A measurement cannot be called {name!r}: a name must not be empty, and "
                f"{UPDATE!r} is the recorder's own measurement with `updates=True`."
            )

    def measure(self, name: str, scalars: dict[str, Scalar]) -> None:
        """Queue the current gradients as a row of a measurement."""
        refuse_capture(self._session.device)
        self._session.background.check()
        self._enter_epoch()
        if self.position.n_windows == 0:
            self._start_window()
        row = self._new_row()
        self._session.tracker.measure(self._sign_number(name), row)
        self._append_measurement(name, row, scalars)
        if self._session.options.journal:
            # A journal keeps only steps, so commit the measurement immediately.
            self._session.flush()

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

    def amendment(self) -> dict[str, Scalar]:
        """Return the scalars that were logged after the last step, and that its row lacks."""
        if self.position.step == 0:
            return {}
        recorded = self._last_names or ()
        return {n: v for n, v in self._pending.items() if n not in recorded}

    def end_windows(self) -> int:
        """Return the number of windows of a recording that is about to be closed."""
        if self._row is not None:
            # The sums of the last window contain a gradient that no step was taken with.
            self._session.tracker.sums.forget()
        return self.position.n_windows

    def closing_warnings(self, *, is_recording: bool) -> Iterator[str]:
        """Yield warnings about a recording that is about to be closed as complete."""
        session, has_stepped = self._session, self._last_names is not None
        # After a step that failed halfway, the expected parameters are not known.
        is_known = is_recording and has_stepped and self._row is None
        if is_known and not session.tracker.parameters_unchanged_since_step():
            yield (
                "The parameters have changed since the last optimizer step. Their "
                "current values are stored as the final iterate."
            )
        if is_recording and not has_stepped and session.watch.have_changed():
            yield (
                "The parameters have changed, but the recorder saw no optimizer step and "
                "recorded nothing. Give it the optimizer whose step() is called; if an "
                "optimizer wraps another, as SAM does, give the inner optimizer."
            )
        yield from self._added_parameters()
        planned, step = session.spec.total_steps, self.position.step
        if planned is not None and step > planned:
            yield (
                f"{step} steps were recorded, but `total_steps` was {planned}: windows "
                f"were planned to end at step {planned}, and later steps are less precise."
            )

    def _added_parameters(self) -> Iterator[str]:
        if n_added := self._session.watch.count_added():
            yield (
                f"{n_added} tensors were given to the optimizer after the recorder was "
                "made, and are not recorded. Give the optimizer all tensors, including those "
                "frozen with requires_grad=False, before you make the recorder; or make a new "
                "recorder with its own store."
            )

    def _begin_row(self, scaling: Scaling | None) -> None:
        self._enter_epoch()
        refuse_capture(self._session.device)
        queue, position = self._queue, self.position
        if queue is not None:
            queue.check()
        if position.step == position.next_window:
            self._start_window()
        if self._row is not None:
            # No step was taken with the gradient measured earlier for this row.
            self._session.tracker.forget_previous_gradient()
        self._row = row = self._own_row if queue is None else queue.row()
        self._session.tracker.before_step(position.step, row, scaling)

    def _enter_epoch(self) -> None:
        """Set the epoch of the next step, if `steps_per_epoch` determines it."""
        position, n_steps = self.position, self._session.spec.steps_per_epoch
        if n_steps is not None:
            position.epoch = position.step // n_steps
            position.epoch_start = position.epoch * n_steps

    def _start_window(self) -> None:
        tracker, position, start = self._session.tracker, self.position, 0
        ended = tracker.end_window() if position.n_windows > 0 else None
        for message in self._added_parameters():
            warn(message, stacklevel=6)
        if self._queue is not None:
            self._queue.wait_for_keyframe()
        if position.n_windows == 0:
            # If a recording begins after step 0, earlier steps also belong to this window.
            anchor = tracker.start()
        else:
            anchor, start = tracker.move(), position.step
        self._anchor_sq = tracker.anchor_sq()
        number = position.n_windows
        keyframe = tracker.keyframe() if number % KEYFRAME_EVERY == 0 else None
        position.n_windows += 1
        position.next_window = self._session.options.windows().next_start(
            position.step + 1, position.epoch_start
        )
        if self._queue is not None:
            new = NewWindow(number, start, anchor, keyframe, ended)
            self._queue.append_window(new)

    def _note(self) -> None:
        """Keep the scalars and place of a step; scalars logged later may be for the next step."""
        rates = _learning_rates(self._session.optimizers)
        self._session.note_settings(self.position.step)
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
        return Entry(place, self._anchor_sq, scalars, samples)

    def _new_row(self) -> dict[str, Tensor]:
        return {
            name: rows[0] for name, rows in self._session.tracker.allocate(1).items()
        }

    def _measure_update(self, row: dict[str, Tensor]) -> None:
        """Queue the update of a step as a row of the measurement of updates."""
        update = self._new_row()
        number = self._sign_number(UPDATE)
        self._session.tracker.measure_update(number, row, update)
        self._append_measurement(UPDATE, update, {})

    def _sign_number(self, name: str) -> int:
        """Return the number that selects the random signs of a measurement's next row."""
        names = list(self._n_measured | {name: 0})
        return first_sign_number(names.index(name)) + self._n_measured.get(name, 0)

    def _append_measurement(
        self, name: str, row: dict[str, Tensor], scalars: dict[str, Scalar]
    ) -> None:
        number, entry = self._n_measured.get(name, 0), self._entry(scalars)
        self._n_measured[name] = number + 1
        if self._queue is not None:
            new = NewMeasurement(name, number, self.position.step, entry, row)
            self._queue.append_measurement(new)


def _learning_rates(optimizers: Sequence[Optimizer]) -> dict[str, Scalar]:
    """Return the rates of all parameter groups: ``lr``, then ``lr_1`` and so on."""
    # Some optimizers choose a step size for every step in addition to "lr".
    rates: dict[str, Scalar] = {}
    i = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in RATES:
                if name in group:
                    rate = group[name]
                    # In most groups, rates are plain floats, which need no check.
                    is_plain = type(rate) is float
                    key = f"{name}_{i}" if i else name
                    rates[key] = rate if is_plain else rate_or_nan(rate)
            i += 1
    return rates
