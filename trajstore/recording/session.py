"""Open, resume and close the resources of a recording, from its store to its tracker."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from trajstore.format.optimizer_facts import continued
from trajstore.recording.background import Background
from trajstore.recording.host_copies import HostCopies
from trajstore.recording.logged import Scalar, to_floats
from trajstore.recording.loops.notices import warn_user
from trajstore.recording.optimizer_facts import SettingsWatch
from trajstore.recording.options import RecorderOptions
from trajstore.recording.parameters import (
    as_optimizers,
    check_groups,
    checksum,
    group_names,
    named_tensors,
    recorded_parameters,
)
from trajstore.recording.process_exit import signals_wait
from trajstore.recording.resume import (
    Position,
    Resumption,
    as_recorded,
    check_state,
    first_step,
    make_state,
    restore,
    rewind,
)
from trajstore.recording.write_queue import WriteQueue
from trajstore.store.deletion import remove_store
from trajstore.store.journal import Journal, replay
from trajstore.store.location import is_remote
from trajstore.store.writer import Writer
from trajstore.trackers.reporter import as_reporters
from trajstore.trackers.reports import Reports
from trajstore.tracking.backends.memory import check_tensor
from trajstore.tracking.backends.threads import leave_threads_to_training
from trajstore.tracking.placement import is_divided, place
from trajstore.tracking.tracker import Tracker

N_WAITING: Final = 2
"""Number of batches of rows and anchors that may wait for the disk."""


class Recorded(NamedTuple):
    """The model and the optimizers that are recorded."""

    named: Callable[[], Mapping[str, Tensor]]
    """Returns the current tensors of the model by name."""
    groups: list[list[str]]
    """Names of the recorded parameters in each parameter group."""
    checksum: npt.NDArray[Any]
    """Checksum of the parameters when the recording was opened."""


class Session:
    """The resources of one recording: store, writer thread, write queue and tracker.

    If ranks share sharded parameters, only the first rank has a writer and a write queue.
    Both are None on the other ranks, which only measure their parts.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | Mapping[str, Tensor],
        optimizer: Optimizer | Sequence[Optimizer] | None,
        options: RecorderOptions,
    ) -> None:
        options.check_path(path)
        warn = warn_user if options.on_error == "warn" else None
        reporters = as_reporters(options.report_to, warn=warn)
        # Do not keep the state to resume, which holds a vector as long as the parameters.
        self.options = replace(options, resume=bool(options.resume), report_to=())
        self.optimizers = as_optimizers(optimizer)
        parameters, unrecorded = recorded_parameters(
            model, self.optimizers, options.resume
        )
        group = options.group
        if group is None and any(is_divided(p) for p in parameters.values()):
            group = dist.group.WORLD
        if group is not None:
            options.check_sharded()
        tensors, self._placement = place(parameters, group)
        layout = self._placement.layout
        # Parts of float64 parameters on several ranks are recorded in float32.
        is_double = group is None and any(
            p.dtype == torch.float64 for p in parameters.values()
        )
        self.device = next(t.device for t in tensors if t is not None)
        measures_on = torch.device("cpu") if options.offload else self.device
        spec = options.run_spec(
            layout,
            self.optimizers,
            is_double=is_double,
            is_wide=measures_on.type == "cpu",
        )
        if options.resume and self._placement.is_first:
            spec = as_recorded(
                path,
                spec,
                sketch_bits=options.sketch_bits,
                has_windows=options.reference_every is not None,
            )
        self.spec = self._placement.broadcast(spec)
        self.recorded = Recorded(
            partial(named_tensors, model),
            group_names(parameters, self.optimizers),
            checksum(parameters.values()),
        )
        state = self._checked_state(options.resume)
        own_step = self._placement.is_first and first_step(
            options.resume, options.step, state
        )
        step: int = self._placement.broadcast(own_step)
        self.settings = SettingsWatch(parameters, self.optimizers, step)
        self.tracker = Tracker(tensors, layout, self.spec, self._placement, measures_on)
        self.copies = HostCopies(self.device)
        self.writer: Writer | None = None
        self.queue: WriteQueue | None = None
        self._reports: Reports | None = None
        if reporters and self._placement.is_first:
            settings = {"store": str(path), **options.attrs}
            self._reports = Reports(reporters, self.spec, settings)
        # In its own thread the writer runs without an event loop, even in a notebook.
        self.background = Background(N_WAITING)
        leave_threads_to_training(self.background.call)
        try:
            resumption = self._open_together(path, step, state)
            self.start, warning = self._start_from(resumption)
        except BaseException:
            # After Ctrl-C the writer thread still finishes opening the store.
            with signals_wait(str(path)):
                self.background.close(self._give_up)
            raise
        self._snapshots = set(self.start.snapshots)
        for message in (unrecorded, warning):
            if message is not None:
                warn_user(message)

    def _give_up(self) -> None:
        """Close a store that was opened in vain."""
        if self.writer is not None:
            self.writer.close()
        if self._reports is not None:
            self._reports.close()

    def _checked_state(self, resume: Mapping[str, Any] | bool) -> dict[str, Any] | None:
        if not isinstance(resume, Mapping) or not self._placement.is_first:
            return None
        size = self._placement.layout.size
        state = check_state(resume, size=size, spec=self.spec)
        check_groups(state, self.recorded.groups)
        return state

    def _open_together(
        self, path: str | Path, step: int, state: dict[str, Any] | None
    ) -> Resumption:
        """Open the store on the first rank; raise an error on all ranks if that fails."""
        resumption, error = Resumption(Position()), None

        def opening() -> Resumption:
            return self._open(path, step, state)

        try:
            if self._placement.is_first:
                job = self.copies.on_current_stream(opening)
                resumption = self.background.call(job)
        except BaseException as raised:  # noqa: BLE001 - raised again below
            error = raised
        if not self._placement.all_agree(here=error is None):
            raise error or RuntimeError(
                "The first rank could not open the store; see its error. Nothing is "
                "recorded."
            )
        return resumption

    def _start_from(self, resumption: Resumption) -> tuple[Resumption, str | None]:
        """Restore the tracker; return `resumption` without its vectors, and a warning or None."""
        shared = self._placement.broadcast(resumption.without_vectors())
        own = resumption if self._placement.is_first else shared
        warning = restore(self.tracker, own)
        return shared._replace(restoration=None, previous_gradient=None), warning

    def _open(
        self, path: str | Path, step: int, state: dict[str, Any] | None
    ) -> Resumption:
        """Open the store in the writer thread, and find the start of the recording."""
        options = self.options
        created = state["created"] if state is not None and step > 0 else None
        if options.overwrite:
            remove_store(path)
        self.writer = writer = Writer(
            path,
            self.spec,
            resume=bool(options.resume),
            created=created,
            fsync=options.fsync,
            attrs=options.attrs,
        )
        try:
            resumption = self._find_start(writer, step, state)
            self.settings.facts = continued(writer.optimizer, self.settings.facts, step)
            writer.optimizer = self.settings.facts
            writer.commit()
            self.queue = WriteQueue(
                writer,
                self.background,
                self.spec,
                self.tracker.allocate,
                self.tracker.finish,
                first=step,
                flush_rows=options.flush_rows,
                flush_seconds=options.flush_seconds,
                journal=_journal(writer) if options.journal else None,
                copies=self.copies,
                reports=self._reports,
            )
        except BaseException:
            writer.close()
            raise
        return resumption

    def _find_start(
        self, writer: Writer, step: int, state: Mapping[str, Any] | None
    ) -> Resumption:
        """Find the start of the recording in a store that is open."""
        resumption = Resumption(Position())
        if self.options.resume:
            self._recover(writer)
            resumption = rewind(writer, spec=self.spec, step=step, state=state)
        # A snapshot taken at the step of the checkpoint may be taken again.
        taken = writer.snapshots
        return resumption._replace(
            snapshots=frozenset(name for name in taken if taken[name] < step),
            n_measured={name: t.n_rows for name, t in writer.measurements.items()},
        )

    def _recover(self, writer: Writer) -> None:
        """Commit the journal's rows that the store lacks, and delete the journal."""
        if not is_remote(writer.location):
            directory = Path(writer.location)
            if replay(writer, directory, self.spec, self.tracker.size):
                writer.commit()
            Journal(directory).remove()

    def keep_settings(self) -> None:
        """Let the writer write the facts about the optimizers, which have changed."""
        if self.writer is not None:
            self.writer.optimizer = self.settings.facts

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes part in the recording."""
        return self._placement.group is None

    def finishes_rows(self) -> bool:
        """Complete the last rows if that takes no waiting for other ranks, and return whether."""
        try:
            self.tracker.finish(waits=False)
        except RuntimeError:
            return False
        return True

    def have_parameters_changed(self) -> bool:
        """Whether parameters have changed since the recording was opened."""
        held = [p for p in self.tracker.parameters if p is not None]
        return not np.array_equal(
            checksum(held), self.recorded.checksum, equal_nan=True
        )

    @property
    def range_message(self) -> str | None:
        """A warning of gradients that leave the range of float32, if there were any."""
        if self.queue is None or not (n := self.queue.n_out_of_range):
            return None
        return (
            f"{n} gradients left the range of float32: their sketches are NaN, and on "
            "accelerators their norms. Gradients of 1e-32 to 1e34 are recorded on CPUs, and of "
            "1e-19 to 1e19 elsewhere. Scale the loss, or record with float64=True."
        )

    def flush(self) -> None:
        """Commit every row so far, and wait for the commit."""
        if self.queue is not None:
            self.queue.flush()

    def check_parameters(self) -> None:
        """Raise an error if the parameters are not as they were when the recorder was created."""
        for tensor, name, shape in zip(
            self.tracker.parameters, self.spec.names, self.spec.shapes, strict=True
        ):
            if tensor is not None:
                check_tensor(tensor, name, shape)

    def check_snapshot(self, name: str) -> None:
        """Raise an error if a name cannot be given to a new snapshot."""
        if not name or name == "final" or name in self._snapshots:
            raise ValueError(
                f"A snapshot cannot be called {name!r}: a name must not be empty, 'final' "
                f"or used before. Used so far: {sorted(self._snapshots)}."
            )

    def snapshot(self, name: str, step: int) -> None:
        """Write the parameters to the store, and wait for the commit."""
        self.check_parameters()
        self._snapshots.add(name)
        read = self._parameters_reader()
        self.copies.mark()
        if (writer := self.writer) is None:
            return

        def write() -> None:
            with self.copies.after_mark():
                writer.write_snapshot(name, step, read)
                writer.commit()

        self.background.submit(write)
        # The parameters must not change while the writer thread reads them in place.
        self.background.wait()

    def state(self, position: Position) -> dict[str, Any]:
        """Return the state of the recording for a checkpoint, empty except on the first rank."""
        # All ranks take part in gathering this gradient, and in adding up the sums.
        previous_gradient = self.tracker.previous_gradient
        sums = self.tracker.sums.state()
        if self.writer is None:
            return {}
        return make_state(
            position, self.writer, previous_gradient, self.recorded.groups, sums
        )

    def close(
        self,
        status: str,
        amendment: Mapping[str, Scalar],
        *,
        with_final: bool,
        n_windows: int,
    ) -> None:
        """Write the remaining rows, amend the last row, write the final iterate, and close."""
        # After a failure, other ranks might not take part in gathering the parameters.
        can_gather = status == "complete" or self._placement.group is None
        read = self._parameters_reader() if can_gather else None
        has_end = can_gather and with_final and n_windows > 0
        ended = self.tracker.end_window() if has_end else None
        self.copies.mark()
        writer, queue = self.writer, self.queue
        if writer is None or queue is None:
            self.background.close()
            return

        def write() -> None:
            with self.copies.after_mark():
                if amendment:
                    writer.steps.amend_last(to_floats(amendment))
                queue.end_window(n_windows - 1, ended)
                writer.write_final(read, status=status)
                # Commit within this block, because the commit reads the iterate.
                writer.commit()
            queue.forget_journal()

        try:
            queue.flush()
            if with_final:
                self.background.submit(write)
        finally:
            queue.close_journal()
            try:
                self.background.close(writer.close)
            finally:
                self._close_reports()

    def _close_reports(self) -> None:
        """Wait for trackers, and warn of their errors."""
        if self._reports is not None:
            self._reports.close()
            if message := self._reports.message():
                warn_user(message)

    def _parameters_reader(self) -> Callable[[slice], npt.NDArray[Any]]:
        read = self.tracker.gathered_parameters()
        return lambda elements: self.copies.fetch([read(elements)])[0]


def _journal(writer: Writer) -> Journal:
    return Journal(Path(writer.location), recording=writer.identity)
