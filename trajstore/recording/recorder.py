"""Record a training run while it happens, without changing it."""

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self, SupportsIndex
from warnings import warn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from trajstore.format.arrays import KEYFRAME_EVERY, first_sign_number
from trajstore.format.run_spec import BASIS, FLUSH_ROWS, PROBES, SKETCH_BITS, RunSpec
from trajstore.format.windows import Windows
from trajstore.recording.background import Background
from trajstore.recording.capture import refuse_capture
from trajstore.recording.gradient_versions import GradientsSeen
from trajstore.recording.hooks import StepHooks
from trajstore.recording.host_copies import HostCopies
from trajstore.recording.parameters import (
    as_optimizers,
    group_names,
    is_copy,
    trained_parameters,
)
from trajstore.recording.process_exit import exit_on_sigterm
from trajstore.recording.resume import (
    NOWHERE,
    Position,
    Resumption,
    check_groups,
    check_state,
    first_step,
    make_state,
    restore,
    take_up,
    without_vectors,
)
from trajstore.recording.row_buffer import Entry
from trajstore.recording.samples import known_samples, no_samples, row_of_samples
from trajstore.recording.scalars import Scalar, learning_rates, to_floats, to_scalars
from trajstore.recording.write_queue import (
    HandOver,
    NewMeasurement,
    NewWindow,
    Spectator,
)
from trajstore.store.journal import Journal, replay
from trajstore.store.location import is_remote
from trajstore.store.writer import Writer
from trajstore.tracking.backends.threads import leave_threads_to_training
from trajstore.tracking.placement import is_divided, place
from trajstore.tracking.scaling import Scaling
from trajstore.tracking.tracker import Tracker

N_WAITING: Final = 2
"""Batches of rows and references that may wait for the disk."""


class Recorder:
    """Records every step of an optimizer into a trajectory store.

    Row k of the store is the k-th optimizer step, from 0: the gradients and parameters
    as the step finds them, and what the step changes. The recorder reads; it draws no
    random numbers, does not touch the graph and writes to no parameter, so that a
    recorded training equals an unrecorded one bit for bit.

    Use it as a context manager, or call `close`.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store, or a URL such as ``s3://bucket/run.zarr``; there must be
        nothing, unless a recording is resumed.
    model : torch.nn.Module or mapping from str to torch.Tensor
        Its parameters that `optimizer` holds are recorded, in the order of
        ``named_parameters()``; tied parameters once. A mapping names the tensors
        themselves, as where the optimizer holds float32 copies of the model's.
    optimizer : torch.optim.Optimizer or sequence of torch.optim.Optimizer
        Its steps are recorded, by hooks. Of several, a row begins when the first is about
        to step, and ends when all have.
    steps_per_epoch : int, optional
        Optimizer steps in an epoch. Without it epochs are begun by `start_epoch`.
    total_steps : int, optional
        Optimizer steps in the run, if known: the last window is then cut so that the last
        steps are as precise as the others. Without it gamma of the last epoch is lost where
        the learning rate decays to nearly 0.
    reference_every : int, optional
        Steps between reference points; default: an epoch, or 500 steps where epochs are
        begun by hand. A reference costs 1 byte per parameter on disk; gamma is most
        precise where windows are some percent of the run (``traj-store plan``).
    sketch_bits : int, default: 65536
        Signs kept of every gradient, a power of two. The error of gamma falls with its
        square root. Less will do for nets of a few thousand parameters.
    basis : int, default: 3
        Directions in which gradients are known exactly: the reference and ``basis - 1``
        displacements of past windows. With 0 there are none: the sketch alone estimates how
        gradients relate to where the end lies from the reference, and norms of parameters
        and their products with gradients are not known, see Notes.
    probes : int, default: 1024
        Numbers in the fixed random probes of gradients and iterates, a power of two;
        distances rest on them.
    exact : bool, default: False
        Store whole gradients and iterates, 8 bytes per parameter and step, instead of
        sketches: for small nets and for checks.
    seed : int, default: 0
        Seed of the recorder's own random signs; independent of torch's streams.
    flush_rows : int, default: 1024
        Rows are written when there are so many, or when they take 8 MB.
    flush_seconds : float, default: 30.0
        Rows are written at the latest after this time.
    resume : mapping or bool, default: False
        Go on with the recording at `path`: what `state_dict` returned when the
        checkpoint was saved that model and optimizer were restored from; or True, with
        `step`, where no state was kept. What was recorded after the checkpoint is
        forgotten; steps before it that were lost become NaN.
    step : int, optional
        With ``resume=True``: how many optimizer steps the checkpoint has taken.
    on_error : {"raise", "warn"}, default: "raise"
        What happens when recording fails in the midst of training, as when the disk is
        full: the optimizer step raises an error; or a warning is given, and training
        goes on unrecorded.
    journal : bool, default: False
        Write every step to a file at once, so that not even the steps since the last
        flush are lost when the process is killed. On an accelerator every step then
        waits for the device.
    fsync : bool, default: False
        Let commits survive a loss of power, too.
    attrs : mapping, default: {}
        What is to be found again in the store, serialisable to JSON: the settings of the
        training, for example. `trajstore.Run.attrs` gives it back.
    updates : bool, default: False
        Record what every step changes, ``x_(k+1) - x_k``, as the measurement ``"update"``.
        Takes as many bytes as a gradient does, more time, and three more float32 vectors.
        A journal does not keep them.
    group : torch.distributed.ProcessGroup, optional
        The ranks that hold the parameters together, each of which makes a recorder; the
        first writes. Default: all ranks if there are DTensors, as under FSDP2 and with
        tensor parallelism. Of what is an ordinary tensor in several ranks the first counts.
        Without need under DistributedDataParallel: give the wrapped model.
    samples : int, default: 0
        Most examples in a batch whose indices are kept, see `log_samples`; some two bytes
        each on disk.
    offload : bool, default: False
        Keep everything in the host's memory, and measure there. The recorder then keeps
        nothing on an accelerator, and every step waits until gradients and parameters, before
        and after, have been copied: 12 bytes per parameter, as float32. On a CPU it changes
        nothing.

    Raises
    ------
    TypeError
        If the model or the optimizer is something else, if an optimizer has no hooks, or if a
        number of steps is not an integer.
    ValueError
        If a value is out of range, if the model has no parameters, if the optimizer
        holds parameters that are not the model's, or if the recording to resume is of
        another model, optimizer or of other options; lists the differences.
    NotImplementedError
        If the parameters are complex, or lie on several devices; if the optimizer is LBFGS;
        or if options are given that a divided model does not have.
    FileExistsError
        If there is something at `path` that is not to be resumed.
    FileNotFoundError
        If there is nothing that the state given to `resume` belongs to.
    StoreLockedError
        If another process records to `path`; a `RuntimeError`.

    Warns
    -----
    UserWarning
        If a recording is resumed with other parameters than those it ended with.

    Notes
    -----
    Besides the model: three float32 vectors of the length of the parameters, one more where
    plain torch measures on an accelerator; a byte per parameter for each of
    ``2**(basis - 2)`` past references, and one for a reference that is being written; and
    two buffers of rows of 8 MB.

    ``basis=0`` saves disk, ``8 + 8 r`` bytes per tensor and step before compression against a
    basis of r vectors; but it takes as much memory as ``basis=1`` does, for displacements need
    the reference. Gamma stays unbiased; its error was 1.1 to 2.7 times that of the default in
    three trainings (``traj-store plan --basis 0``). What rests on products with the
    parameters cannot be computed then: `analyzers.scale_invariance`, and weight decay in
    `analyzers.path_geometry` unless the recording is exact.

    Examples
    --------
    >>> from torch import nn, optim
    >>> model = nn.Linear(3, 1)
    >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
    >>> path = tmp_path / "run.zarr"
    >>> with Recorder(path, model, optimizer, steps_per_epoch=2) as recorder:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         loss = model(torch.ones(1, 3)).square().mean()
    ...         loss.backward()
    ...         recorder.log(loss=loss)
    ...         optimizer.step()
    """

    def __new__(
        cls, _path: object = None, model: object = None, *_: Any, **named: Any
    ) -> Self:
        """Make one that ignores what it is told where another rank records the same."""
        is_silent = is_copy(named.get("model", model))
        kind: Any = SilentRecorder if is_silent else cls
        made: Self = super().__new__(kind)
        return made

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | Mapping[str, Tensor],
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        reference_every: int | None = None,
        sketch_bits: int = SKETCH_BITS,
        basis: int = BASIS,
        probes: int = PROBES,
        exact: bool = False,
        seed: int = 0,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = 30.0,
        resume: Mapping[str, Any] | bool = False,
        step: int | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        journal: bool = False,
        fsync: bool = False,
        attrs: Mapping[str, Any] = MappingProxyType({}),
        updates: bool = False,
        group: Any = None,
        samples: int = 0,
        offload: bool = False,
    ) -> None:
        optimizers = as_optimizers(optimizer)
        parameters = trained_parameters(model, optimizers)
        if group is None and any(is_divided(p) for p in parameters.values()):
            group = dist.group.WORLD
        tensors, placement = place(parameters, group)
        layout = placement.layout
        # NumPy's integers are welcome too.
        steps_per_epoch = _as_int("steps_per_epoch", steps_per_epoch)
        total_steps = _as_int("total_steps", total_steps)
        reference_every = _as_int("reference_every", reference_every)
        step = _as_int("step", step)
        self._spec = RunSpec.from_json(
            {
                "names": layout.names,
                "shapes": layout.shapes,
                "seed": seed,
                "sketch_bits": sketch_bits,
                "basis": basis,
                "probes": probes,
                "steps_per_epoch": steps_per_epoch,
                "reference_every": reference_every,
                "total_steps": total_steps,
                "exact": exact,
                "samples": index(samples),
            }
        )
        if layout.size == 0:
            raise ValueError("The model's parameters have no elements to record.")
        if flush_rows < 1 or flush_seconds <= 0:
            raise ValueError(
                "`flush_rows` must be at least 1 and `flush_seconds` positive, got "
                f"{flush_rows} and {flush_seconds}."
            )
        if on_error not in {"raise", "warn"}:
            raise ValueError(f"`on_error` must be 'raise' or 'warn', got {on_error!r}.")
        if journal and is_remote(str(path)):
            raise ValueError(
                f"A journal is a local file, and {path} is not. Record to a directory, or "
                "set flush_rows=1."
            )
        self._groups = group_names(parameters, optimizers)
        self._n_held = sum(map(len, self._groups))
        self._trained = [p for p in parameters.values() if not p.is_inference()]
        self._versions = [p._version for p in self._trained]
        self._state = None
        if isinstance(resume, Mapping) and placement.is_first:
            self._state = check_state(resume)
            check_groups(self._state, self._groups)
        begins = placement.is_first and first_step(resume, step, self._state)
        self._step: int = placement.broadcast(begins)
        self._windows = Windows(
            steps_per_epoch=steps_per_epoch,
            reference_every=reference_every,
            total_steps=total_steps,
        )
        self._optimizers = optimizers
        self._placement = placement
        if group is not None:
            _check_divided(exact=exact, on_error=on_error, offload=offload)
        self._device = next(t.device for t in tensors if t is not None)
        measures_on = torch.device("cpu") if offload else self._device
        self._tracker = Tracker(tensors, layout, self._spec, placement, measures_on)
        self._copies = HostCopies(self._device)
        self._reference_sq = torch.empty(0)
        self._hand_over: HandOver | Spectator
        self._pending: dict[str, Scalar]
        self._snapshots: set[str]
        self._n_measured: dict[str, int]
        self._row: dict[str, Tensor] | None = None
        self._noted: Entry | None = None
        self._seen: GradientsSeen | None = None
        self._last_scalars: Collection[str] = ()
        self._is_taken = False
        self._has_stepped = False
        self._on_error = on_error
        self._attrs = _as_json(attrs)
        self._updates = updates
        self._flush_measurements = journal
        self._pid = os.getpid()

        # The writer lives in its thread: there it meets no event loop, as in a notebook.
        self._background = Background(N_WAITING)
        leave_threads_to_training(self._background.call)
        opening = partial(
            self._open,
            path,
            resume=bool(resume),
            fsync=fsync,
            journal=journal,
            flush_rows=flush_rows,
            flush_seconds=flush_seconds,
        )
        try:
            doubt = self._open_together(opening)
        except BaseException:
            self._background.close()
            raise
        if doubt is not None:
            warn(doubt, stacklevel=2)
        self._is_open = self._is_recording = True
        self._undo_sigterm = exit_on_sigterm()
        atexit.register(self._close_at_exit)
        self._hooks = StepHooks(
            optimizers,
            self._before_step,
            self._before_later_step,
            self._note_step,
            self._after_step,
        )

    def _open_together(self, opening: Callable[[], Resumption]) -> str | None:
        """Open the store where it is written, and go on only if that was done."""
        found, error = Resumption(NOWHERE), None
        try:
            if self._placement.is_first:
                found = self._background.call(self._copies.as_here(opening))
            else:
                self._hand_over = Spectator(self._tracker.allocate)
                self._snapshots, self._n_measured = set(), {}
        except BaseException as raised:  # noqa: BLE001 - is raised again below
            error = raised
        if not self._placement.all_agree(here=error is None):
            raise error or RuntimeError(
                "The first rank could not open the store, and says why; nothing is recorded."
            )
        return self._go_on(found)

    def _go_on(self, found: Resumption) -> str | None:
        """Bring everything to where the recording begins; return what is doubtful."""
        told = without_vectors(found), self._snapshots, self._n_measured
        of_first, self._snapshots, self._n_measured = self._placement.broadcast(told)
        if not self._placement.is_first:
            found = of_first
        doubt = restore(self._tracker, found)
        position = found.position
        self._epoch, self._epoch_start = position.epoch, position.epoch_start
        self._n_windows = found.n_windows
        self._next_window = position.next_window
        if self._n_windows > 0:
            self._reference_sq = self._tracker.anchor_sq()
        self._pending = dict(position.pending)
        self._samples: npt.NDArray[np.int64] | None = None
        if position.samples:
            self._samples = row_of_samples(position.samples, self._spec.samples)
        self._started = time.monotonic() - position.wall_time
        return doubt

    def _open(
        self,
        path: str | Path,
        *,
        resume: bool,
        fsync: bool,
        journal: bool,
        flush_rows: int,
        flush_seconds: float,
    ) -> Resumption:
        """Open the store and find where the recording goes on."""
        state, self._state = self._state, None
        created = state["created"] if state is not None and self._step > 0 else None
        self._writer = Writer(
            path,
            self._spec,
            resume=resume,
            created=created,
            fsync=fsync,
            attrs=self._attrs,
        )
        try:
            found = self._find_position(state, resume=resume)
            self._writer.commit()
            self._hand_over = HandOver(
                self._writer,
                self._background,
                self._spec,
                self._tracker.allocate,
                first=self._step,
                flush_rows=flush_rows,
                flush_seconds=flush_seconds,
                journal=Journal(Path(self._writer.location)) if journal else None,
                copies=self._copies,
            )
        except BaseException:
            self._writer.close()
            raise
        return found

    def _find_position(
        self, state: Mapping[str, Any] | None, *, resume: bool
    ) -> Resumption:
        """Find where the recording goes on."""
        found = Resumption(NOWHERE)
        if resume:
            self._recover()
            found = take_up(
                self._writer,
                spec=self._spec,
                windows=self._windows,
                step=self._step,
                state=state,
            )
        # One that was taken where the checkpoint was may be taken again.
        taken = self._writer.snapshots
        self._snapshots = {name for name in taken if taken[name] < self._step}
        self._n_measured = {
            name: table.n_rows for name, table in self._writer.measurements.items()
        }
        return found

    def _recover(self) -> None:
        """Commit what a journal holds beyond the store, and delete it."""
        if not is_remote(self._writer.location):
            directory, size = Path(self._writer.location), self._tracker.size
            if replay(self._writer, directory, self._spec, size):
                self._writer.commit()
            Journal(directory).remove()

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step.

        Names that come after the last step are added to its row, where it has none of them.

        Parameters
        ----------
        **scalars : float or torch.Tensor
            Numbers or tensors of one element, by name. Tensors are copied, and converted
            when rows are written: the device is not waited for. The last value of a name
            wins; names may be new at any time, and read as NaN before.

        Raises
        ------
        ValueError
            If a name is one that the recorder uses, or a tensor has several elements.
        TypeError
            If a value is not a real number.
        RuntimeError
            If the recorder is closed, or a CUDA graph is being captured.
        """
        self._check_open()
        refuse_capture(self._device)
        self._pending |= to_scalars(scalars)

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Add the indices of the examples in the batch to the next optimizer step.

        `trajstore.Run.samples` gives them back: what the loss of a step's batch is at
        another point can be computed afterwards.

        Parameters
        ----------
        indices : torch.Tensor or array_like of int
            Which examples of the data set, from 0, in the order of the batch, at most as
            many as the recorder was given as ``samples``. They are looked at at once: give
            them as the loader has them, for a device would be waited for. The last call
            before a step wins.

        Raises
        ------
        ValueError
            If the recorder was made for fewer, or if they are negative.
        TypeError
            If they are not integers.
        RuntimeError
            If the recorder is closed.
        """
        self._check_open()
        self._samples = row_of_samples(indices, self._spec.samples)

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Record the gradients that there are now as a row of a measurement.

        Call it between two optimizer steps, after a backward pass of your choice: over
        the whole data set, or a batch that stays the same. What is recorded of steps does
        not change. `trajstore.Run.measured` gives the rows.

        Parameters
        ----------
        name : str
            Of the measurement; its rows are numbered in the order of calls.
        **scalars : float or torch.Tensor
            What belongs to the row, as `log` takes it.

        Raises
        ------
        ValueError
            If the name is empty, or ``"update"`` while updates are recorded; or if a
            scalar's name is taken, see `log`.
        TypeError
            If a scalar is not a real number.
        RuntimeError
            If the recorder is closed, or writing failed.

        Notes
        -----
        Needs two more float32 vectors of the length of the parameters meanwhile, three where
        plain torch measures on an accelerator.

        Examples
        --------
        >>> from torch import nn, optim
        >>> model = nn.Linear(3, 1)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
        >>> path = tmp_path / "measured.zarr"
        >>> with Recorder(path, model, optimizer) as recorder:
        ...     model(torch.ones(100, 3)).mean().backward()
        ...     recorder.measure("full_batch")
        ...     optimizer.step()
        """
        self._check_open()
        if not name or (self._updates and name == UPDATE):
            raise ValueError(
                f"A measurement cannot be called {name!r}: names are not empty, and "
                f"{UPDATE!r} is what the recorder measures itself with `updates=True`."
            )
        noted = to_scalars(scalars)
        if not self._is_recording:
            return
        self._hooks.settle()
        try:
            refuse_capture(self._device)
            self._background.check()
            self._enter_epoch()
            if self._n_windows == 0:
                self._start_window()
            row = self._new_row()
            self._tracker.measure(self._sign_number(name), row)
            self._append_measurement(name, row, noted)
            if self._flush_measurements:
                # A journal keeps steps only.
                self._hand_over.flush()
        except Exception as error:  # noqa: BLE001 - which ones matter is the user's choice
            self._fail(error)

    def take_gradient(self) -> None:
        """Record the gradient as it is now in the place of what the step will find.

        Call it where something is going to change the gradient that is no part of what you
        want to see: ahead of clipping, for example. The norm of what the step finds is
        recorded as ``step_grad_norm``, beside ``grad_norm``. Under a
        `torch.amp.GradScaler` call ``scaler.unscale_(optimizer)`` before. Of several
        gradients that are taken before a step the last is recorded; its product with that
        of the step before, ``grad_dot_previous``, is NaN then.

        Raises
        ------
        RuntimeError
            If the recorder is closed, or writing failed.

        Examples
        --------
        >>> from torch import nn, optim
        >>> model = nn.Linear(3, 1)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
        >>> path = tmp_path / "raw.zarr"
        >>> with Recorder(path, model, optimizer) as recorder:
        ...     model(torch.ones(100, 3)).mean().backward()
        ...     recorder.take_gradient()
        ...     norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        ...     optimizer.step()
        """
        self._check_open()
        if not self._is_recording:
            return
        self._hooks.settle()
        try:
            refuse_capture(self._device)
            self._measure_before(None)
            self._is_taken = True
        except Exception as error:  # noqa: BLE001 - which ones matter is the user's choice
            self._fail(error)

    def start_epoch(self) -> None:
        """Begin an epoch with the next optimizer step, unless one has just begun.

        Raises
        ------
        ValueError
            If the recorder was given ``steps_per_epoch``, which counts epochs already.
        RuntimeError
            If the recorder is closed.
        """
        self._check_open()
        if self._spec.steps_per_epoch is not None:
            raise ValueError(
                f"`steps_per_epoch` = {self._spec.steps_per_epoch} begins the epochs of "
                "this recording; leave it out to begin them by start_epoch()."
            )
        self._hooks.settle()
        if self._step > self._epoch_start:
            self._epoch += 1
            self._epoch_start = self._next_window = self._step

    def snapshot(self, name: str) -> None:
        """Keep the parameters as they are now, in float32, as a reference point.

        Returns when they are committed to the store.

        Parameters
        ----------
        name : str
            What ``reference=`` will call it.

        Raises
        ------
        ValueError
            If the name is empty, ``"final"``, or has been used.
        """
        self._check_open()
        if not name or name == "final" or name in self._snapshots:
            raise ValueError(
                f"A snapshot cannot be called {name!r}: names are not empty, not 'final' "
                f"and not used twice. Used so far: {sorted(self._snapshots)}."
            )
        self._hooks.settle()
        self._snapshots.add(name)
        read = self._parameters_reader()
        self._copies.mark()
        if not self._placement.is_first:
            return

        def write() -> None:
            with self._copies.after_mark():
                self._writer.write_snapshot(name, self._step, read)
                self._writer.commit()

        try:
            self._background.submit(write)
            # The parameters are read where they are, and must not change meanwhile.
            self._background.wait()
        except RuntimeError as error:
            self._fail(error)

    def flush(self) -> None:
        """Return when every row so far is committed to the store.

        Raises
        ------
        RuntimeError
            If writing failed.
        """
        self._check_open()
        try:
            self._hand_over.flush()
        except RuntimeError as error:
            self._fail(error)

    def state_dict(self) -> dict[str, Any]:
        """Flush, and return what `resume` needs besides the store, for a checkpoint.

        Call it between two optimizer steps, where the states of model and optimizer are
        taken.

        Returns
        -------
        dict
            Of numbers, strings and one float32 tensor of the length of the parameters,
            on the CPU; ``torch.load(..., weights_only=True)`` takes it.

        Raises
        ------
        RuntimeError
            If the recorder is closed, or writing failed.

        Examples
        --------
        >>> from torch import nn, optim
        >>> model = nn.Linear(3, 1)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
        >>> path = tmp_path / "resumed.zarr"
        >>> with Recorder(path, model, optimizer) as recorder:
        ...     model(torch.ones(1, 3)).sum().backward()
        ...     optimizer.step()
        ...     state = recorder.state_dict()
        >>> with Recorder(path, model, optimizer, resume=state) as recorder:
        ...     optimizer.step()
        """
        self._check_open()
        self._hooks.settle()
        self.flush()
        if not self._is_recording or self._row is not None:
            # What was measured last has not been stepped with.
            self._tracker.forget_previous_gradient()
        position = Position(
            step=self._step,
            epoch=self._epoch,
            epoch_start=self._epoch_start,
            wall_time=time.monotonic() - self._started,
            pending=to_floats(self._pending),
            samples=known_samples(self._samples),
        )
        previous_gradient = self._tracker.previous_gradient
        if not self._placement.is_first:
            return {}
        return make_state(position, self._writer, previous_gradient, self._groups)

    def close(self) -> None:
        """Write what is left and the last iterate, and remove the hooks.

        Warns
        -----
        UserWarning
            If the parameters have changed since the last optimizer step, or without any; if
            the optimizer has been given parameters that are not recorded; or if there were
            more than `total_steps`.

        Raises
        ------
        RuntimeError
            If writing failed.
        """
        if not self._is_open or os.getpid() != self._pid:
            return
        self._hooks.finish()
        # After a step that failed halfway nothing is known of the parameters.
        is_known = self._is_recording and self._has_stepped and self._row is None
        if is_known and not self._tracker.parameters_unchanged_since_step():
            warn(
                "The parameters have changed since the last optimizer step. The "
                "final iterate is what they are now.",
                stacklevel=2,
            )
        if self._is_recording and not self._has_stepped and self._has_changed():
            warn(
                "The parameters have changed, but no optimizer step was seen, so that "
                "nothing of it is recorded. Give the recorder the optimizer whose step() is "
                "called: of one that wraps another, as SAM does, the inner one.",
                stacklevel=2,
            )
        self._warn_of_added_parameters()
        planned = self._spec.total_steps
        if planned is not None and self._step > planned:
            warn(
                f"{self._step} steps were recorded, but `total_steps` was {planned}: the last "
                "windows end there, and the steps after it are less precise.",
                stacklevel=2,
            )
        try:
            self._close("complete")
        except RuntimeError as error:
            self._fail(error)

    def _has_changed(self) -> bool:
        """Whether a parameter was written to since the recorder was made."""
        return self._versions != [p._version for p in self._trained]

    def _warn_of_added_parameters(self) -> None:
        groups = [group for o in self._optimizers for group in o.param_groups]
        n_held = sum(len(group["params"]) for group in groups)
        if n_held > self._n_held:
            warn(
                f"{n_held - self._n_held} tensors were given to the optimizer after the "
                "recorder was made, and are not recorded. Give it all of them before, "
                "frozen ones with requires_grad=False, or make a new recorder with a store "
                "of its own.",
                stacklevel=3,
            )
            self._n_held = n_held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception is None:
            self.close()
        elif self._is_open and os.getpid() == self._pid:
            try:
                self._close("failed")
            except RuntimeError as error:
                if error.__cause__ is not exception.__cause__:
                    exception.add_note(str(error))

    def _close_at_exit(self) -> None:
        """Close a recorder that the program has left open, as well as may be."""
        if self._is_open and os.getpid() == self._pid:
            status = "failed" if hasattr(sys, "last_value") else "complete"
            try:
                self._close(status)
            except RuntimeError as error:
                warn(str(error), stacklevel=1)

    def _before_step(self, scaling: Scaling | None) -> None:
        if not self._is_recording or os.getpid() != self._pid:
            return
        try:
            refuse_capture(self._device)
            if self._is_taken:
                norm = self._tracker.gradient_norm(scaling)
                self._pending["step_grad_norm"] = norm
            else:
                # Once a window is enough, and again where a closure is evaluated again.
                is_due = self._step == self._next_window or self._seen is not None
                self._measure_before(scaling)
                if is_due and len(self._optimizers) > 1:
                    self._seen = GradientsSeen(self._optimizers)
        except Exception as error:  # noqa: BLE001 - which ones matter is the user's choice
            self._fail(error)

    def _before_later_step(self, optimizer: Optimizer) -> None:
        """Warn, once a window, of gradients that are not those of the row."""
        seen = self._seen
        if seen is not None and not seen.are_those_of(optimizer):
            self._seen = None
            warn(
                f"The gradients of {type(optimizer).__name__} are not those that were "
                f"recorded when the first of {len(self._optimizers)} optimizers was about to "
                "step. Clip them all before it; give optimizers that step after backward "
                "passes of their own a recorder each.",
                stacklevel=3,
            )

    def _measure_before(self, scaling: Scaling | None) -> None:
        self._background.check()
        self._enter_epoch()
        if self._step == self._next_window:
            self._start_window()
        if self._row is not None:
            # What was measured for this row before was not stepped with.
            self._tracker.forget_previous_gradient()
        self._row = self._hand_over.row()
        self._tracker.before_step(self._step, self._row, scaling)

    def _enter_epoch(self) -> None:
        """Find the epoch of the next step, where steps are counted."""
        if self._spec.steps_per_epoch is not None:
            self._epoch = self._step // self._spec.steps_per_epoch
            self._epoch_start = self._epoch * self._spec.steps_per_epoch

    def _note_step(self) -> None:
        """Keep for the row of the step what is there when an optimizer has stepped."""
        # What is logged from here on may belong to the next row.
        if not self._is_recording or os.getpid() != self._pid:
            return
        try:
            rates = learning_rates(self._optimizers)
        except Exception as error:  # noqa: BLE001 - which ones matter is the user's choice
            self._fail(error)
            return
        before = self._noted
        scalars = before.scalars if before else {}
        samples = before.samples if before else no_samples(self._spec.samples)
        if self._samples is not None:
            samples = self._samples
        entry = self._entry(scalars | self._pending | rates)
        self._noted = entry._replace(samples=samples)
        self._pending, self._samples = {}, None

    def _after_step(self) -> None:
        if os.getpid() != self._pid:
            return
        step = self._step
        try:
            if self._is_recording:
                self._measure_after(self._row)
        except Exception as error:  # noqa: BLE001 - which ones matter is the user's choice
            self._fail(error)
        if not self._is_recording:
            self._step = step + 1

    def _measure_after(self, row: dict[str, Tensor] | None) -> None:
        entry, self._noted, self._seen = self._noted, None, None
        if row is None or entry is None:
            raise RuntimeError(
                f"Step {self._step} was taken without a gradient being seen: the optimizer "
                "did not evaluate the closure that it was given. Call it yourself, "
                "`loss = closure()`, and then `optimizer.step()`."
            )
        self._tracker.after_step(row)
        if self._updates:
            of_update = self._new_row()
            self._tracker.measure_update(self._sign_number(UPDATE), row, of_update)
            self._append_measurement(UPDATE, of_update, {})
        self._hand_over.append(self._step, entry, row)
        self._row, self._is_taken = None, False
        self._last_scalars = entry.scalars.keys()
        self._step += 1
        self._has_stepped = True
        self._hand_over.submit_if_due()

    def _entry(self, scalars: dict[str, Scalar]) -> Entry:
        """Say where a row of the next step belongs."""
        place = (self._epoch, self._step - self._epoch_start, self._n_windows - 1)
        wall_time: dict[str, Scalar] = {"wall_time": time.monotonic() - self._started}
        return Entry(place, self._reference_sq, scalars | wall_time)

    def _new_row(self) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self._tracker.allocate(1).items()}

    def _sign_number(self, name: str) -> int:
        """Choose the random signs of the next row of a measurement."""
        names = list(self._n_measured | {name: 0})
        return first_sign_number(names.index(name)) + self._n_measured.get(name, 0)

    def _append_measurement(
        self, name: str, row: dict[str, Tensor], scalars: dict[str, Scalar]
    ) -> None:
        number, entry = self._n_measured.get(name, 0), self._entry(scalars)
        self._n_measured[name] = number + 1
        new = NewMeasurement(name, number, self._step, entry, row)
        self._hand_over.append_measurement(new)

    def _fail(self, error: Exception) -> None:
        """Raise an error, or end the recording with a warning, as the user chose."""
        if self._on_error == "raise":
            raise error
        if not self._is_recording:
            return
        # Steps are still counted, for the state of a checkpoint.
        self._is_recording = False
        warn(
            f"Recording ended before step {self._step}: {error} Training goes on.",
            stacklevel=3,
        )

    def _start_window(self) -> None:
        tracker, start = self._tracker, self._step
        self._warn_of_added_parameters()
        self._hand_over.wait_for_keyframe()
        if self._n_windows == 0:
            # Where a recording begins late, the steps before belong to this window, too.
            reference, start = tracker.start(), 0
        else:
            reference = tracker.move()
        self._reference_sq = tracker.anchor_sq()
        is_keyframe = self._n_windows % KEYFRAME_EVERY == 0
        keyframe = tracker.keyframe() if is_keyframe else None
        window = NewWindow(self._n_windows, start, reference, keyframe)
        self._n_windows += 1
        self._next_window = self._windows.next_start(self._step + 1, self._epoch_start)
        self._hand_over.append_window(window)

    def _close(self, status: str) -> None:
        self._is_open = False
        atexit.unregister(self._close_at_exit)
        self._undo_sigterm()
        self._hooks.remove()
        # What was logged for a step that never came is no part of the last one.
        pending = self._pending if status == "complete" and self._step > 0 else {}
        pending = {n: v for n, v in pending.items() if n not in self._last_scalars}
        # Other ranks may be elsewhere after a failure.
        is_known = status == "complete" or self._placement.group is None
        read = self._parameters_reader() if is_known else None
        self._copies.mark()
        if not self._placement.is_first:
            self._background.close()
            return

        def write() -> None:
            with self._copies.after_mark():
                if pending:
                    self._writer.steps.amend_last(to_floats(pending))
                self._writer.write_final(read, status=status)
                # The iterate is read here.
                self._writer.commit()
            self._hand_over.forget_journal()

        try:
            self._hand_over.flush()
            if self._is_recording:
                self._background.submit(write)
        finally:
            self._background.close(self._writer.close)

    def _parameters_reader(self) -> Callable[[slice], npt.NDArray[Any]]:
        read = self._tracker.gathered_parameters()
        return lambda elements: self._copies.fetch([read(elements)])[0]

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"The recorder belongs to process {self._pid}, of which this one, "
                f"{os.getpid()}, is a fork. Call it there only; forked processes, such as "
                "the workers of a DataLoader, cannot write to its store."
            )
        if not self._is_open:
            raise RuntimeError("The recorder is closed; nothing more can be recorded.")


class SilentRecorder(Recorder):
    """Takes the place of a `Recorder` where another rank records the same training.

    Under DistributedDataParallel all ranks have the same parameters and gradients: the
    first records, and the others cost nothing.
    """

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def log(self, **scalars: float | Tensor) -> None:
        """Do nothing."""

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Do nothing."""

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Do nothing."""

    def take_gradient(self) -> None:
        """Do nothing."""

    def start_epoch(self) -> None:
        """Do nothing."""

    def snapshot(self, name: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state; the first rank has that of the recording."""
        return {}

    def close(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        pass


UPDATE: Final = "update"
"""The measurement of what steps change."""


def _as_json(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as the store will give them back."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`attrs` must be a mapping of what JSON can hold: {error}. Give strings, "
            "finite numbers, booleans, None, lists and mappings."
        ) from error
    return copied


def _check_divided(*, exact: bool, on_error: str, offload: bool) -> None:
    """Refuse what is not there for parameters that are divided among ranks."""
    found = {
        "exact=True": exact,
        "on_error='warn'": on_error == "warn",
        "offload=True": offload,
    }
    if given := [name for name, is_given in found.items() if is_given]:
        raise NotImplementedError(
            f"Parameters that are divided among ranks are not recorded with "
            f"{' and '.join(given)}; leave that out."
        )


def _as_int(name: str, number: SupportsIndex | None) -> int | None:
    try:
        return None if number is None else index(number)
    except TypeError as error:
        raise TypeError(f"`{name}` must be an integer, got {number!r}.") from error
