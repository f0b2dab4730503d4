"""Turn an analysis into a graph of a few large tasks over ranges of steps and parameters.

Two passes read the anchors. The first computes inner products of all vectors, to fit
every window: a task covers the windows of one keyframe and a range of elements. The second
multiplies the gradients of the steps with the residuals of the fits: a task covers a chunk
of steps and a range of rows of the fold. If a task covers all rows, it also does the work
of the first pass.

The memory of a task is bounded: it holds parts of a few vectors and one batch of decoded
sketches, however long the run and however many its parameters. Only sums pass between
tasks. Dask's dashboard shows tasks by the names of their functions.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed, delayed

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    FROM_DISTANCE,
    QUANTITIES,
    USES_SUM,
)
from analyzers._engine.at_target import is_at, step_of_target
from analyzers._engine.combine import combine
from analyzers._engine.exact import combine_exact, exact_sums
from analyzers._engine.measured_window import needed_windows
from analyzers._engine.rules import Parts, parts_of
from analyzers._engine.slices import slices
from analyzers._engine.vectors.fit import fit, inner_products, longest_steps
from analyzers._engine.vectors.project import project
from analyzers._engine.vectors.walk import window_steps
from trajstore.format.arrays import KEYFRAME_EVERY
from trajstore.reading.run import Run
from trajstore.reading.target import Target

PART: Final = 1 << 21
"""Elements per task of the first pass: whole chunks of the store, and small enough that
several workers finish at about the same time."""

ROW_PART: Final = 1 << 24
"""Elements per task of the second pass: many, because each task decodes whole sketches."""

SUFFIXES: Final = ("", "_stderr", FROM_DISTANCE, COVARIANCE)

NAMES: Final = [*(f"{q}{suffix}" for q in QUANTITIES for suffix in SUFFIXES), USES_SUM]
"""Names of the computed arrays, in the order of the first axis of results."""


def geometry_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    *,
    layers: bool,
    weight_decay: float,
) -> list[Delayed]:
    """Return a task per chunk of steps; results are float64 (quantity, step[, layer])."""
    # Quantities are in the order of `NAMES`.
    tasks = _exact_tasks if run.spec.exact else _sketch_tasks
    return [
        task(stack, quantities)
        for quantities in tasks(run, target, chunks, layers, weight_decay)
    ]


def projection_tasks(
    run: Run, target: Target, covering: Sequence[slice], parts: Parts
) -> list[list[Delayed]]:
    """Return tasks that `project` ranges of steps, in order; one for every range of rows."""
    n_rows = run.stored.sketch.fold.n_rows
    # A basis that reaches further back keeps more anchors in memory, so parts are smaller.
    reach = 1 << max(0, run.spec.basis - 2)
    n_parts = -(-run.layout.size * (3 + reach) // (5 * ROW_PART))
    row_parts = slices(slice(0, n_rows), max(1, -(-n_rows // n_parts)))
    is_whole = len(row_parts) == 1
    fits: dict[int, Delayed] = {}
    projected = []
    for steps in covering:
        windows = window_steps(run, steps)
        groups = sorted({c // KEYFRAME_EVERY for c in windows if not is_whole})
        for group in groups:
            if group not in fits:
                fits[group] = _fit_task(run, target, group)
        fitted = [fits[group] for group in groups]
        projected.append(
            [
                task(partial(project, run, target, steps, rows, parts=parts), fitted)
                for rows in row_parts
            ]
        )
    return projected


def _sketch_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    layers: bool,
    weight_decay: float,
) -> Iterator[Delayed]:
    parts, covering = parts_of(run, layers=layers), _covering(run, chunks)
    target_step = step_of_target(run, target)
    projected = projection_tasks(run, target, covering, parts)
    for steps in chunks:
        # Windows are combined as a whole, and may overlap several chunks.
        needed_steps = list(needed_windows(run, steps).values())
        needed = [
            i
            for i, chunk in enumerate(covering)
            if chunk.stop > needed_steps[0].start
            and chunk.start < needed_steps[-1].stop
        ]
        near = [covering[i] for i in needed]
        yield task(
            partial(
                combine,
                run,
                steps,
                near,
                parts=parts,
                weight_decay=weight_decay,
                target_step=target_step,
            ),
            [projected[i] for i in needed],
        )


def _covering(run: Run, chunks: Sequence[slice]) -> list[slice]:
    """Extend consecutive chunks by the steps before and after them that they depend on."""
    needed = [
        part
        for steps in (chunks[0], chunks[-1])
        for part in needed_windows(run, steps).values()
    ]
    start, stop = min(s.start for s in needed), max(s.stop for s in needed)
    whole = [slice(start, chunks[0].start), *chunks, slice(chunks[-1].stop, stop)]
    return [steps for steps in whole if steps.start < steps.stop]


def _fit_task(run: Run, target: Target, group: int) -> Delayed:
    """Return the task that fits the windows of one keyframe."""
    first = group * KEYFRAME_EVERY
    windows = range(first, min(first + KEYFRAME_EVERY, run.n_windows))
    parts = [
        task(partial(inner_products, run, target, windows, elements))
        for elements in slices(slice(0, run.layout.size), PART)
    ]
    return task(partial(fit, windows, longest_steps(run, windows)), parts)


def _exact_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    layers: bool,
    weight_decay: float,
) -> Iterator[Delayed]:
    elements = slices(slice(0, run.layout.size), PART)
    target_step = step_of_target(run, target)
    for steps in chunks:
        parts = [
            task(
                partial(exact_sums, run, target, steps, part, weight_decay=weight_decay)
            )
            for part in elements
        ]
        at = is_at(run, steps, target_step)
        yield task(partial(combine_exact, layers=layers, at=at), parts)


def stack(quantities: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Stack quantities into one array, in the order of `NAMES`."""
    return np.stack([quantities[name] for name in NAMES])


def task(function: Any, *arguments: Any) -> Delayed:
    """Delay a call, under a key that begins with the name of the function."""
    plain = function.func if isinstance(function, partial) else function
    name = f"{plain.__name__.strip('_')}-{uuid4().hex}"
    task: Delayed = delayed(function, traverse=False)(*arguments, dask_key_name=name)
    return task
