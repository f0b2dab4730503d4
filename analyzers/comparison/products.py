"""Inner products and probes of the whole iterates of several runs, in Dask tasks.

Each task covers a part of the parameters, and sums add up the parts.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed

from analyzers._engine.slices import SEGMENT, slices
from analyzers._engine.tasks import PART, task
from analyzers.comparison.stored_iterates import StoredIterate, read_iterates
from trajstore.format.layout import BLOCK, Layout
from trajstore.reading.run import Run
from trajstore.sketch.probes import Probes

FloatArray = npt.NDArray[np.floating[Any]]

VALUES: Final = 1 << 26
"""Largest number of values that a task holds: iterates times elements."""


class Products(NamedTuple):
    """Products of n iterates and, as the last one, of the zero vector."""

    # All vectors are relative to an origin o near the first iterate of the first run, so that
    # little cancels in differences. Values of an iterate that is damaged or not finite are NaN.
    gram: FloatArray  # <x_i - o, x_j - o>, float64 (n + 1, n + 1)
    probes: dict[int, FloatArray]  # of x_i - o, by run, float64 (n + 1, probe)


def products_task(
    runs: Sequence[Run],
    iterates: Sequence[Sequence[StoredIterate]],
    probed: Sequence[int] = (),
) -> Delayed:
    """Return the task of the `Products`, with the probes of the runs `probed`."""
    n = sum(map(len, iterates)) + 1
    length = max(BLOCK, min(PART, VALUES // n // BLOCK * BLOCK))
    parts = [
        task(partial(products_of_part, runs, iterates, probed, elements))
        for elements in slices(slice(0, runs[0].layout.size), length)
    ]
    return task(add_up, parts)


def products_of_part(
    runs: Sequence[Run],
    iterates: Sequence[Sequence[StoredIterate]],
    probed: Sequence[int],
    elements: slice,
) -> Products:
    """Sum the products over `elements`, which covers whole blocks."""
    n, length = sum(map(len, iterates)) + 1, elements.stop - elements.start
    vectors, origin, i = np.empty((n, length), np.float32), None, 0
    with np.errstate(invalid="ignore", over="ignore"):
        for run, listed in zip(runs, iterates, strict=True):
            for values in read_iterates(run, listed, elements):
                if origin is None:
                    origin = np.where(np.isfinite(values), values, np.float32(0))
                np.subtract(values, origin, out=vectors[i])
                i += 1
        assert origin is not None
        np.negative(origin, out=vectors[-1])
        gram = np.zeros((n, n))
        for part in slices(slice(0, length), SEGMENT):
            segment = vectors[:, part].astype(np.float64)
            gram += segment @ segment.T
        probes = {i: probe(runs[i], vectors, elements) for i in probed}
    return Products(gram, probes)


def add_up(parts: Sequence[Products]) -> Products:
    """Return the sums of the parts."""
    first = parts[0].probes
    return Products(
        np.sum([part.gram for part in parts], axis=0),
        {i: np.sum([part.probes[i] for part in parts], axis=0) for i in first},
    )


def probe_signature(run: Run) -> tuple[object, ...]:
    """Return what the random signs of a run's probes depend on, besides the layout."""
    probes = run.stored.probes
    return (probes.fold, probes.count, probes.is_shifted)


def probe(run: Run, vectors: FloatArray, elements: slice) -> FloatArray:
    """Return the probes of vectors that are 0 outside `elements`, float64 (vector, probe)."""
    probes, is_packed = run.stored.probes, run.stored.sketch.is_packed
    rows = [*_rows(probes, run.layout, elements, is_packed=is_packed)]
    result = np.empty((len(vectors), probes.count))
    for vector, out in zip(vectors, result, strict=True):
        folded = np.zeros(probes.fold.width)
        for part, columns, signs in rows:
            folded[columns] += vector[part] * signs
        out[:] = probes.of_folded(folded.astype(np.float32))
    return result


def _rows(
    probes: Probes, layout: Layout, elements: slice, *, is_packed: bool
) -> Iterator[tuple[slice, slice, FloatArray]]:
    """Yield parts of `elements`, each with its columns in a row of the fold and their signs."""
    width, row_signs = probes.fold.width, probes.row_signs
    columns = probes.fold.column_signs
    if is_packed:
        for offset, packed, size in zip(
            layout.offsets, layout.packed_offsets, layout.sizes, strict=True
        ):
            start = max(int(offset), elements.start)
            stop = min(int(offset + size), elements.stop)
            if start < stop:
                moved = slice(*(int(e - offset + packed) for e in (start, stop)))
                part = slice(start - elements.start, stop - elements.start)
                yield part, moved, row_signs[0] * columns[0, moved]
        return
    for row in range(elements.start // width, -(-elements.stop // width)):
        start, stop = (
            max(row * width, elements.start),
            min((row + 1) * width, elements.stop),
        )
        moved = slice(start - row * width, stop - row * width)
        part = slice(start - elements.start, stop - elements.start)
        yield part, moved, row_signs[row] * columns[row, moved]
