"""Recognise a target that is an iterate of the run, such as a checkpoint of one of its steps."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import table_columns
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]

RTOL: Final = 2e-5
"""Difference of recorded float32 products of equal vectors, relative to their norms."""

N_LAYERS: Final = 4
"""Number of neighbouring layers that are compared."""

N_WINDOWS: Final = 4
"""Number of windows whose steps are compared: those whose anchors are closest to the target."""

MAX_ELEMENTS: Final = 1 << 22
"""Largest number of elements that are compared."""


def on_path(run: Run, target: Target) -> Target:
    """Return the target, with the step whose iterate it is if it was given from elsewhere."""
    if target.at is not None and target.at[0].location == run.location:
        return target
    step = step_on_path(run, target)
    if step is None:
        return target
    return replace(
        target,
        note=f"{target.note}, the iterate before step {step} of the run",
        identity=f"{target.identity}, step {step}",
        at=(run, step),
    )


def step_on_path(run: Run, target: Target) -> int | None:
    """Return the step before which the parameters are the target; None if none is found."""
    # The rows have norms of x - r and its product with r by layer, which are compared with those
    # of x* - r in a few small layers. Nothing but the anchors of these layers is read.
    steps = run.stored.step_rows
    starts = steps.starts[steps.starts < steps.n_rows]
    layers = _compared_layers(run, len(starts))
    if layers is None:
        return None
    elements = _elements(run, layers)
    point = np.asarray(target.read(elements), np.float64)
    norms = np.full((len(starts), len(layers)), np.nan)
    products, anchor_sq = np.full_like(norms, np.nan), np.full_like(norms, np.nan)
    buffers = [np.empty(len(point), run.stored.anchors.dtype) for _ in range(2)]
    bounds = run.layout.offsets[layers] - elements.start
    windows = range(len(starts))
    anchors = run.stored.anchors.decode_each(windows, elements, buffers)
    for c, anchor in zip(windows, anchors, strict=True):
        r = anchor.astype(np.float64)
        v = point - r
        norms[c], products[c], anchor_sq[c] = (
            np.add.reduceat(product, bounds) for product in (v * v, v * r, r * r)
        )
    distances = np.where(np.isfinite(norms).all(1), norms.sum(1), np.inf)
    for c in np.argsort(distances)[:N_WINDOWS]:
        if not np.isfinite(distances[c]):
            break
        if distances[c] == 0:
            return int(starts[c])
        stop = starts[c + 1] if c + 1 < len(starts) else steps.n_rows
        rows = slice(int(starts[c]), int(stop))
        same = _same(run, rows, layers, norms[c], products[c], anchor_sq[c])
        if same.any():
            return int(steps.step_numbers[rows][same][0])
    return None


def _same(
    run: Run,
    rows: slice,
    layers: npt.NDArray[np.int64],
    norms: FloatArray,
    products: FloatArray,
    anchor_sq: FloatArray,
) -> npt.NDArray[np.bool_]:
    """Return which rows have the products of the target with their anchor, (step,)."""
    columns = table_columns(run.spec)
    tables = run.stored.step_rows.rows("tables", rows)[:, layers].astype(np.float64)
    squares = tables[..., columns["displacement_sq"].start]
    scale = np.maximum(squares, norms)
    is_equal = abs(squares - norms) <= RTOL * scale
    # A layer that does not move says nothing.
    n_equations = (squares > 0).sum(-1)
    if run.spec.basis:
        dots = tables[..., columns["displacement_dot_basis"].start]
        is_equal &= abs(dots - products) <= RTOL * np.sqrt(scale * anchor_sq)
        n_equations = n_equations + ((squares > 0) & (anchor_sq > 0)).sum(-1)
    found: npt.NDArray[np.bool_] = is_equal.all(-1) & (n_equations >= 2)
    return found


def _compared_layers(run: Run, n_windows: int) -> npt.NDArray[np.int64] | None:
    """Return the neighbouring layers with the fewest elements that the run moves."""
    steps = run.stored.step_rows
    if not n_windows:
        return None
    # In the last rows, far from their anchor.
    last = steps.rows("tables", slice(steps.n_rows - 1, steps.n_rows))[0]
    column = table_columns(run.spec)["displacement_sq"].start
    moved = np.flatnonzero(last[:, column] > 0)
    groups = [moved[i : i + N_LAYERS] for i in range(max(1, len(moved) - N_LAYERS + 1))]
    groups = [
        np.arange(group[0], group[-1] + 1) if len(group) else group for group in groups
    ]
    n_elements = [
        (e := _elements(run, group)).stop - e.start if len(group) else MAX_ELEMENTS + 1
        for group in groups
    ]
    smallest = int(np.argmin(n_elements))
    return groups[smallest] if n_elements[smallest] <= MAX_ELEMENTS else None


def _elements(run: Run, layers: npt.NDArray[np.int64]) -> slice:
    """Return the elements of neighbouring layers in the flat vector, whole blocks."""
    start = run.layout.offsets[layers[0]]
    stop = run.layout.offsets[layers[-1]] + BLOCK * run.layout.blocks[layers[-1]]
    return slice(int(start), int(stop))
