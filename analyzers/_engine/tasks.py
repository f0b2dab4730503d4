"""The analysis as a graph of a few large tasks over steps and rows of parameters.

Two passes go over the references: the inner products of all vectors, for the fit of
every window, and then what the steps share with what the fits leave. A task of the first
covers the windows of one keyframe and some elements; one of the second covers a chunk of
steps and some rows of the fold. Where a task of the second holds all parameters, it does
the work of the first as well. Tasks hold a few parts of vectors and some decoded
sketches, whatever the length of the run and the number of its parameters; between them
go only sums. Dask's dashboard shows tasks by the names of these functions.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed, delayed

from analyzers._engine.arrays.geometry import QUANTITIES
from analyzers._engine.exact import exact_sums, finish_exact
from analyzers._engine.sweep import slices
from analyzers._engine.windows import finish, fit, inner_products, project, windows_of
from trajstore.format.arrays import KEYFRAME_EVERY
from trajstore.reading.run import Run
from trajstore.reading.target import Target

PART: Final = 1 << 21
"""Elements that a task of the first pass works on: whole chunks of the store, and few
enough for several workers to be done at about the same time."""

ROW_PART: Final = 1 << 24
"""The same for the second pass: sketches are decoded anew for each part."""

NAMES: Final = [name for q in QUANTITIES for name in (q, f"{q}_stderr")]
"""What the tasks compute, in this order."""


def geometry_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    *,
    layers: bool,
    weight_decay: float,
) -> list[Delayed]:
    """Make the tasks that compute `path_geometry` of chunks of steps.

    Parameters
    ----------
    run : Run
        The recorded run.
    target : Target
        The point x*.
    chunks : sequence of slice
        Which steps.
    layers : bool
        Whether tensors are told apart.
    weight_decay : float
        Times the parameters is added to the gradient.

    Returns
    -------
    list of dask.delayed.Delayed
        For each chunk float64 of shape ``(quantity, step)`` or
        ``(quantity, step, layer)``, in the order of `NAMES`.
    """
    tasks = _exact_tasks if run.spec.exact else _sketch_tasks
    return [
        task(stack, done) for done in tasks(run, target, chunks, layers, weight_decay)
    ]


def _sketch_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    layers: bool,
    weight_decay: float,
) -> Iterator[Delayed]:
    n_rows = run.stored.sketch.fold.n_rows
    # Where a basis reaches far back, more references are held at the same time.
    reach = 1 << max(0, run.spec.basis - 2)
    n_parts = -(-run.layout.size * (3 + reach) // (5 * ROW_PART))
    row_parts = slices(slice(0, n_rows), max(1, -(-n_rows // n_parts)))
    is_whole = len(row_parts) == 1
    fits: dict[int, Delayed] = {}
    for steps in chunks:
        windows = windows_of(run, steps)
        groups = sorted({c // KEYFRAME_EVERY for c in windows if not is_whole})
        for group in groups:
            if group not in fits:
                fits[group] = _fit_task(run, target, group)
        fitted = [fits[group] for group in groups]
        parts = [
            task(partial(project, run, target, steps, rows, layers=layers), fitted)
            for rows in row_parts
        ]
        yield task(
            partial(finish, run, steps, layers=layers, weight_decay=weight_decay), parts
        )


def _fit_task(run: Run, target: Target, group: int) -> Delayed:
    """Fit the windows that begin with one keyframe."""
    first = group * KEYFRAME_EVERY
    windows = range(first, min(first + KEYFRAME_EVERY, run.n_windows))
    parts = [
        task(partial(inner_products, run, target, windows, elements))
        for elements in slices(slice(0, run.layout.size), PART)
    ]
    return task(partial(fit, windows), parts)


def _exact_tasks(
    run: Run,
    target: Target,
    chunks: Sequence[slice],
    layers: bool,
    weight_decay: float,
) -> Iterator[Delayed]:
    elements = slices(slice(0, run.layout.size), PART)
    for steps in chunks:
        parts = [
            task(
                partial(exact_sums, run, target, steps, part, weight_decay=weight_decay)
            )
            for part in elements
        ]
        yield task(partial(finish_exact, layers=layers), parts)


def stack(quantities: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Put quantities into one array, in the order of `NAMES`."""
    return np.stack([quantities[name] for name in NAMES])


def task(function: Any, *arguments: Any) -> Delayed:
    """Delay a call; Dask's dashboard shows it by the name of the function."""
    plain = function.func if isinstance(function, partial) else function
    name = f"{plain.__name__.strip('_')}-{uuid4().hex}"
    task: Delayed = delayed(function, traverse=False)(*arguments, dask_key_name=name)
    return task
