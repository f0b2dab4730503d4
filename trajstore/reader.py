"""Store in, lazy datasets and parameter vectors out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from filelock import FileLock, Timeout

from trajstore import deltas
from trajstore.layout import BLOCK, Layout
from trajstore.probes import Probes
from trajstore.root_document import root_problems
from trajstore.schema import (
    DESCRIPTIONS,
    KEYFRAME_EVERY,
    LAYER,
    LOCK,
    STEP,
    RunSpec,
    SchemaError,
    table_columns,
)
from trajstore.sketch import Sketch

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

CHUNKS: Final = 32
"""Chunks of rows that a run keeps; 2 MB each."""

VECTOR_PARTS: Final = 4
"""Parts of iterates that a run keeps; 16 MB each in the analyses."""

DECODED_PARTS: Final = 16
"""Parts of references that a run keeps decoded; 16 MB each in the analyses."""


@dataclass(frozen=True, slots=False, eq=False)
class Run:
    """A recorded run, as it stood when it was opened.

    Open one with `open_run`; open it again to see what has been recorded since.

    Attributes
    ----------
    path : pathlib.Path
        Directory of the store.
    group : zarr.Group
        The store, read-only.
    is_written : bool
        Whether a process held the store's lock.
    """

    path: Path
    group: zarr.Group
    is_written: bool

    def __repr__(self) -> str:
        return (
            f"<trajstore.Run {str(self.path)!r}: {self.n_steps} steps, "
            f"{self.layout.n_params} parameters, {self.status}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Run, (self.path, self.group, self.is_written)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """What the store says of itself, decoded JSON."""
        return self.group.attrs.asdict()

    @cached_property
    def spec(self) -> RunSpec:
        """What was known when the recording began."""
        return RunSpec.from_json(self.attributes["spec"])

    @cached_property
    def layout(self) -> Layout:
        """Places of the parameter tensors in flat vectors."""
        return Layout(self.spec.names, self.spec.shapes)

    @property
    def status(self) -> str:
        """How the run ended: ``running``, ``complete``, ``failed`` or ``interrupted``.

        A run has failed if it was closed after an exception, and was interrupted if it
        was killed: nobody writes to the store any more, and it was never closed.
        """
        status: str = self.attributes["status"]
        return "interrupted" if status == "running" and not self.is_written else status

    @property
    def n_steps(self) -> int:
        """Number of recorded optimizer steps."""
        return int(self.array("epoch").shape[0])

    @property
    def n_epochs(self) -> int:
        """Number of epochs that have begun."""
        return int(self.array("epoch")[-1]) + 1 if self.n_steps else 0

    @property
    def n_windows(self) -> int:
        """Number of windows, each with a reference point."""
        return int(self.array("references/start").shape[0])

    @property
    def has_final(self) -> bool:
        """Whether the run was closed, so that its last iterate is stored."""
        return "final" in self._arrays

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the stored snapshots."""
        return tuple(self.attributes["snapshots"])

    @cached_property
    def steps(self) -> xr.Dataset:
        """Scalars and tables of every step.

        Returns
        -------
        xarray.Dataset
            Lazy: values are read where they are used. Dimension ``step`` with the
            coordinates ``step``, ``epoch``, ``iteration`` and ``window``; one float64
            variable per scalar, NaN where it was not logged, and float32 tables with
            the further dimension ``layer``, whose labels are the parameter names, and
            ``basis``.
        """
        stored = xr.open_zarr(self.path, chunks=None, consolidated=True)
        # The store may have grown since this run was opened.
        stored = stored.isel(step=slice(self.n_steps))
        variables = {
            name: stored["scalars"].isel(metric=i, drop=True)
            for i, name in enumerate(self.attributes["metrics"])
        }
        for name, columns in table_columns(self.spec).items():
            table = stored["tables"].isel(quantity=columns)
            variables[name] = (
                table.rename(quantity="basis")
                if name.endswith("_basis")
                else table.isel(quantity=0, drop=True)
            )
        for name, variable in variables.items():
            long_name, units = DESCRIPTIONS.get(name, (name, "1"))
            variable.attrs = {"long_name": long_name, "units": units}
        coordinates = {
            STEP: np.arange(self.n_steps),
            LAYER: list(self.spec.names),
            **{
                name: stored[name].variable for name in ("epoch", "iteration", "window")
            },
        }
        dataset = xr.Dataset(variables).assign_coords(coordinates)
        return dataset.assign_attrs(status=self.status, path=str(self.path))

    @cached_property
    def windows(self) -> xr.Dataset:
        """What is known of every window besides its reference.

        Returns
        -------
        xarray.Dataset
            Loaded. ``start``, the first optimizer step, and ``stop``, the one after the
            last; ``weights`` (window, layer), the weights of the sketch; ``probes``
            (window, probe), the probes of the reference.
        """
        start = self.array("references/start")[:]
        stop = np.minimum(np.append(start[1:], self.n_steps), self.n_steps)
        return xr.Dataset(
            {
                "start": ("window", start),
                "stop": ("window", np.maximum(stop, start)),
                "weights": (("window", LAYER), self.array("references/weights")[:]),
                "probes": (("window", "probe"), self.array("references/probes")[:]),
            },
            coords={"window": np.arange(len(start)), LAYER: list(self.spec.names)},
        )

    @cached_property
    def epoch_windows(self) -> dict[int, int]:
        """Windows that begin with an epoch, by epoch."""
        start = self.windows["start"].values
        start = start[start < self.n_steps]
        epochs = self.array("epoch")[:][start]
        begins = self.array("iteration")[:][start] == 0
        return {int(epochs[c]): int(c) for c in np.flatnonzero(begins)}

    @cached_property
    def sketch(self) -> Sketch:
        """How the gradients of the first window were sketched."""
        spec = self.spec
        return Sketch(size=self.layout.size, bits=spec.sketch_bits, seed=spec.seed)

    def sketch_of(self, window: int) -> Sketch:
        """Return how the gradients of a window were sketched."""
        return replace(self.sketch, window=window)

    @cached_property
    def probes(self) -> Probes:
        """How gradients and displacements were probed."""
        return Probes(fold=self.sketch.fold, count=self.spec.probes)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return dict(self.group.members(max_depth=None))

    def array(self, name: str) -> Any:
        """Return an array of the store by its path in it, a `zarr.Array`."""
        return self._arrays[name]

    def rows(self, name: str, rows: slice) -> Array:
        """Read rows of an array with one row for each step or window.

        Parameters
        ----------
        name : str
            Path of the array in the store.
        rows : slice
            Which rows. Those of the same chunks are kept for the next call.

        Returns
        -------
        numpy.ndarray
            Read-only.
        """
        n = self.array(name).chunks[0]
        chunks = range(rows.start // n, -(-rows.stop // n))
        if len(chunks) != 1:
            parts = [self._chunk(name, c) for c in chunks]
            around = np.concatenate(parts) if parts else self.array(name)[:0]
        else:
            around = self._chunk(name, chunks[0])
        first = chunks.start * n
        return around[rows.start - first : rows.stop - first]

    @cached_property
    def _chunk(self) -> Callable[[str, int], Array]:
        return lru_cache(maxsize=CHUNKS)(self._read_chunk)

    def _read_chunk(self, name: str, index: int) -> Array:
        array = self.array(name)
        n = array.chunks[0]
        values: Array = array[index * n : (index + 1) * n]
        values.flags.writeable = False
        return values

    def vector(self, name: str, elements: slice) -> FloatArray:
        """Read a part of an iterate; the last few parts are kept for the next call.

        Parameters
        ----------
        name : str
            Path of the array in the store: ``final``, ``snapshots/0`` and so on.
        elements : slice
            Part of the flat vector.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(part,)``, read-only.
        """
        return self._part(name, elements.start, elements.stop)

    @cached_property
    def _part(self) -> Callable[[str, int, int], FloatArray]:
        return lru_cache(maxsize=VECTOR_PARTS)(self._read_part)

    def _read_part(self, name: str, start: int, stop: int) -> FloatArray:
        values: FloatArray = self.array(name)[start:stop]
        values.flags.writeable = False
        return values

    def reference(self, window: int, elements: slice) -> FloatArray:
        """Decode a part of the reference point of a window.

        Parameters
        ----------
        window : int
            Which window. Cheap where those before were decoded lately: a few are kept.
        elements : slice
            Part of the flat vector, between multiples of `trajstore.layout.BLOCK`.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(part,)``, read-only: the vector that training computed
            with, bit for bit.
        """
        return self._decoded(window, elements.start, elements.stop)

    @cached_property
    def _decoded(self) -> Callable[[int, int, int], FloatArray]:
        return lru_cache(maxsize=DECODED_PARTS)(self._decode)

    def _decode(self, window: int, start: int, stop: int) -> FloatArray:
        is_keyframe = window % KEYFRAME_EVERY == 0
        before = None if is_keyframe else self._decoded(window - 1, start, stop)
        reference = np.empty(stop - start, np.float32)
        self._decode_after(before, window, slice(start, stop), out=reference)
        reference.flags.writeable = False
        return reference

    def references(
        self, windows: range, elements: slice, buffers: Sequence[FloatArray]
    ) -> Iterator[FloatArray]:
        """Decode a part of the reference points of successive windows.

        Parameters
        ----------
        windows : range
            Which windows. What lies between the keyframe before and the first of them
            has to be decoded as well.
        elements : slice
            Part of the flat vector, between multiples of `trajstore.layout.BLOCK`.
        buffers : sequence of numpy.ndarray
            At least two, float32 of shape ``(part,)``, to be used in turn.

        Yields
        ------
        numpy.ndarray
            What `reference` returns, window by window, each in the next buffer.
        """
        before = None
        for window in range(
            windows.start - windows.start % KEYFRAME_EVERY, windows.stop
        ):
            reference = buffers[window % len(buffers)]
            self._decode_after(before, window, elements, out=reference)
            if window >= windows.start:
                yield reference
            before = reference

    def _decode_after(
        self,
        before: FloatArray | None,
        window: int,
        elements: slice,
        *,
        out: FloatArray,
    ) -> None:
        """Decode a part of a reference, given the one before it."""
        keyframe, since = divmod(window, KEYFRAME_EVERY)
        if since == 0:
            out[:] = self.array("references/keyframes")[keyframe, elements]
            return
        assert before is not None
        codes = self.array("references/codes")[window, elements]
        row = self.rows("references/scales", slice(window, window + 1))
        scales = row[0, elements.start // BLOCK : elements.stop // BLOCK]
        deltas.move(before, codes, scales, out=out)


def open_run(path: str | Path) -> Run:
    """Open a trajectory store for reading, also while it is being written.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store.

    Returns
    -------
    Run
        What was committed at this moment.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    SchemaError
        If it is not a trajectory store, or one of another format version, or if parts
        of it are missing; all problems are listed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no trajectory store at {path}.")
    # Asked in this order, a run that is closed meanwhile does not look interrupted.
    is_written = _is_locked(path / LOCK)
    try:
        root = json.loads((path / "zarr.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SchemaError(
            [f"{path}: not a trajectory store; it has no zarr.json."]
        ) from None
    except ValueError as error:
        raise SchemaError(
            [f"{path / 'zarr.json'}: truncated or damaged ({error})."]
        ) from error
    if problems := root_problems(root):
        raise SchemaError([f"{path}: {problem}" for problem in problems])
    group = zarr.open_group(path, mode="r", use_consolidated=True)
    return Run(path, group, is_written)


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    if not path.exists():
        return False
    try:
        # Another reader may be asking just now; a writer keeps the lock.
        with FileLock(path, timeout=0.2, poll_interval=0.02):
            return False
    except (Timeout, PermissionError):
        return True
