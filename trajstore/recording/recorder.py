"""Record a training run while it happens, without changing it."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self
from warnings import warn

import numpy.typing as npt
from torch import Tensor, nn
from torch.optim import Optimizer

from trajstore.format.run_spec import BASIS, FLUSH_ROWS, PROBES, SKETCH_BITS
from trajstore.recording.guard import Guard
from trajstore.recording.hooks import StepHooks
from trajstore.recording.logged import to_scalars
from trajstore.recording.options import RecorderOptions
from trajstore.recording.parameters import is_copy
from trajstore.recording.process_exit import close_at_exit
from trajstore.recording.session import Session
from trajstore.recording.step import StepRecorder


class Recorder:
    """Record every step of an optimizer into a trajectory store.

    Row k of the store is the k-th optimizer step, from 0: the gradients and parameters that
    the step starts with, and the update. The recorder only reads. It draws no random numbers,
    does not touch the graph and writes to no parameter, so that a recorded training run
    equals an unrecorded one bit for bit.

    Use it as a context manager, or call `close`. All methods raise a `RuntimeError` after
    that, if writing failed, in forked processes, and while a CUDA graph is captured. Under
    DistributedDataParallel, where all ranks have the same parameters, the first records, and
    the recorders of the others do nothing.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store, or a URL such as ``s3://bucket/run.zarr``. Must not exist,
        unless `resume` is given.
    model : torch.nn.Module or mapping from str to torch.Tensor
        Its parameters that `optimizer` holds are recorded, in the order of
        ``named_parameters()``; tied parameters once. A mapping names the tensors themselves,
        for optimizers that hold float32 copies of the model's parameters.
    optimizer : torch.optim.Optimizer or sequence of torch.optim.Optimizer
        Its steps are recorded, by hooks. With several optimizers a row begins when the first
        is about to step, and ends when all have stepped.
    steps_per_epoch : int, optional
        Optimizer steps in an epoch. Without it `start_epoch` begins epochs.
    total_steps : int, optional
        Optimizer steps in the run, if known: windows get shorter towards the end, so that the
        last steps are as precise as the others. Without it gamma of the last epoch is lost if
        the learning rate decays to nearly 0.
    reference_every : int, optional
        Steps in a window, whose iterates are measured from one of them, the anchor. Default:
        an epoch, or 500 steps without `steps_per_epoch`. An anchor takes a byte per parameter
        on disk; gamma is best with windows of a few percent of the run (``traj-store plan``).
    sketch_bits : int, default: 65536
        Signs kept of every gradient, a power of two. The error of gamma falls with its square
        root. Fewer are enough for nets of a few thousand parameters.
    basis : int, default: 3
        Number of directions in which gradients are known exactly: the anchor and
        ``basis - 1`` displacements of past windows. With 0 the sketch alone relates gradients
        to the target, and norms of parameters and their products with gradients are unknown.
    probes : int, default: 1024
        Numbers in the fixed random probes of gradients and iterates, a power of two; distances
        rest on them.
    exact : bool, default: False
        Store whole gradients and iterates, 8 bytes per parameter and step, instead of
        sketches: for small nets and for checks.
    seed : int, default: 0
        Seed of the recorder's own random signs; independent of torch's streams.
    flush_rows : int, default: 1024
        Rows are written when this many are waiting, or when they take 8 MB.
    flush_seconds : float, default: 30.0
        Rows wait at most this long before they are written.
    resume : mapping or bool, default: False
        Continue the recording at `path`: the result of `state_dict` that was saved in the
        checkpoint from which model and optimizer were restored; or True, with `step`, if it
        was not saved. Rows after the checkpoint are dropped; lost ones before it become NaN.
        Warns if the parameters are not those that the last step before it led to.
    step : int, optional
        With ``resume=True``: the number of optimizer steps that the checkpoint has taken.
    on_error : {"raise", "warn"}, default: "raise"
        If recording fails during training, for example because the disk is full: raise an
        error from the optimizer's step; or give a warning and let training continue
        unrecorded.
    journal : bool, default: False
        Write every step to a file immediately, so that not even the steps since the last flush are
        lost when the process is killed. On an accelerator every step waits for the device.
    fsync : bool, default: False
        Let commits survive a loss of power, too.
    attrs : mapping, default: {}
        JSON-serialisable metadata to keep with the run, such as the training settings.
    updates : bool, default: False
        Record the updates ``x_(k+1) - x_k`` as the measurement ``"update"``. It takes as many
        bytes as the gradients, more time, and three more float32 vectors. A journal does not
        keep them.
    group : torch.distributed.ProcessGroup, optional
        The ranks that hold the parameters together; each makes a recorder, and the first
        writes. Default: all ranks if there are DTensors, as under FSDP2 and with tensor
        parallelism. If ranks hold copies of an ordinary tensor, the first copy counts. Not needed under
        DistributedDataParallel: give the wrapped model.
    samples : int, default: 0
        Largest number of examples in a batch whose indices are kept, see `log_samples`; each
        takes about two bytes on disk.
    offload : bool, default: False
        Keep all vectors in the host's memory, and measure there. The recorder then takes no
        memory on an accelerator, and every step waits until gradients and parameters, before
        and after, are copied: 12 bytes per parameter. On a CPU it changes nothing.

    Raises
    ------
    TypeError, ValueError
        For an argument of another kind, an optimizer without hooks, values out of range, no
        parameters, or parameters of another model; or if the recording to resume has another
        model, another optimizer or other options; the message lists the differences.
    NotImplementedError
        For complex parameters, parameters on several devices, the optimizer LBFGS, and options
        that sharded models do not support.
    FileExistsError, FileNotFoundError
        If `path` exists and `resume` is not given; or if there is no store to resume.
    StoreLockedError
        If another process records to `path`; a `RuntimeError`.

    Notes
    -----
    Memory in addition to the model: three float32 vectors of the length of the parameters, one
    more if plain torch measures on an accelerator; a byte per parameter for each of
    ``2**(basis - 2)`` past anchors, and one for an anchor that is being written; and two
    buffers of rows of 8 MB.

    ``basis=0`` saves ``8 + 8 r`` bytes per tensor and step before compression compared with a
    basis of r vectors, and no memory compared with ``basis=1``. Gamma stays unbiased; its error
    was 1.1 to 2.7 times that of the default in three training runs (``traj-store plan --basis
    0``). `analyzers.scale_invariance` then cannot be computed, nor can weight decay in
    `analyzers.path_geometry` unless the recording is exact.

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

    The recording is resumed, clipping is kept out of it, and a gradient over more data is
    measured:

    >>> with Recorder(path, model, optimizer, steps_per_epoch=2, resume=state) as new:
    ...     new.take_gradient()
    ...     norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    ...     optimizer.step()
    ...     model(torch.ones(100, 3)).mean().backward()
    ...     new.measure("full_batch")
    """

    # Without steps a recorder does nothing: another rank records the same training run.
    _steps: StepRecorder | None = None
    _is_open = False

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
        if is_copy(model):
            return
        # All keyword arguments are options, by the names of the fields.
        options = RecorderOptions.pick(locals())
        self._session = session = Session(path, model, optimizer, options)
        if session.doubt is not None:
            warn(session.doubt, stacklevel=2)
        self._steps = steps = StepRecorder(session)
        self._first_step = steps.position.step
        self._guard = guard = Guard(on_error, steps.position)
        self._is_open = True
        self._undo_exit = close_at_exit(self._close_if_live)
        self._hooks = StepHooks(
            session.optimizers,
            begin=partial(guard.record, steps.begin),
            begin_later=partial(guard.record, steps.begin_later),
            after=partial(guard.record, steps.after),
            end=partial(guard.record, steps.end),
        )

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step.

        Names that come after the last step are added to its row, if they are new there.

        Parameters
        ----------
        **scalars : float or torch.Tensor
            Numbers or tensors of one element, by name. Tensors are copied, and converted when
            rows are written, without waiting for the device. The last value of a name wins; a
            name may be new at any time, and reads as NaN before.

        Raises
        ------
        ValueError, TypeError
            If the recorder uses a name itself, or if a value is not one real number.
        """
        if (steps := self._opened()) is not None:
            steps.log(scalars)

    def log_samples(self, indices: Tensor | npt.ArrayLike) -> None:
        """Add the indices of the examples in the batch to the row of the next optimizer step.

        With `trajstore.Run.samples` the batch's loss at another point can be computed later.

        Parameters
        ----------
        indices : torch.Tensor or array_like of int
            Indices of the examples in the data set, from 0, in the order of the batch, at most
            as many as the recorder's ``samples``. They are read immediately: give them as the
            loader returns them, to avoid waiting for a device. The last call before a step
            wins.

        Raises
        ------
        ValueError, TypeError
            If there are more than the recorder keeps, if they are negative or not integers.
        """
        if (steps := self._opened()) is not None:
            steps.log_samples(indices)

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Record the present gradients as a row of a measurement, apart from the steps.

        Call it between two optimizer steps, after a backward pass of your choice: over the
        whole data set, or a batch that stays the same. `trajstore.Run.measured` returns the
        rows. To choose the gradient in the row of the next step call `take_gradient` instead.
        Meanwhile it needs two more float32 vectors of the length of the parameters, three if
        plain torch measures on an accelerator.

        Parameters
        ----------
        name : str
            Name of the measurement; its rows are numbered in the order of calls.
        **scalars : float or torch.Tensor
            Scalars of the row, as in `log`.

        Raises
        ------
        ValueError, TypeError
            If the name is empty, or ``"update"`` while updates are recorded; for scalars as in
            `log`.
        """
        if (steps := self._opened()) is not None:
            steps.check_measurement(name)
            noted = to_scalars(scalars)
            self._settle(steps)
            self._guard.record(steps.measure, name, noted)

    def take_gradient(self) -> None:
        """Record the present gradient for the next step, instead of the one it will find.

        Call it before something changes the gradient that the record should not contain:
        before clipping, for example. The norm of the gradient that the step finds is recorded
        as ``step_grad_norm``, in addition to ``grad_norm``. Under a `torch.amp.GradScaler` call
        ``scaler.unscale_(optimizer)`` before. The last call before a step wins; after several
        the product with the previous step's gradient, ``grad_dot_previous``, is NaN.
        """
        if (steps := self._opened()) is not None:
            self._settle(steps)
            self._guard.record(steps.take_gradient)

    def start_epoch(self) -> None:
        """Begin an epoch with the next optimizer step, unless one begins there already.

        Raises
        ------
        ValueError
            If the recorder was given ``steps_per_epoch``, which counts epochs already.
        """
        if (steps := self._opened()) is None:
            return
        if (n_steps := self._session.spec.steps_per_epoch) is not None:
            raise ValueError(
                f"`steps_per_epoch` = {n_steps} begins the epochs of this recording; leave it "
                "out to begin them by start_epoch()."
            )
        self._settle(steps)
        steps.start_epoch()

    def snapshot(self, name: str) -> None:
        """Store the present parameters in float32, as a target; return when committed.

        Parameters
        ----------
        name : str
            Name of the snapshot, for ``reference=`` in analyses.

        Raises
        ------
        ValueError
            If the name is empty, ``"final"``, or has been used.
        """
        if (steps := self._opened()) is not None:
            self._session.check_snapshot(name)
            self._settle(steps)
            self._guard.run(self._session.snapshot, name, steps.position.step)

    def flush(self) -> None:
        """Return when every row so far is committed to the store."""
        if self._opened() is not None:
            self._guard.run(self._session.flush)

    def state_dict(self) -> dict[str, Any]:
        """Flush, and return the recording's part of a checkpoint, for `resume`.

        Call it between two optimizer steps, with ``state_dict()`` of model and optimizer.

        Returns
        -------
        dict
            Numbers, strings and one float32 tensor of the length of the parameters, on the CPU;
            ``torch.load(..., weights_only=True)`` takes it. Empty on ranks that do not write.
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
            If the parameters have changed since the last optimizer step, or without any; if
            the optimizer was given parameters later that are not recorded; or if there were
            more than `total_steps`.
        """
        if (steps := self._live()) is not None:
            self._hooks.finish()
            self._settle(steps)
            for doubt in steps.doubts(is_recording=self._guard.is_recording):
                warn(doubt, stacklevel=2)
            self._guard.run(self._close, steps, "complete")

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
        else:
            try:
                self._close_if_live("failed")
            except RuntimeError as error:
                if error.__cause__ is not exception.__cause__:
                    exception.add_note(str(error))

    def _close_if_live(self, status: str) -> None:
        if (steps := self._live()) is not None:
            self._close(steps, status)

    def _close(self, steps: StepRecorder, status: str) -> None:
        self._is_open = False
        self._undo_exit()
        self._hooks.remove()
        # Scalars logged for a step that never came do not belong to the last one.
        amendment = steps.amendment() if status == "complete" else {}
        with_final = self._guard.is_recording
        self._session.close(status, amendment, with_final=with_final)

    def _settle(self, steps: StepRecorder) -> None:
        """End a step that not all optimizers have taken, and count unrecorded steps."""
        self._hooks.settle()
        if not self._guard.is_recording:
            steps.position.step = self._first_step + self._hooks.n_ended

    def _live(self) -> StepRecorder | None:
        """Return the step recorder if it is open, and this process is no fork."""
        return self._steps if self._is_open and os.getpid() == self._guard.pid else None

    def _opened(self) -> StepRecorder | None:
        """Return the step recorder, None where another rank records; raise an error if closed."""
        if self._steps is None or self._live() is not None:
            return self._steps
        self._guard.check_owner()
        raise RuntimeError("The recorder is closed; nothing more can be recorded.")


def no_op_recorder() -> Recorder:
    """Return a recorder that does nothing, for processes that do not record."""
    return Recorder.__new__(Recorder)
