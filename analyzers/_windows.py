"""What has to be computed of one window, in pieces that fit into memory.

A piece covers some elements of the parameters, or some steps, or both; pieces are added
up. Nothing here knows Dask: `analyzers.path_geometry` makes tasks of these functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._arrays.displacement_product import (
    Known,
    displacement_product,
    layer_products,
)
from analyzers._arrays.low_rank import regress
from analyzers._arrays.path_geometry import (
    Estimate,
    crowding,
    distance,
    geometry,
    sketch_variance,
)
from trajstore.layout import BLOCK
from trajstore.reader import Run
from trajstore.reference_point import ReferencePoint
from trajstore.rows import decode_probes
from trajstore.schema import table_columns
from trajstore.sketch import Decoded, Sketch

FloatArray = npt.NDArray[np.floating[Any]]

PIECE: Final = 256
"""Blocks whose inner products are computed at once, in float64."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Window:
    """One window of a run, to be measured against a reference point x*.

    The vectors that matter in it are, in this order, the basis (the reference r and its
    displacements from earlier references), v = x* - r, and the displacement to where the
    window ends.

    Attributes
    ----------
    run : Run
        The recorded run.
    target : ReferencePoint
        The point x*.
    index : int
        Which window.
    """

    run: Run
    target: ReferencePoint
    index: int

    @property
    def rank(self) -> int:
        """Number of vectors in the basis."""
        return self.run.spec.basis

    @cached_property
    def sketch(self) -> Sketch:
        """How the gradients of this window were sketched."""
        return self.run.sketch_of(self.index)

    @cached_property
    def weights(self) -> FloatArray:
        """Weights of the sketch by layer, float64."""
        weights = self.run.windows["weights"].values[self.index]
        return np.asarray(weights, np.float64)

    @cached_property
    def past(self) -> list[int]:
        """Windows of the earlier references of the basis."""
        return [max(0, self.index - (1 << j)) for j in range(self.rank - 1)]

    def vectors(self, elements: slice) -> npt.NDArray[np.float32]:
        """Read a part of all vectors, float32 of shape (rank + 2, part)."""
        run, c = self.run, self.index
        past = [run.reference(window, elements) for window in self.past]
        reference = run.reference(c, elements)
        if c + 1 < run.n_windows:
            end = run.reference(c + 1, elements)
        else:
            end = run.vector("final", elements) if run.has_final else reference
        displacements = [reference - earlier for earlier in past]
        v = self.target.read(elements) - reference
        onward = end - reference
        # Any known vector would do; the exact one sharpens distances. Where the end is
        # lost, none is as good.
        onward[~np.isfinite(onward)] = 0
        return np.stack([reference, *displacements, v, onward])

    def tables(self, steps: slice) -> dict[str, FloatArray]:
        """Read the tables of some steps, float64 of shape (step, layer[, basis])."""
        tables = self.run.rows("tables", steps).astype(np.float64)
        return {
            name: tables[..., columns if name.endswith("_basis") else columns.start]
            for name, columns in table_columns(self.run.spec).items()
        }


def inner_products(window: Window, elements: slice) -> FloatArray:
    """Inner products of the window's vectors over some elements, tensor by tensor.

    Parameters
    ----------
    window : Window
        Which vectors.
    elements : slice
        Between multiples of `BLOCK`.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(layer, rank + 2, rank + 2)``.
    """
    layout = window.run.layout
    vectors = window.vectors(elements)
    n = len(vectors)
    layers = layout.layer_of_block[elements.start // BLOCK : elements.stop // BLOCK]
    total = np.zeros((len(layout.names), n, n))
    for first in range(0, len(layers), PIECE):
        piece = layers[first : first + PIECE]
        part = vectors[:, first * BLOCK : (first + len(piece)) * BLOCK]
        blocks = part.astype(np.float64).reshape(n, -1, BLOCK).transpose(1, 0, 2)
        np.add.at(total, piece, blocks @ blocks.transpose(0, 2, 1))
    return total


class Fit(NamedTuple):
    """The window's inner products, and v on the basis, tensor by tensor.

    Attributes
    ----------
    products : numpy.ndarray
        float64, (layer, rank + 2, rank + 2).
    coefficients : numpy.ndarray
        float64, (layer, rank).
    """

    products: FloatArray
    coefficients: FloatArray


def fit(window: Window, parts: Sequence[FloatArray]) -> Fit:
    """Regress v on the basis, given the parts of the inner products."""
    products, rank = np.sum(parts, axis=0), window.rank
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


def residual(window: Window, rows: slice, fitted: Fit, *, layers: bool) -> Residual:
    """Remove the basis from v, over some rows of the fold."""
    run = window.run
    layout, fold, probes = run.layout, window.sketch.fold, run.probes
    elements = slice(rows.start * fold.width, min(rows.stop * fold.width, layout.size))
    blocks = slice(elements.start // BLOCK, -(-elements.stop // BLOCK))
    vectors = window.vectors(slice(blocks.start * BLOCK, blocks.stop * BLOCK))
    before = elements.start - blocks.start * BLOCK
    inside = slice(before, before + elements.stop - elements.start)
    layer_of_block = layout.layer_of_block[blocks]

    v = vectors[window.rank].reshape(-1, BLOCK)
    for i, coefficients in enumerate(fitted.coefficients.T):
        part = coefficients[layer_of_block].astype(np.float32)
        v -= part[:, None] * vectors[i].reshape(-1, BLOCK)
    # The first and last block may reach into the rows of other pieces.
    flat = v.reshape(-1)
    flat[: inside.start] = 0
    flat[inside.stop :] = 0
    weighted = v / window.weights.astype(np.float32)[layer_of_block][:, None]

    signed = fold.signed_rows(weighted.reshape(-1)[inside], rows.start)
    unweighted = probes.fold.signed_rows(flat[inside], rows.start)
    onward = probes.fold.signed_rows(vectors[window.rank + 1][inside], rows.start)
    row_signs = probes.row_signs[rows]
    layer_probes = np.zeros((len(layout.names) if layers else 0, probes.count))
    for layer, pieces in _pieces_by_layer(window, rows).items() if layers else ():
        folded = np.zeros(fold.width, np.float32)
        for row, columns in pieces:
            folded[columns] += row_signs[row] * unweighted[row, columns]
        layer_probes[layer] = probes.of_folded(folded)
    totals = Totals(
        *crowding(np.square(signed), rows.start, layout.offsets, layout.sizes),
        np.stack(
            [
                probes.of_folded(row_signs @ unweighted),
                probes.of_folded(row_signs @ onward),
            ]
        ).astype(np.float64),
        layer_probes,
    )
    return Residual(signed, totals)


def add_totals(parts: Sequence[Totals]) -> Totals:
    """Add the totals of several pieces."""
    return Totals(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))


def decode(window: Window, steps: slice) -> Decoded:
    """Decode the sketches of some steps."""
    run = window.run
    signs, scales = run.rows("signs", steps), run.rows("scales", steps)
    # Lost signs read as zeros, which are signs too.
    lost = run.is_missing("signs", steps)
    scales = np.where(lost[:, None], np.float32(np.nan), scales)
    return run.sketch.decode(signs, scales, np.arange(steps.start, steps.stop))


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
        The vector v over these rows.
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
    return window.run.sketch.fold.width


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
    window: Window,
    steps: slice,
    fitted: Fit,
    totals: Totals,
    parts: Sequence[FloatArray],
    *,
    layers: bool,
) -> dict[str, FloatArray]:
    """Put the quantities of some steps together.

    Parameters
    ----------
    window : Window
        Which window.
    steps : slice
        Which steps.
    fitted : Fit
        The regression of v on the basis.
    totals : Totals
        Of all rows of the fold.
    parts : sequence of numpy.ndarray
        What `contract` returned for all rows of the fold.
    layers : bool
        Whether tensors are told apart.

    Returns
    -------
    dict from str to numpy.ndarray
        As `analyzers._arrays.path_geometry.geometry` returns it, float64 of shape
        ``(step,)`` or ``(step, layer)``.
    """
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
        numerator = Estimate(known - np.sum(parts, axis=0), np.sqrt(variance))
        to_target = _distance(window, steps, tables, fitted, totals, layers=layers)
        if layers:
            return geometry(numerator, to_target, gradient_sq)
        whole = Estimate(numerator.value[:, 0], numerator.stderr[:, 0])
        return geometry(whole, to_target, gradient_sq.sum(1))


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
    _, probes = decode_probes({name: run.rows(name, steps) for name in names})
    origins = run.windows["probes"].values
    reference = origins[window.index]
    basis_probes = [reference, *(reference - origins[past] for past in window.past)]

    products, coefficients = fitted.products, fitted.coefficients
    gram, v, f = products[:, :rank, :rank], products[:, rank], products[:, rank + 1]
    # Products with what is left of v: those with v less those with its fit.
    left = v - (products[..., :rank] @ coefficients[..., None])[..., 0]
    left_sq = np.maximum(left[:, rank] - (coefficients * left[:, :rank]).sum(-1), 0)
    whole = displacement_product(
        a=Known(squares.sum(1), on_basis.sum(1), probes),
        basis=Known(np.zeros(rank), gram.sum(0), np.stack(basis_probes)),
        f=Known(f[:, rank + 1].sum(), f[:, :rank].sum(0), totals.probes[1]),
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
