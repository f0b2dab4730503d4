"""Arrays in, store out: what a recorded run looks like on disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from trajstore.commit import Commits
from trajstore.layout import BLOCK, Layout
from trajstore.rotation import n_blocks
from trajstore.schema import (
    FORMAT,
    FORMAT_VERSION,
    LOCK,
    RunSpec,
    n_metric_columns,
    step_arrays,
    vector_array,
    window_arrays,
)

Array = npt.NDArray[Any]


class Window(NamedTuple):
    """A window as the store keeps it.

    Attributes
    ----------
    start : int
        First optimizer step.
    codes, scales : numpy.ndarray
        int8 (param,) and float32 (block,): the coded difference to the reference before.
    weights : numpy.ndarray
        float32, (layer,).
    arrival : numpy.ndarray
        float32, (layer, coordinate).
    probes : numpy.ndarray
        float64, (probe,); empty if the recording is exact.
    keyframe : numpy.ndarray or None
        The decoded reference, float32 (param,), in every `KEYFRAME_EVERY`-th window.
    """

    start: int
    codes: Array
    scales: Array
    weights: Array
    arrival: Array
    probes: Array
    keyframe: Array | None


class Writer:
    """Writes one run; not thread-safe.

    Parameters
    ----------
    path : pathlib.Path
        Directory of the store; created.
    spec : RunSpec
        What is recorded.

    Raises
    ------
    FileExistsError
        If `path` exists.
    """

    def __init__(self, path: Path, spec: RunSpec) -> None:
        if path.exists():
            raise FileExistsError(
                f"{path} exists already. A recording never overwrites another: choose "
                "a new path, or delete the old one first."
            )
        size = Layout(spec.names, spec.shapes).size
        self._commits = Commits(path)
        # Held while the run goes on: a reader tells a running from a killed one by it.
        # Whichever thread closes the recorder may release it.
        self._lock = FileLock(path / LOCK, thread_local=False)
        self._lock.acquire(blocking=False)
        self._commits.declare(
            step_arrays(
                spec,
                size=size,
                n_metrics=n_metric_columns(0),
                n_blocks=n_blocks(spec.sketch_bits),
            )
        )
        self._commits.declare(window_arrays(spec, size=size, block=BLOCK))
        self._size = size
        self._metrics: list[str] = []
        self._snapshots: dict[str, dict[str, object]] = {}
        self._n_columns = n_metric_columns(0)
        self._attributes: dict[str, object] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "status": "running",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "spec": spec.to_json(),
            "metrics": self._metrics,
            "snapshots": self._snapshots,
        }

    def append_rows(
        self, rows: Mapping[str, Array], scalars: Sequence[Mapping[str, float]]
    ) -> None:
        """Write optimizer steps.

        Parameters
        ----------
        rows : mapping from str to numpy.ndarray
            Every array of `trajstore.schema.step_arrays` but the scalars, with the same
            number of rows.
        scalars : sequence of mapping from str to float
            The scalars of each row; a name that a row lacks reads as NaN.
        """
        self._register(name for row in scalars for name in row)
        table = np.full((len(scalars), self._n_columns), np.nan)
        for i, row in enumerate(scalars):
            for name, value in row.items():
                table[i, self._metrics.index(name)] = value
        self._commits.append({**rows, "scalars": table})

    def amend_last(self, scalars: Mapping[str, float]) -> None:
        """Set scalars of the last row."""
        self._register(scalars)
        columns = {self._metrics.index(name): v for name, v in scalars.items()}
        self._commits.amend_last("scalars", columns)

    def append_window(self, window: Window) -> None:
        """Write the start of a window."""
        if window.keyframe is not None:
            self._commits.append_large("references/keyframes", window.keyframe)
        self._commits.append_large("references/codes", window.codes)
        self._commits.append(
            {
                "references/start": np.array([window.start]),
                "references/scales": window.scales[None],
                "references/weights": window.weights[None],
                "references/arrival": window.arrival[None],
                "references/probes": window.probes[None],
            }
        )

    def write_snapshot(
        self, name: str, step: int, read: Callable[[slice], Array]
    ) -> None:
        """Write an iterate in full precision, taken before optimizer step `step`."""
        assert name not in self._snapshots
        key = f"snapshots/{len(self._snapshots)}"
        self._write_vector(key, read)
        self._snapshots[name] = {"array": key, "step": step}

    def write_final(self, read: Callable[[slice], Array], *, status: str) -> None:
        """Write the last iterate and say how the run ended."""
        self._write_vector("final", read)
        self._attributes["status"] = status

    def _write_vector(self, key: str, read: Callable[[slice], Array]) -> None:
        self._commits.write_vector(key, vector_array(self._size), self._size, read)

    def close(self) -> None:
        """Let others see that nobody writes any more."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def commit(self) -> None:
        """Make everything written so far visible to readers."""
        self._commits.commit(self._attributes)

    def _register(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._metrics:
                self._metrics.append(name)
        columns = n_metric_columns(len(self._metrics))
        if columns > self._n_columns:
            self._commits.widen("scalars", columns)
            self._n_columns = columns
