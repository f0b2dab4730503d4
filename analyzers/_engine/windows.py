"""What has to be computed of the windows of a run, in pieces that fit into memory.

A piece covers some elements of the parameters, or some steps, or both; pieces are added
up. Windows are gone through in order, since their references build on each other. Nothing
here knows Dask: `analyzers._engine.tasks` makes tasks of these functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.displacement_product import (
    Known,
    displacement_product,
    layer_products,
)
from analyzers._engine.arrays.geometry import (
    Estimate,
    Sampled,
    crowding,
    decayed,
    distance,
    geometry,
    sketch_variance,
)
from analyzers._engine.arrays.low_rank import regress
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.sweep import (
    SEGMENT,
    Around,
    past_windows,
    segments,
    slices,
    sweep,
)
from trajstore.format.arrays import table_columns
from trajstore.format.layout import BLOCK
from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run
from trajstore.reading.target import Target
from trajstore.sketch.sketch import Decoded, Sketch

FloatArray = npt.NDArray[np.floating[Any]]

STEP_BYTES: Final = 128 << 20
"""Decoded sketches that a task holds."""

ROWS: Final = 8
"""Rows of the fold whose energies are counted at once."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Window:
    """One window of a run, to be measured against a reference point x*.

    The vectors that matter in it are, in this order, the basis (the reference r and its
    displacements from earlier references, or nothing), v = x* - r, and the displacement to
    where the window ends.

    Attributes
    ----------
    run : Run
        The recorded run.
    index : int
        Which window.
    """

    run: Run
    index: int

    @property
    def rank(self) -> int:
        """Number of vectors in the basis."""
        return self.run.spec.basis

    @cached_property
    def sketch(self) -> Sketch:
        """How the gradients of this window were sketched."""
        return self.run.stored.sketch_of(self.index)

    @cached_property
    def weights(self) -> FloatArray:
        """Weights of the sketch by layer, float64."""
        weights = self.run.windows["weights"].values[self.index]
        return np.asarray(weights, np.float64)

    @cached_property
    def past(self) -> list[int]:
        """Windows of the earlier references of the basis."""
        return past_windows(self.index, self.rank)

    def tables(self, steps: slice) -> dict[str, FloatArray]:
        """Read the tables of some steps, float64 of shape (step, layer[, basis])."""
        tables = self.run.stored.rows("tables", steps).astype(np.float64)
        return {
            name: tables[..., columns if name.endswith("_basis") else columns.start]
            for name, columns in table_columns(self.run.spec).items()
        }


def windows_of(run: Run, steps: slice) -> dict[int, slice]:
    """Return the windows that some steps belong to, and which of the steps those are."""
    starts, stops = run.windows["start"].values, run.windows["stop"].values
    first = int(np.searchsorted(stops, steps.start, side="right"))
    last = int(np.searchsorted(starts, steps.stop, side="left"))
    parts = {
        c: slice(max(int(starts[c]), steps.start), min(int(stops[c]), steps.stop))
        for c in range(first, last)
    }
    return {c: part for c, part in parts.items() if part.start < part.stop}


def inner_products(
    run: Run, target: Target, windows: range, elements: slice
) -> FloatArray:
    """Inner products of the vectors of some windows over some elements.

    Parameters
    ----------
    run : Run
        The recorded run.
    target : Target
        The point x*.
    windows : range
        Which windows.
    elements : slice
        Between multiples of `BLOCK`.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(window, layer, rank + 2, rank + 2)``.
    """
    pieces = segments(run.layout, elements)
    with one_blas_thread():
        return np.stack(
            [
                _products(around, pieces, run)
                for _, around in sweep(run, target, windows, elements)
            ]
        )


def _products(
    around: Around, pieces: Sequence[tuple[int, slice]], run: Run
) -> FloatArray:
    """Inner products in one window, float64 of shape (layer, rank + 2, rank + 2)."""
    n = run.spec.basis + 2
    total = np.zeros((len(run.layout.names), n, n))
    scratch, doubles = np.empty((n, SEGMENT), np.float32), np.empty((n, SEGMENT))
    for layer, part in pieces:
        size = part.stop - part.start
        around.vectors(part, out=scratch[:, :size])
        vectors = doubles[:, :size]
        vectors[:] = scratch[:, :size]
        for i, vector in enumerate(vectors):
            total[layer, i, : i + 1] += vectors[: i + 1] @ vector
    return total + np.tril(total, -1).swapaxes(-1, -2)


class Fit(NamedTuple):
    """A window's inner products, and v on the basis, tensor by tensor.

    Attributes
    ----------
    products : numpy.ndarray
        float64, (layer, rank + 2, rank + 2).
    coefficients : numpy.ndarray
        float64, (layer, rank).
    """

    products: FloatArray
    coefficients: FloatArray


def fit(windows: range, parts: Sequence[FloatArray]) -> dict[int, Fit]:
    """Regress v on the basis in some windows, given the parts of the inner products."""
    products = np.sum(parts, axis=0)
    return {c: _regressed(one) for c, one in zip(windows, products, strict=True)}


def _regressed(products: FloatArray) -> Fit:
    rank = products.shape[-1] - 2
    return Fit(products, regress(products[:, :rank, :rank], products[:, :rank, rank]))


class Totals(NamedTuple):
    """Sums over elements of what is left of v beside the basis.

    Attributes
    ----------
    energy : numpy.ndarray
        |v / w|^2, float64, (layer,).
    crowd : numpy.ndarray
        The same with each element times the number of elements, of every tensor, that
        fall into its bucket of the fold, float64, (layer, layer).
    probes : numpy.ndarray
        Probes of v and of the displacement to the window's end, float64, (2, probe).
    layer_probes : numpy.ndarray
        Probes of v by tensor, float64, (layer, probe); without layers (0, probe).
    """

    energy: FloatArray
    crowd: FloatArray
    probes: FloatArray
    layer_probes: FloatArray


class Projected(NamedTuple):
    """What the steps of one window share with what is left of v, over some elements.

    Attributes
    ----------
    fitted : Fit
        The fit that v was left by.
    products : numpy.ndarray
        Estimates of <g, v>, float64, (step, layer), or (step, 1) without layers.
    totals : Totals
        Of v.
    """

    fitted: Fit
    products: FloatArray
    totals: Totals


def project(
    run: Run,
    target: Target,
    steps: slice,
    rows: slice,
    fits: Sequence[Mapping[int, Fit]],
    *,
    layers: bool,
) -> dict[int, Projected]:
    """Estimate <g, v> for some steps over some rows of the fold, window by window.

    Parameters
    ----------
    run : Run
        The recorded run.
    target : Target
        The point x*.
    steps : slice
        Which steps.
    rows : slice
        Rows of the fold.
    fits : sequence of mapping from int to Fit
        The fits of all windows that the steps belong to; none if the rows are all rows,
        so that the fits follow from what is read here.
    layers : bool
        Whether tensors are told apart.

    Returns
    -------
    dict from int to Projected
        By window.
    """
    fitted = {c: one for some in fits for c, one in some.items()}
    of_window = windows_of(run, steps)
    windows = range(min(of_window), max(of_window) + 1)
    width, layout = run.stored.sketch.fold.width, run.layout
    elements = slice(rows.start * width, min(rows.stop * width, layout.size))
    blocks = slice(elements.start // BLOCK, -(-elements.stop // BLOCK))
    whole_blocks = slice(blocks.start * BLOCK, blocks.stop * BLOCK)
    before = elements.start - whole_blocks.start
    inside = slice(before, before + elements.stop - elements.start)
    projected, pieces = {}, segments(layout, whole_blocks)
    # Made once: memory that is new costs more than what is computed in it.
    matrix = np.empty((rows.stop - rows.start, width), np.float32)
    buckets = np.empty((_steps_at_once(run, of_window), width), np.float32)
    with one_blas_thread():
        for c, around in sweep(run, target, windows, whole_blocks):
            if c in of_window:
                window = Window(run=run, index=c)
                one = fitted[c] if fits else _regressed(_products(around, pieces, run))
                left = residual(
                    window,
                    around.cut(inside),
                    rows,
                    one,
                    layers=layers,
                    out=matrix,
                )
                products = [
                    contract(
                        window, rows, decode(window, part, buckets), left, layers=layers
                    )
                    for part in slices(of_window[c], len(buckets))
                ]
                projected[c] = Projected(one, np.concatenate(products), left.totals)
    return projected


def _steps_at_once(run: Run, of_window: Mapping[int, slice]) -> int:
    """Choose how many sketches are decoded at once: many, and as many every time."""
    most = max(1, STEP_BYTES // (4 * run.spec.sketch_bits))
    longest: int = max(part.stop - part.start for part in of_window.values())
    return -(-longest // -(-longest // most))


class Residual(NamedTuple):
    """What is left of v beside the basis, over some rows of the fold.

    Attributes
    ----------
    signed : numpy.ndarray
        v / w times the column signs of the fold, float32, (row, bucket).
    totals : Totals
        Sums over the rows.
    """

    signed: npt.NDArray[np.float32]
    totals: Totals


def residual(
    window: Window,
    around: Around,
    rows: slice,
    fitted: Fit,
    *,
    layers: bool,
    out: npt.NDArray[np.float32],
) -> Residual:
    """Remove the basis from v, over the elements in some rows of the fold.

    Parameters
    ----------
    window : Window
        Which window.
    around : Around
        Its vectors over these elements.
    rows : slice
        Rows of the fold.
    fitted : Fit
        The fit of the window.
    layers : bool
        Whether tensors are told apart.
    out : numpy.ndarray
        Where the result goes, float32 of shape ``(row, bucket)``.

    Returns
    -------
    Residual
        In `out`.
    """
    run = window.run
    layout, fold, probes = run.layout, window.sketch.fold, run.stored.probes
    n = len(around.reference)
    elements = slice(rows.start * fold.width, rows.start * fold.width + n)
    pieces = segments(layout, elements)
    matrix, flat = out, out.reshape(-1)
    flat[n:] = 0
    scratch = np.empty((window.rank + 2, SEGMENT), np.float32)
    for layer, part in pieces:
        vectors = scratch[:, : part.stop - part.start]
        around.vectors(part, out=vectors)
        v = vectors[window.rank]
        for i, coefficient in enumerate(fitted.coefficients[layer]):
            vectors[i] *= np.float32(coefficient)
            v -= vectors[i]
        flat[part] = v

    row_signs, column_signs = probes.row_signs[rows], probes.fold.column_signs[rows]
    folded, signed_row = np.zeros((2, fold.width), np.float32)
    layer_probes = np.zeros((len(layout.names) if layers else 0, probes.count))
    for row, sign, signs in zip(matrix, row_signs, column_signs, strict=True):
        np.multiply(row, signs, out=signed_row)
        signed_row *= sign
        folded += signed_row
    for layer, parts in _pieces_by_layer(window, rows).items() if layers else ():
        of_layer = np.zeros(fold.width, np.float32)
        for row, columns in parts:
            signed = matrix[row, columns] * column_signs[row, columns]
            of_layer[columns] += row_signs[row] * signed
        layer_probes[layer] = probes.of_folded(of_layer)

    inverse = (1 / window.weights).astype(np.float32)
    for layer, part in pieces:
        flat[part] *= inverse[layer]
    matrix *= fold.column_signs[rows]
    crowded = [
        crowding(
            np.square(matrix[i : i + ROWS]),
            rows.start + i,
            layout.offsets,
            layout.sizes,
        )
        for i in range(0, len(matrix), ROWS)
    ]
    both = np.stack([probes.of_folded(folded), _onward_probes(window, around, rows)])
    energy, crowd = (np.sum(parts, axis=0) for parts in zip(*crowded, strict=True))
    return Residual(matrix, Totals(energy, crowd, both, layer_probes))


def _onward_probes(
    window: Window, around: Around, rows: slice
) -> npt.NDArray[np.float32]:
    """Probe the way to the window's end; 0 where the store knows both ends' probes."""
    probes = window.run.stored.probes
    folded = np.zeros(probes.fold.width, np.float32)
    if window.index == window.run.n_windows - 1:
        onward = around.end - around.reference
        onward[~np.isfinite(onward)] = 0
        folded = probes.row_signs[rows] @ probes.fold.signed_rows(onward, rows.start)
    return probes.of_folded(folded)


def add_totals(parts: Sequence[Totals]) -> Totals:
    """Add the totals of several pieces."""
    return Totals(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))


def decode(window: Window, steps: slice, buffer: npt.NDArray[np.float32]) -> Decoded:
    """Decode the sketches of some steps into a buffer of as many rows or more."""
    run = window.run
    signs, scales = run.stored.rows("signs", steps), run.stored.rows("scales", steps)
    # Lost signs read as zeros, which are signs too.
    lost = run.stored.is_missing("signs", steps)
    scales = np.where(lost[:, None], np.float32(np.nan), scales)
    numbers = run.stored.sign_numbers[steps]
    return run.stored.sketch.decode(signs, scales, numbers, out=buffer[: len(numbers)])


def contract(
    window: Window, rows: slice, decoded: Decoded, left: Residual, *, layers: bool
) -> FloatArray:
    """Estimate <g, v> over some rows of the fold.

    Parameters
    ----------
    window : Window
        Which window.
    rows : slice
        Rows of the fold.
    decoded : Decoded
        The sketches of some steps.
    left : Residual
        What is left of v over these rows.
    layers : bool
        Whether tensors are told apart.

    Returns
    -------
    numpy.ndarray
        float64, (step, layer), or (step, 1) without layers.
    """
    row_signs = decoded.row_signs[:, rows]
    if not layers:
        products = decoded.buckets @ left.signed.T
        whole_sums: FloatArray = (products * row_signs).sum(1, dtype=np.float64)
        return whole_sums[:, None]
    total = np.zeros((len(decoded.buckets), len(window.run.layout.names)))
    for layer, pieces in _pieces_by_layer(window, rows).items():
        whole = [row for row, columns in pieces if columns == slice(0, _width(window))]
        if whole:
            products = decoded.buckets @ left.signed[whole].T
            total[:, layer] += (products * row_signs[:, whole]).sum(1)
        for row, columns in pieces:
            if row not in whole:
                part = decoded.buckets[:, columns] @ left.signed[row, columns]
                total[:, layer] += part * row_signs[:, row]
    return total


def _width(window: Window) -> int:
    return window.run.stored.sketch.fold.width


def _pieces_by_layer(window: Window, rows: slice) -> dict[int, list[tuple[int, slice]]]:
    """Cut rows of the fold at the borders of tensors: layer to rows and columns."""
    layout, width = window.run.layout, _width(window)
    first, last = rows.start * width, rows.stop * width
    pieces: dict[int, list[tuple[int, slice]]] = {}
    for layer, (offset, size) in enumerate(
        zip(layout.offsets, layout.sizes, strict=True)
    ):
        start, stop = max(int(offset), first), min(int(offset + size), last)
        while start < stop:
            row, column = divmod(start - first, width)
            end = min(stop - start + column, width)
            pieces.setdefault(layer, []).append((row, slice(column, end)))
            start += end - column
    return pieces


def finish(
    run: Run,
    steps: slice,
    parts: Sequence[Mapping[int, Projected]],
    *,
    layers: bool,
    weight_decay: float,
) -> dict[str, FloatArray]:
    """Put the quantities of some steps together.

    Parameters
    ----------
    run : Run
        The recorded run.
    steps : slice
        Which steps.
    parts : sequence of mapping from int to Projected
        What `project` returned for all rows of the fold.
    layers : bool
        Whether tensors are told apart.
    weight_decay : float
        Times the parameters is added to the gradient.

    Returns
    -------
    dict from str to numpy.ndarray
        As `analyzers._engine.arrays.geometry.geometry` returns it, float64 of shape
        ``(step,)`` or ``(step, layer)``.
    """
    by_window = [
        _finish_window(
            Window(run=run, index=c),
            part,
            [projected[c] for projected in parts],
            layers=layers,
            weight_decay=weight_decay,
        )
        for c, part in windows_of(run, steps).items()
    ]
    return {
        name: np.concatenate([values[name] for values in by_window])
        for name in by_window[0]
    }


def _finish_window(
    window: Window,
    steps: slice,
    parts: Sequence[Projected],
    *,
    layers: bool,
    weight_decay: float,
) -> dict[str, FloatArray]:
    fitted = parts[0].fitted
    totals = add_totals([part.totals for part in parts])
    tables = window.tables(steps)
    gradient_sq, sizes = tables["grad_sq"], window.run.layout.sizes
    # What is not finite has diverged; its quantities are NaN.
    with np.errstate(invalid="ignore"):
        low_rank = (tables["grad_dot_basis"] * fitted.coefficients).sum(-1)
        known = tables["grad_dot_displacement"] - low_rank
        variance = sketch_variance(
            gradient_sq * window.weights**2,
            totals.energy,
            totals.crowd,
            sizes,
            bits=window.run.spec.sketch_bits,
        )
        if not layers:
            known, variance = (a.sum(1, keepdims=True) for a in (known, variance))
        estimated = np.sum([part.products for part in parts], axis=0)
        numerator = Estimate(known - estimated, np.sqrt(variance))
        to_target = _distance(window, steps, tables, fitted, totals, layers=layers)
        if not layers:
            numerator = Estimate(numerator.value[:, 0], numerator.stderr[:, 0])
            gradient_sq = gradient_sq.sum(1)
        sampled = Sampled(numerator, gradient_sq, np.zeros_like(gradient_sq))
        if weight_decay:
            known_sq = _squares(tables, fitted, layers=layers)
            sampled = decayed(sampled, to_target, **known_sq, weight_decay=weight_decay)
        return geometry(sampled, to_target)


def _squares(
    tables: dict[str, FloatArray], fitted: Fit, *, layers: bool
) -> dict[str, FloatArray]:
    """Return what `decayed` needs of the parameters; there must be a basis."""
    products, rank = fitted.products, fitted.coefficients.shape[-1]
    # x* = r + v, and r is the first vector of the basis.
    target_sq = products[:, 0, 0] + 2 * products[:, 0, rank] + products[:, rank, rank]
    squares = {
        "param_sq": tables["param_sq"],
        "grad_dot_param": tables["grad_dot_param"],
        "target_sq": np.broadcast_to(target_sq, tables["param_sq"].shape),
    }
    return squares if layers else {n: values.sum(1) for n, values in squares.items()}


def _distance(
    window: Window,
    steps: slice,
    tables: dict[str, FloatArray],
    fitted: Fit,
    totals: Totals,
    *,
    layers: bool,
) -> Estimate:
    """Estimate |x - x*| of some steps from ``|a|^2 - 2 <a, v> + |v|^2``."""
    run, rank = window.run, window.rank
    squares, on_basis = tables["displacement_sq"], tables["displacement_dot_basis"]
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    _, probes = decode_probes({name: run.stored.rows(name, steps) for name in names})
    origins = run.windows["probes"].values
    reference = origins[window.index]
    is_last = window.index == run.n_windows - 1
    onward = totals.probes[1] if is_last else origins[window.index + 1] - reference
    basis_probes = [reference, *(reference - origins[past] for past in window.past)]

    products, coefficients = fitted.products, fitted.coefficients
    gram, v, f = products[:, :rank, :rank], products[:, rank], products[:, rank + 1]
    # Products with what is left of v: those with v less those with its fit.
    left = v - (products[..., :rank] @ coefficients[..., None])[..., 0]
    left_sq = np.maximum(left[:, rank] - (coefficients * left[:, :rank]).sum(-1), 0)
    whole = displacement_product(
        a=Known(squares.sum(1), on_basis.sum(1), probes),
        basis=Known(np.zeros(rank), gram.sum(0), np.stack(basis_probes)[:rank]),
        f=Known(f[:, rank + 1].sum(), f[:, :rank].sum(0), onward),
        v=Known(left_sq.sum(), left[:, :rank].sum(0), totals.probes[0]),
        f_dot_v=left[:, rank + 1].sum(),
    )
    known = (on_basis * coefficients).sum(-1)
    if not layers:
        product = Estimate(known.sum(1) + whole.estimate.value, whole.estimate.stderr)
        return distance(squares.sum(1), product, v[:, rank].sum())
    by_layer = layer_products(
        whole,
        a_sq=squares,
        a_dot_basis=on_basis,
        f_sq=f[:, rank + 1],
        f_dot_basis=f[:, :rank],
        f_dot_v=left[:, rank + 1],
        v_sq=left_sq,
        v_probes=totals.layer_probes,
        gram=gram,
    )
    product = Estimate(known + by_layer.value, by_layer.stderr)
    return distance(squares, product, v[:, rank])
