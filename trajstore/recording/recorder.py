"""Record a training run while it happens, without changing it."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy.typing as npt
from torch import Tensor, nn
from torch.optim import Optimizer

from trajstore.format.run_spec import (
    BASIS,
    FLUSH_ROWS,
    PROBES,
    SKETCH_BITS,
    SchemaError,
)
from trajstore.recording.hooks import Guard, StepHooks, Steps
from trajstore.recording.loops.manual import Gradients, check_block, manual_step, step
from trajstore.recording.loops.notices import warn_user
from trajstore.recording.loops.taken_gradients import measure, take_gradient
from trajstore.recording.options import RecorderOptions
from trajstore.recording.parameters import is_copy
from trajstore.recording.process_exit import close_at_exit
from trajstore.recording.recorder_html import recorder_html
from trajstore.recording.session import Session
from trajstore.recording.step import StepRecorder
from trajstore.trackers.reporter import ReportTo


class Recorder:
    """Record every step of an optimizer into a trajectory store.

    Row k of the store describes optimizer step k, counted from 0: the gradients and parameters
    that the step starts with, and the update. The recorder draws no random numbers and writes
    to no parameter: a recorded training run equals an unrecorded run bit for bit.

    Use the recorder as a context manager, or call `close`. All methods raise a `RuntimeError`
    after the recorder is closed, after writing has failed, in forked processes, and while a
    CUDA graph is being captured; with ``on_error="warn"`` they only warn of this, and of
    arguments that they refuse. Under DistributedDataParallel, where all ranks have the same
    parameters, the first rank records, and the recorders of the other ranks do nothing.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store, or a URL such as ``s3://bucket/run.zarr``. Must not exist,
        unless `resume` or `overwrite` is given.
    model : torch.nn.Module or mapping from str to torch.Tensor
        The model. Those of its parameters that `optimizer` holds are recorded, in the order of
        ``named_parameters()``; tied parameters are recorded once. Give a mapping from names to
        tensors if the optimizer holds float32 copies of the model's parameters.
    optimizer : torch.optim.Optimizer, sequence of torch.optim.Optimizer, or None
        The optimizer whose steps are recorded, through hooks. With several optimizers, a row
        begins when the first optimizer is about to step, and ends when all have stepped. Give
        None to record updates by `step` only.
    steps_per_epoch : int, optional
        Optimizer steps in an epoch. Without this option, epochs begin with `start_epoch`.
    total_steps : int, optional
        Optimizer steps in the run, if known. Windows then get shorter towards the end, which
        keeps the last steps as precise as the earlier steps. Without this option, gamma, the
        cosine of the gradient and ``x_k - x*``, is lost in the last epoch if the learning rate
        decays to nearly 0.
    reference_every : int, optional
        Steps in a window. Iterates are measured relative to the first iterate of their window,
        the anchor. Default: an epoch, or 500 steps without `steps_per_epoch` (fewer in a short
        run); after ten epochs, short epochs share a window, and only its first is a target;
        if `total_steps` has few epochs, they are cut; without epochs, windows are up to 4 % of
        `total_steps` if anchors every 500 steps would take most of the store. An anchor takes a
        byte per parameter on disk. Windows of a few percent of the run are most precise.
    sketch_bits : int, default: 65536
        Number of bits kept of every gradient, a power of two. The error of gamma falls with
        the square root of this number, and faster in networks with fewer parameters: they get
        up to 16 bits for every parameter, and those of up to 2048 parameters need fewer bits.
    basis : int, default: 3
        Number of directions in which gradients are known exactly: the anchor and
        ``basis - 1`` displacements of past windows. With 0, only the sketch relates
        gradients to the target; norms of parameters, and the products of parameters with
        gradients, are unknown.
    probes : int, default: 1024
        Number of fixed random projections, a power of two, from which distances are estimated.
    exact : bool, default: False
        Store whole gradients and iterates, for small networks: 8 bytes per parameter and step
        (16 in float64), and nothing is estimated.
    float64 : bool, default: False
        Store all values and vectors in float64, which takes up to twice the bytes. This is always
        done if some parameters are float64. Gradients of narrower parameters need it if their
        norms are below 1e-19 or above 1e19, because float32 cannot hold their squares.
    seed : int, default: 0
        Seed of the recorder's random signs, which do not use torch's random generators.
    flush_rows : int, default: 1024
        Rows are written when this number of rows is waiting, or when the waiting rows take 8 MB.
    flush_seconds : float, default: 30.0
        Seconds after which waiting rows are written; the first trouble in them, within seconds.
    resume : mapping or bool, default: False
        Continue the recording at `path`. Give the result of `state_dict` that was saved in the
        checkpoint from which the model and the optimizer were restored; or True, together with
        `step`, if the checkpoint contains no such state. Rows after the checkpoint are dropped,
        and lost rows before it become NaN. The recorder warns if the parameters are not the
        result of the last recorded step.
    step : int, optional
        With ``resume=True``: the number of optimizer steps taken before the checkpoint.
    overwrite : bool, default: False
        Delete the recording at `path` first, for example in a notebook cell that runs again.
        Only a local directory that holds a trajectory store and nothing else is deleted.
    on_error : {"raise", "warn"}, default: "raise"
        Response to a failure of recording during training, for example because the disk is
        full: raise an error from the optimizer's step, or warn and let training continue
        unrecorded. Errors of opening the recorder are raised in both cases. In both cases,
        parameters that can no longer be recorded, for example because they have another shape,
        end the recording with a warning, and training continues; only if several ranks record
        sharded parameters, this is an error.
    journal : bool, default: False
        Write every step to a local file immediately, which preserves the steps since the last
        flush if the process is killed. On an accelerator, every step then waits for the device.
    fsync : bool, default: False
        Make commits survive a loss of power.
    attrs : mapping, default: {}
        JSON-serialisable metadata to keep with the run, such as the training settings.
    updates : bool, default: False
        Record the updates ``x_(k+1) - x_k`` as the measurement ``"update"``. This takes as
        many bytes on disk as the gradients, more time per step, and memory for three more
        float32 vectors of the length of the parameters. A journal does not keep updates.
    group : torch.distributed.ProcessGroup, optional
        The ranks that together hold the parameters. Each rank makes a recorder, and the first
        rank writes. Default: all ranks if parameters are DTensors, as under FSDP2 and tensor
        parallelism. If ranks hold copies of an ordinary tensor, the first copy is recorded.
        Under DistributedDataParallel, leave out this option and give the wrapped model.
    samples : int, default: 0
        Largest number of indices to keep per step, two bytes each, see `log_samples`.
    offload : bool, default: False
        Keep the recorder's vectors in host memory, and measure steps on the host. The
        accelerator's memory stays free, but every step waits until its gradients, and the
        parameters before and after it, are copied: 12 bytes per parameter.
    report_to : str, Reporter, Sink or sequence of these, default: ()
        Trackers that receive losses and norms of layers during training, such as
        ``"tensorboard:logs"``, see `trajstore.trackers`. Their errors only lead to warnings.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range; if the optimizer has no hooks, or
        holds parameters of another model; if the model has no parameters; or if the recording
        to resume has another model, another optimizer or other options (the message lists the
        differences).
    NotImplementedError
        For complex parameters, parameters on several devices, and options that sharded models
        do not support.
    FileExistsError, FileNotFoundError
        If `path` exists and `resume` is not given, or holds something else than the store to
        overwrite; or if there is no store to resume.
    StoreLockedError
        If another process records to `path`. This error is a `RuntimeError`.

    Notes
    -----
    With ``basis=0`` gamma stays unbiased; in three training runs its error was 1.1 to 2.7 times
    that of the default basis. `analyzers.scale_invariance`, and weight decay in
    `analyzers.path_geometry` unless the recording is exact, need a basis.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> path = tmp_path / "run.zarr"
    >>> with Recorder(path, model, optimizer, steps_per_epoch=2) as recorder:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         loss = model(torch.ones(1, 3)).square().mean()
    ...         loss.backward()
    ...         recorder.log(loss=loss)
    ...         optimizer.step()
    ...     state = recorder.state_dict()

    Resume the recording, take the gradient before clipping, and measure one over more data:

    >>> with Recorder(path, model, optimizer, steps_per_epoch=2, resume=state) as new:
    ...     new.take_gradient()
    ...     norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    ...     optimizer.step()
    ...     model(torch.ones(100, 3)).mean().backward()
    ...     new.measure("full_batch")
    """

    # None if another rank records the same training run; the recorder then does nothing.
    _steps: StepRecorder | None = None
    _is_open = False

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | Mapping[str, Tensor],
        optimizer: Optimizer | Sequence[Optimizer] | None,
        *,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        reference_every: int | None = None,
        sketch_bits: int = SKETCH_BITS,
        basis: int = BASIS,
        probes: int = PROBES,
        exact: bool = False,
        float64: bool = False,
        seed: int = 0,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = 30.0,
        resume: Mapping[str, Any] | bool = False,
        step: int | None = None,
        overwrite: bool = False,
        on_error: Literal["raise", "warn"] = "raise",
        journal: bool = False,
        fsync: bool = False,
        attrs: Mapping[str, Any] = MappingProxyType({}),
        updates: bool = False,
        group: Any = None,
        samples: int = 0,
        offload: bool = False,
        report_to: ReportTo = (),
    ) -> None:
        if is_copy(model):
            return
        # Every keyword argument has the name of a field of `RecorderOptions`.
        options = RecorderOptions.pick(locals())
        try:
            self._session = session = Session(path, model, optimizer, options)
        except SchemaError as error:
            if on_error == "raise" or not options.resume:
                raise
            warn_user(f"Nothing more is recorded: {error} Training continues.")
            return
        self._steps = steps = StepRecorder(session)
        self._first_step = steps.position.step
        self._guard = guard = Guard(on_error, steps.position, is_alone=session.is_alone)
        self._is_open = True
        self._closing = close_at_exit(self._close_if_live, str(path))
        functions = [partial(guard.record, getattr(steps, n)) for n in Steps._fields]
        self._hooks = StepHooks(session.optimizers, Steps(*functions))

    # These are in modules of their own, because this class is long.
    step = step
    measure = measure
    take_gradient = take_gradient
    _repr_html_ = recorder_html

    def _start_step(
        self, gradients: Gradients | None, parameters: Mapping[str, Tensor] | None
    ) -> AbstractContextManager[None]:
        """Return the block of `step`."""
        steps = self._opened()
        if steps is None or not self._guard.attempt(check_block, self._hooks):
            return nullcontext()
        self._settle(steps)
        begin = partial(self._guard.record, steps.begin_manual, gradients, parameters)
        end = partial(self._guard.record, steps.end_manual, gradients)
        return manual_step(self._hooks, begin, end)

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step.

        After the last step, scalars with new names are added to its row.

        Parameters
        ----------
        **scalars : float or torch.Tensor
            Numbers or one-element tensors, by name. Tensors are copied without waiting for the
            device. The last value before a step is recorded. New names may be logged at any
            time, and are NaN in earlier rows.

        Raises
        ------
        ValueError, TypeError
            If a name is reserved for the recorder, or if a value is not a single real number.
        """
        if (steps := self._opened()) is not None:
            for name, value in scalars.items():
                self._guard.attempt(steps.log, name, value)

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Add the indices of the examples in the batch to the row of the next optimizer step.

        `trajstore.Run.samples` returns these indices, for example to compute the batch's loss at
        another iterate.

        Parameters
        ----------
        indices : torch.Tensor or array_like of int
            Indices of the examples in the data set, counted from 0, in the order of the batch.
            Their number is limited by the recorder's option ``samples``. They are read
            immediately; to avoid waiting for a device, give them before they are moved to it.
            After several calls before a step, the indices of the last call are recorded.

        Raises
        ------
        ValueError, TypeError
            If there are more indices than the recorder keeps, or if an index is negative
            or not an integer.
        """
        if (steps := self._opened()) is not None:
            self._guard.attempt(steps.log_samples, indices)

    def start_epoch(self) -> None:
        """Begin an epoch with the next optimizer step, unless an epoch already begins with it.

        An epoch begins a window, too, unless epochs are short (see `reference_every`).

        Raises
        ------
        ValueError
            If the recorder was given ``steps_per_epoch``, which already determines epochs.
        """
        if (steps := self._opened()) is not None:
            self._settle(steps)
            self._guard.attempt(steps.start_epoch)

    def snapshot(self, name: str) -> None:
        """Store the current parameters in full as a target, and wait for the commit.

        Parameters
        ----------
        name : str
            Name for ``reference=`` in analyses, which must be new and not ``"final"``.

        Raises
        ------
        ValueError
            If the name is used; or after a `step` that was given parameters and made others.
        """
        if (steps := self._opened()) is None:
            return
        if self._guard.attempt(self._session.check_snapshot, name):
            self._settle(steps)
            if self._knows_iterate(steps, "snapshot()"):
                self._guard.run(self._session.snapshot, name, steps.position.step)

    def flush(self) -> None:
        """Commit every row so far to the store, and wait for the commit."""
        if (steps := self._opened()) is not None:
            self._guard.run(steps.flush)

    def state_dict(self) -> dict[str, Any]:
        """Flush the recording, and return its state for a checkpoint and for `resume`.

        Call this between two optimizer steps, together with ``state_dict()`` of the model and
        the optimizer.

        Returns
        -------
        dict
            Numbers, strings, one float32 tensor of the length of the parameters, and sums of the
            window of at most 2.4 MB, on the CPU.
            ``torch.load(..., weights_only=True)`` loads it. Empty on ranks that do not write.
        """
        if (steps := self._opened()) is None:
            return {}
        self._settle(steps)
        self.flush()
        return steps.state(is_recording=self._guard.is_recording)

    def close(self) -> None:
        """Write the remaining rows and the final iterate, and remove the hooks.

        Warns
        -----
        UserWarning
            If the parameters have changed since the last step or without a step, if parameters
            are not recorded, or if there were more steps than `total_steps`.
        """
        if (steps := self._live()) is None:
            return
        with self._closing():
            self._guard.run(self._close, steps, "complete")

    def __repr__(self) -> str:
        if self._steps is None:
            return "<trajstore.Recorder of another rank>"
        writer = self._session.writer
        place = repr(writer.location) if writer else "of another rank"
        state = "open" if self._is_open else "closed"
        n_steps = self._steps.position.step
        return f"<trajstore.Recorder {place}: {n_steps} steps, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: object, exception: BaseException | None, _traceback: object
    ) -> None:
        if exception is None:
            self.close()
            return
        try:
            self._close_if_live("failed")
        except RuntimeError as error:
            if error.__cause__ is not exception.__cause__:
                exception.add_note(str(error))

    def _close_if_live(self, status: str) -> None:
        if (steps := self._live()) is not None:
            with self._closing():
                self._close(steps, status)

    def _close(self, steps: StepRecorder, status: str) -> None:
        is_recording = self._guard.is_recording
        if status == "complete":
            self._hooks.finish()
            self._settle(steps)
            for message in steps.closing_warnings(is_recording=is_recording):
                warn_user(message)
        self._is_open = False
        self._hooks.remove()
        steps.close(status, is_recording=is_recording)
        if status == "complete" and (lost := self._session.range_message) is not None:
            warn_user(lost)

    def _settle(self, steps: StepRecorder) -> None:
        """End a step that some optimizers have skipped, and count unrecorded steps."""
        self._hooks.settle()
        if not self._guard.is_recording:
            steps.position.step = self._first_step + self._hooks.n_ended

    def _knows_iterate(self, steps: StepRecorder, what: str) -> bool:
        """Whether the parameters that a method needs are known; if not, raise or warn."""
        check, is_on = steps.check_iterate, self._guard.is_recording
        return not is_on or self._guard.attempt(check, what)

    def _live(self) -> StepRecorder | None:
        """Return the step recorder if it is open and this process is not a fork."""
        return self._steps if self._is_open and os.getpid() == self._guard.pid else None

    def _opened(self) -> StepRecorder | None:
        """Return the step recorder, or None if another rank records; check that it is open."""
        if self._steps is None or self._live() is not None:
            return self._steps
        self._guard.attempt(self._refuse)
        return None

    def _refuse(self) -> None:
        """Raise an error: the recorder is closed, or belongs to another process."""
        self._guard.check_owner()
        raise RuntimeError("The recorder is closed; nothing more can be recorded.")


def no_op_recorder() -> Recorder:
    """Return a recorder that does nothing, for processes that do not record."""
    return Recorder.__new__(Recorder)
