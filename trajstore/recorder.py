"""Record a training run while it happens, without changing it."""

import time
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex
from warnings import warn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trajstore.background import Background
from trajstore.defaults import BASIS, FLUSH_BYTES, FLUSH_ROWS, PROBES, SKETCH_BITS
from trajstore.layout import Layout
from trajstore.row_buffer import RowBuffer, Scalar, to_numpy
from trajstore.schema import DESCRIPTIONS, KEYFRAME_EVERY, RunSpec
from trajstore.tracker import Reference, Tracker
from trajstore.windows import Windows
from trajstore.writer import Window, Writer

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
        Directory of the store; must not exist.
    model : torch.nn.Module
        Its parameters that `optimizer` holds are recorded, in the order of
        ``named_parameters()``; tied parameters once.
    optimizer : torch.optim.Optimizer
        Its steps are recorded, by hooks. Call it without a closure.
    steps_per_epoch : int, optional
        Optimizer steps in an epoch. Without it epochs are begun by `start_epoch`.
    total_steps : int, optional
        Optimizer steps in the run, if known: the last window is then cut so that the
        last steps are as precise as the others.
    reference_every : int, optional
        Steps between reference points; default: an epoch, or 500 steps where epochs are
        begun by hand. A reference costs 1 byte per parameter on disk; gamma is most
        precise where windows are some percent of the run (``traj-store plan``).
    sketch_bits : int, default: 65536
        Signs kept of every gradient, a power of two. The error of gamma falls with its
        square root. Less will do for nets of a few thousand parameters.
    basis : int, default: 3
        Directions in which gradients are known exactly: the reference and ``basis - 1``
        displacements of past windows.
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

    Raises
    ------
    ValueError
        If a value is out of range, if the model has no parameters, or if the optimizer
        holds parameters that are not the model's.
    NotImplementedError
        If the parameters are complex, sharded, or lie on several devices.
    FileExistsError
        If `path` exists.

    Notes
    -----
    Besides the model: ``2 + basis`` float32 vectors of the length of the parameters, one
    more on an accelerator, a byte per parameter for each of ``2**(basis - 2)`` past
    references, and two buffers of rows of 8 MB. At the default basis and with everything
    that is in flight the peak is below 8 vectors, for ten million parameters and more.

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

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Optimizer,
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
    ) -> None:
        parameters = _trained_parameters(model, optimizer)
        layout = Layout(
            tuple(parameters), tuple(tuple(p.shape) for p in parameters.values())
        )
        # NumPy's integers are welcome too.
        steps_per_epoch = _as_int(steps_per_epoch)
        total_steps = _as_int(total_steps)
        reference_every = _as_int(reference_every)
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
            }
        )
        if layout.size == 0:
            raise ValueError("The model's parameters have no elements to record.")
        if flush_rows < 1 or flush_seconds <= 0:
            raise ValueError(
                "`flush_rows` must be at least 1 and `flush_seconds` positive, got "
                f"{flush_rows} and {flush_seconds}."
            )
        self._windows = Windows(
            steps_per_epoch=steps_per_epoch,
            reference_every=reference_every,
            total_steps=total_steps,
        )
        self._optimizer = optimizer
        self._tracker = Tracker(list(parameters.values()), layout, self._spec)
        row_bytes = sum(t.nbytes for t in self._tracker.allocate(1).values())
        self._capacity = max(1, min(flush_rows, FLUSH_BYTES // row_bytes))
        self._flush_seconds = flush_seconds
        self._buffer = self._new_buffer()
        self._spare = self._new_buffer()

        self._writer = Writer(Path(path), self._spec)
        self._writer.commit()
        self._background = Background(N_WAITING)

        self._step = 0
        self._epoch = 0
        self._epoch_start = 0
        self._n_windows = 0
        self._next_window = 0
        self._new_windows: list[tuple[int, Reference, Tensor | None]] = []
        self._keyframe_is_pending = False
        self._reference_sq = torch.empty(0)
        self._pending: dict[str, Scalar] = {}
        self._snapshots: set[str] = set()
        self._row: dict[str, Tensor] | None = None
        self._started = time.monotonic()
        self._last_flush = self._started
        self._is_open = True
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step, or to the last at the end.

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
            If the recorder is closed.
        """
        self._check_open()
        for name, value in scalars.items():
            if name in RESERVED or name.startswith("lr_"):
                raise ValueError(
                    f"The name {name!r} is taken: the recorder records it by itself. "
                    "Choose another; taken are those that begin with 'lr_' and "
                    f"{sorted(RESERVED)}."
                )
            self._pending[name] = _scalar(name, value)

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
        self._snapshots.add(name)

        def write() -> None:
            self._writer.write_snapshot(name, self._step, self._read_parameters)
            self._writer.commit()

        self._background.submit(write)
        # The parameters are read where they are, and must not change meanwhile.
        self._background.wait()

    def flush(self) -> None:
        """Return when every row so far is committed to the store.

        Raises
        ------
        RuntimeError
            If writing failed.
        """
        self._check_open()
        self._submit_rows()
        self._background.wait()

    def close(self) -> None:
        """Write what is left and the last iterate, and remove the hooks.

        Warns
        -----
        UserWarning
            If the parameters have changed since the last optimizer step.

        Raises
        ------
        RuntimeError
            If writing failed.
        """
        if self._is_open:
            # After a step that failed halfway nothing is known of the parameters.
            was_completed = self._step > 0 and self._row is None
            if was_completed and not self._tracker.is_where_last_step_led():
                warn(
                    "The parameters have changed since the last optimizer step. The "
                    "final iterate is what they are now.",
                    stacklevel=2,
                )
            self._close("complete")

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
            return
        if self._is_open:
            try:
                self._close("failed")
            except RuntimeError as error:
                if error.__cause__ is not exception.__cause__:
                    exception.add_note(str(error))

    def _before_step(self, _optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The first of the positional arguments is the optimizer itself.
        if kwargs.get("closure", next(iter(args[1:]), None)) is not None:
            raise NotImplementedError(
                "optimizer.step(closure) evaluates the gradients after the recorder has "
                "looked at them. Call the closure before: `loss = closure()`, then "
                "`optimizer.step()`; optimizers that need a closure, such as LBFGS, "
                "cannot be recorded."
            )
        self._background.check()
        if self._spec.steps_per_epoch is not None:
            self._epoch = self._step // self._spec.steps_per_epoch
            self._epoch_start = self._epoch * self._spec.steps_per_epoch
        if self._step == self._next_window:
            self._start_window()
        self._row = self._buffer.row()
        self._tracker.before_step(self._step, self._row)

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._row is None:
            return
        self._tracker.after_step(self._row)
        buffer, now = self._buffer, time.monotonic()
        place = (self._epoch, self._step - self._epoch_start, self._n_windows - 1)
        buffer.places.append(place)
        buffer.reference_sq.append(self._reference_sq)
        buffer.scalars.append(
            self._pending | self._learning_rates() | {"wall_time": now - self._started}
        )
        self._pending = {}
        self._row = None
        self._step += 1
        if buffer.is_full or now - self._last_flush >= self._flush_seconds:
            self._submit_rows()

    def _start_window(self) -> None:
        tracker, start = self._tracker, self._step
        if self._keyframe_is_pending:
            # The writer may still be reading the reference that is about to move.
            self._background.wait()
            self._keyframe_is_pending = False
        reference = tracker.start() if start == 0 else tracker.move()
        self._reference_sq = tracker.reference_sq()
        keyframe = None
        if self._n_windows % KEYFRAME_EVERY == 0:
            keyframe, self._keyframe_is_pending = tracker.reference, True
        self._n_windows += 1
        self._next_window = self._windows.next_start(start + 1, self._epoch_start)
        self._new_windows.append((start, reference, keyframe))
        code_bytes = sum(new.codes.nbytes for _, new, _ in self._new_windows)
        if self._keyframe_is_pending or code_bytes >= FLUSH_BYTES:
            self._submit_rows()

    def _submit_rows(self) -> None:
        """Hand what is new to the writer's thread and go on with the other buffer."""
        self._last_flush = time.monotonic()
        full, windows = self._buffer, self._new_windows
        if len(full) == 0 and not windows:
            return

        def write() -> None:
            for start, reference, keyframe in windows:
                whole = None if keyframe is None else to_numpy(keyframe)
                codes, scales, weights, arrival, probes = map(to_numpy, reference)
                self._writer.append_window(
                    Window(start, codes, scales, weights, arrival, probes, whole)
                )
            if len(full) > 0:
                self._writer.append_rows(*full.arrays(self._spec))
            self._writer.commit()

        full.written = self._background.submit(write)
        if self._spare.written is not None:
            self._spare.written.exception()
        self._spare.clear()
        self._buffer, self._spare = self._spare, full
        self._new_windows = []

    def _close(self, status: str) -> None:
        self._is_open = False
        for hook in self._hooks:
            hook.remove()
        # What was logged for a step that never came is no part of the last one.
        pending = self._pending if status == "complete" and self._step > 0 else {}

        def write() -> None:
            if pending:
                last = {name: float(value) for name, value in pending.items()}
                self._writer.amend_last(last)
            self._writer.write_final(self._read_parameters, status=status)
            self._writer.commit()

        try:
            self._submit_rows()
            self._background.wait()
            self._background.submit(write)
        finally:
            try:
                self._background.close()
            finally:
                self._writer.close()

    def _read_parameters(self, elements: slice) -> npt.NDArray[Any]:
        return to_numpy(self._tracker.parameters(elements))

    def _learning_rates(self) -> dict[str, Scalar]:
        rates = {}
        for i, group in enumerate(self._optimizer.param_groups):
            if "lr" in group:
                rates[f"lr_{i}" if i else "lr"] = _scalar("lr", group["lr"])
        return rates

    def _new_buffer(self) -> RowBuffer:
        return RowBuffer(measured=self._tracker.allocate(self._capacity))

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("The recorder is closed; nothing more can be recorded.")


RESERVED: Final = frozenset(DESCRIPTIONS) | {
    *("step", "epoch", "iteration", "window", "layer", "basis")
}
"""Names that `Recorder.log` refuses."""


def _as_int(number: SupportsIndex | None) -> int | None:
    return None if number is None else index(number)


def _scalar(name: str, value: object) -> Scalar:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name!r} must be one number, got a tensor of shape "
                f"{tuple(value.shape)}. Log its mean, or several names."
            )
        if not value.is_complex():
            return value.detach().clone()
    elif isinstance(value, (int, float, np.floating, np.integer, np.bool_)):
        return float(value)
    raise TypeError(
        f"{name!r} must be a real number or a tensor of one, got {value!r}."
    )


def _trained_parameters(
    model: nn.Module, optimizer: Optimizer
) -> dict[str, nn.Parameter]:
    """Return the model's parameters that the optimizer holds, by name."""
    named = dict(model.named_parameters())
    if not named:
        raise ValueError("The model has no parameters; there is nothing to record.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = len(held - {id(p) for p in named.values()})
    if foreign:
        raise ValueError(
            f"{foreign} of the {len(held)} tensors that the optimizer holds are not "
            "parameters of the model. Give the recorder the model that contains all of "
            "them, and make the optimizer after the model has its final form."
        )
    parameters = {name: p for name, p in named.items() if id(p) in held}
    is_wrapper: Any = is_traceable_wrapper_subclass
    if wrapped := [name for name, p in parameters.items() if is_wrapper(p)]:
        raise NotImplementedError(
            f"{len(wrapped)} parameters, {wrapped[0]!r} among them, are of the kind "
            f"{type(parameters[wrapped[0]]).__name__}, whose elements lie elsewhere. "
            "Sharded parameters are not recorded: record an unsharded model."
        )
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1:
        raise NotImplementedError(
            f"The parameters lie on {len(devices)} devices, {sorted(map(str, devices))}; "
            "the recorder needs them on one."
        )
    if complex_names := [name for name, p in parameters.items() if p.is_complex()]:
        raise NotImplementedError(
            f"Complex parameters are not recorded: {complex_names}. Store their real and "
            "imaginary parts as two parameters."
        )
    return parameters
