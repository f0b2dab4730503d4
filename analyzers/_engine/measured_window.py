"""Estimate the products of a window's gradients and displacements with the residual."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.collisions import SINGLE_ERROR, Collisions
from analyzers._engine.arrays.displacement_product import (
    ProbedVectors,
    Product,
    displacement_product,
    layer_products,
)
from analyzers._engine.arrays.geometry import Estimate, sketch_variance
from analyzers._engine.other_options import Energies, OtherOptions
from analyzers._engine.probes import probe_rounding
from analyzers._engine.rules import Parts, has_rule, steps_of_memory
from analyzers._engine.tables import read_tables, sketch_weights
from analyzers._engine.vectors.fit import Fit
from analyzers._engine.vectors.project import Projected, ResidualSums
from analyzers._engine.vectors.walk import past_windows, window_steps
from trajstore.format.arrays import n_columns
from trajstore.format.rows import decode_displacements
from trajstore.reading.run import Run
from trajstore.sketch.displacement_sum import middle

FloatArray = npt.NDArray[np.floating[Any]]

SINGLE_ROUNDING: Final = 2.0**-24
"""Largest relative rounding error of a number in float32."""

WINDOW_VALUES: Final = 1 << 24
"""Largest number of probes and table values of a window that is analysed as a whole."""

PROBES: Final = ("displacement_probes", "probe_scales")


class Measured(NamedTuple):
    """Products of n steps of a window, and of the window's end if it is known."""

    steps: slice
    tables: dict[str, FloatArray]  # (step, layer, ...)
    fit: Fit
    products: Estimate  # <g, v'>, (step, part)
    # The rows of the displacements a = x - r are the steps, and the window's end if known.
    displacement: Estimate  # <a, v'> from the probes, (row, part)
    displacement_common: FloatArray  # error that all rows share, see `LayerProducts`
    displacement_measured: Estimate  # the same products by probes alone
    displacement_sq: FloatArray  # |a|^2, (row, layer)
    displacement_on_basis: FloatArray  # <a, s>, (row, layer, basis)
    residual_sq: FloatArray  # |v'|^2, (layer,)
    probed: Product  # what the probes say of the whole vectors, by row
    # Product of v' with the sum of the steps' gradients, (part,); None if it is not known.
    total: Estimate | None = None
    # Sum of <a, v'> over the steps, (part,); None if it is not known.
    displacement_total: Estimate | None = None
    is_packed: bool = False  # whether the sketch is
    # Whether sums that do not fit are left out. With the errors of other options, none of them fits.
    checks_sums: bool = True

    @property
    def has_end(self) -> bool:
        """Whether the window's end is known."""
        n = self.steps.stop - self.steps.start
        return bool(len(self.displacement_sq) == n + 1)


def needed_windows(run: Run, steps: slice) -> dict[int, slice]:
    """Return the windows that the results of `steps` depend on, with their steps."""
    # These are the windows of the steps, and the windows before them that momentum remembers.
    # Of very long windows, only the given steps are used.
    n_columns_ = len(run.layout.names) * n_columns(run.spec) + run.spec.probes
    longest = max(1, WINDOW_VALUES // n_columns_)
    own = window_steps(run, steps)
    starts, stops = (
        run.windows.variables["start"].values,
        run.windows.variables["stop"].values,
    )
    windows = {}
    for c, part in own.items():
        is_short = stops[c] - starts[c] <= longest
        windows[c] = slice(int(starts[c]), int(stops[c])) if is_short else part
    first = min(own)
    until = starts[first] - (steps_of_memory(run) if has_rule(run) else 0)
    c = first - 1
    while c >= 0 and stops[c] > until and stops[c] - starts[c] <= longest:
        if stops[c] > starts[c]:
            windows[c] = slice(int(starts[c]), int(stops[c]))
        c -= 1
    return dict(sorted(windows.items()))


def gather(
    run: Run,
    window: int,
    steps: slice,
    chunks: Sequence[slice],
    projected: Sequence[Sequence[Mapping[int, Projected]]],
) -> Projected:
    """Add up the rows of the fold, and join the products of a window's steps."""
    # `projected` holds, for each of the adjacent `chunks`, the results of `project` that
    # together cover all rows of the fold.
    pieces, crowds, found = [], [], None
    for chunk, by_rows in zip(chunks, projected, strict=True):
        part = window_steps(run, chunk).get(window)
        if part is None or part.stop <= steps.start or steps.stop <= part.start:
            continue
        found = [rows[window] for rows in by_rows]
        kept = slice(max(steps.start - part.start, 0), steps.stop - part.start)
        pieces.append(reduce(np.add, [rows.products for rows in found])[kept])
        crowds.append(reduce(np.add, [rows.sums.crowd for rows in found])[kept])
    assert found is not None
    columns = zip(*(rows.sums for rows in found), strict=True)
    sums = ResidualSums(
        *(np.asarray(np.sum(c, axis=0, dtype=np.float64)) for c in columns)
    )
    sums = sums._replace(crowd=np.concatenate(crowds))
    return Projected(found[0].fit, np.concatenate(pieces), sums)


def measure(
    run: Run,
    window: int,
    steps: slice,
    projected: Projected,
    parts: Parts,
    other: OtherOptions | None = None,
) -> Measured:
    """Estimate the products of `steps`, all in one window; `other` changes only their errors."""
    fit, _, sums = projected
    tables = _without_dropped(read_tables(run, steps), fit)
    sketch = run.stored.sketch
    energies = Energies(
        tables["grad_sq"] * sketch_weights(run, window) ** 2, sums.energy, sums.crowd
    )
    variance = sketch_variance(
        *energies, run.layout.sizes, code_variance=sketch.code_variance
    )
    variance, squares = parts.sum(variance, 1), projected.products**2
    is_packed, code_variance = run.spec.is_packed, sketch.code_variance
    if other is not None:
        squares = np.maximum(squares - variance, 0)
        variance = parts.sum(other.variance(energies), 1)
        is_packed, code_variance = other.is_packed, other.sketch.code_variance
    if is_packed:
        # The error of the code is orthogonal to the gradient.
        variance = np.maximum(variance - code_variance * squares, 0)
        numbers = (sketch if other is None else other.sketch).numbers
        variance += scale_variance(numbers) * squares
        if not run.spec.float64:
            vectors = tables["grad_sq"], tables["displacement_sq"]
            variance += rounding(*vectors, fit, parts)
    products = Estimate(projected.products, np.sqrt(variance))
    start, stop = (
        int(run.windows.variables[n].values[window]) for n in ("start", "stop")
    )
    is_whole = (steps.start, steps.stop) == (start, stop)
    displacements = _total(sums.displacement_sum, parts) if is_whole else None
    total = _total(sums.window_sum, parts) if is_whole else None
    if other is not None and is_whole:
        displacements = other.sum_of_displacements(
            displacements,
            steps,
            parts.sum(residual_sq(fit)[None], 1)[0],
            sums.probes[1],
        )
        total = other.sum_of_gradients(
            total, steps, energies, tables, projected.products, parts
        )
    if displacements is not None:
        # The displacement at the window's end has been subtracted from the sum: f, and the rounding
        # error of the next anchor, whose direction is random.
        times, f_dot_v = middle(stop - start), residual_products(fit)[:, -1]
        at_end = times * parts.sum(f_dot_v[None], 1)[0]
        value, stderr = displacements
        by_chance = _anchor_error_sq(run, window) * residual_sq(fit)
        by_chance /= np.maximum(run.layout.sizes, 1)
        stderr = np.hypot(stderr, times * np.sqrt(parts.sum(by_chance[None], 1)[0]))
        if is_packed:
            # Rounding errors of the vectors are the same in every step.
            squares = tables["displacement_sq"]
            rounded = np.sqrt(rounding_of_displacements(run, squares, fit, parts)).sum(
                0
            )
            stderr = np.hypot(stderr, rounded)
        displacements = Estimate(value + at_end, stderr)
    measured = _with_displacements(
        run, window, steps, tables, fit, sums, products, displacements, parts, other
    )
    if displacements is not None and other is not None:
        # Only its error is known of a sum that was not recorded.
        n = stop - start
        found = measured.displacement.value[:n].sum(0)
        is_known = np.isfinite(displacements.value)
        displacements = displacements._replace(
            value=np.where(is_known, displacements.value, found)
        )
    return measured._replace(
        total=total,
        displacement_total=displacements,
        is_packed=is_packed,
        checks_sums=other is None,
    )


def _dropped(fit: Fit) -> npt.NDArray[np.bool_]:
    """Whether the fit has left out a layer of a vector of the basis, (layer, basis)."""
    rank = fit.coefficients.shape[-1]
    squares = np.diagonal(fit.products, axis1=-2, axis2=-1)
    return np.asarray(squares[:, :rank] == 0)


def _without_dropped(tables: dict[str, FloatArray], fit: Fit) -> dict[str, FloatArray]:
    """Replace products with what the fit has left out of the basis by 0."""
    dropped = _dropped(fit)
    names = ("grad_dot_basis", "displacement_dot_basis")
    return tables | {name: np.where(dropped, 0, tables[name]) for name in names}


def _probes_of_used(run: Run, probes: FloatArray, fit: Fit) -> FloatArray:
    """Return the probes of the basis without what the fit has left out, (basis, probe)."""
    dropped = _dropped(fit)
    probes = np.where(dropped.all(axis=0, keepdims=True).T, 0, probes)
    if run.layout.sizes.sum() > run.spec.probes or not run.spec.is_packed:
        return probes  # layers share probes, whose errors are larger than these parts
    vector, element = np.nonzero(np.repeat(dropped, run.layout.sizes, axis=0).T)
    probes[vector, run.stored.probes.probe_of_bucket[element]] = 0
    return probes


def _total(products: FloatArray, parts: Parts) -> Estimate | None:
    """Return a product with a sum over the window, (part,); None if it is not known."""
    if not np.isfinite(products).all():
        return None
    value, variance = parts.sum(products, 1)
    return Estimate(value, np.sqrt(np.maximum(variance, 0)))


def _anchor_error_sq(run: Run, window: int) -> FloatArray:
    """Return |x - r|^2 at the end of a window, with the next anchor r, (layer,)."""
    row = int(run.windows.variables["stop"].values[window])
    if window == run.n_windows - 1 or row >= run.n_steps:
        # The run ends here, and its last iterate is exact.
        return np.zeros(len(run.layout.sizes))
    squares: FloatArray = read_tables(run, slice(row, row + 1))["displacement_sq"][0]
    return squares


def residual_sq(fit: Fit) -> FloatArray:
    """Return |v'|^2, (layer,)."""
    rank, residual = fit.coefficients.shape[-1], residual_products(fit)
    explained = (fit.coefficients * residual[:, :rank]).sum(-1)
    return np.asarray(np.maximum(residual[:, rank] - explained, 0))


def residual_products(fit: Fit) -> FloatArray:
    """Return products of v' with the basis, v and f, (layer, rank + 2)."""
    rank = fit.coefficients.shape[-1]
    explained = (fit.products[..., :rank] @ fit.coefficients[..., None])[..., 0]
    return np.asarray(fit.products[:, rank] - explained)


def _with_displacements(
    run: Run,
    window: int,
    steps: slice,
    tables: dict[str, FloatArray],
    fit: Fit,
    sums: ResidualSums,
    products: Estimate,
    total: Estimate | None,
    parts: Parts,
    other: OtherOptions | None,
) -> Measured:
    # With the anchor r of the window: a = x - r, v = x* - r and f = end of window - r.
    rank = run.spec.basis
    squares, on_basis = tables["displacement_sq"], tables["displacement_dot_basis"]
    stored = {name: run.stored.rows(name, steps) for name in PROBES}
    probes = decode_displacements(stored)
    # Only errors of packed sketches are so small that rounding counts.
    of_probes = np.zeros((len(probes), 1))
    if run.spec.is_packed:
        of_probes = probe_rounding(stored)
    anchors = run.windows.variables["probes"].values
    anchor, past = anchors[window], past_windows(window, rank)
    is_last = window == run.n_windows - 1
    end_probes = sums.probes[1] if is_last else anchors[window + 1] - anchor
    inner = fit.products
    f, f_dot_f = inner[:, rank + 1], inner[:, rank + 1, rank + 1]
    end = _end(run, window, steps, f, end_probes)
    if end is not None:
        vector, end_rounding = end
        squares = np.concatenate([squares, vector.sq[None]])
        on_basis = np.concatenate([on_basis, vector.on_basis[None]])
        probes = np.concatenate([probes, vector.probes[None]])
        n_rounded = of_probes.shape[1]
        of_probes = np.concatenate([of_probes, end_rounding[:, :n_rounded]])
    basis_vectors = np.stack([anchor, *(anchor - anchors[c] for c in past)])
    gram = inner[:, :rank, :rank]
    basis_probes = _probes_of_used(run, basis_vectors[:rank], fit)
    # The residual is v minus its fit on the basis.
    residual = residual_products(fit)
    v_sq = residual_sq(fit)
    collisions = None
    if run.spec.is_packed:
        collisions = Collisions(sums.probe_energies, sums.crossed)
    whole = displacement_product(
        a=ProbedVectors(squares.sum(1), on_basis.sum(1), probes),
        basis=ProbedVectors(np.zeros(rank), gram.sum(0), basis_probes),
        f=ProbedVectors(f_dot_f.sum(), f[:, :rank].sum(0), end_probes),
        v=ProbedVectors(v_sq.sum(), residual[:, :rank].sum(0), sums.probes[0]),
        f_dot_v=residual[:, rank + 1].sum(),
        collisions=collisions,
        rounding=of_probes,
        has_end=end is not None,
    )
    if other is not None:
        whole = other.of_probes(whole)
    estimate = Estimate(*(column[:, None] for column in whole.estimate))
    common, by_probes = np.zeros_like(estimate.value), estimate
    if parts.count > 1:
        estimate, common, by_probes = layer_products(
            whole,
            a_sq=parts.sum(squares, 1),
            a_dot_basis=parts.sum(on_basis, 1),
            f_sq=parts.sum(f_dot_f, 0),
            f_dot_basis=parts.sum(f[:, :rank], 0),
            f_dot_v=parts.sum(residual[:, rank + 1], 0),
            v_sq=parts.sum(v_sq, 0),
            v_dot_basis=parts.sum(residual[:, :rank], 0),
            v_probes=sums.part_probes,
            gram=parts.sum(gram, 0),
            sizes=parts.sum(parts.sizes.astype(np.float64), 0),
            total=total,
            collisions=collisions,
        )
    if run.spec.is_packed:
        rounded = rounding_of_displacements(run, squares, fit, parts)
        estimate, by_probes = (
            Estimate(value, np.hypot(stderr, np.sqrt(rounded)))
            for value, stderr in (estimate, by_probes)
        )
        value, stderr = whole.estimate
        both = np.hypot(stderr, np.sqrt(rounded.sum(1)))
        whole = whole._replace(estimate=Estimate(value, both))
    return Measured(
        steps=steps,
        tables=tables,
        fit=fit,
        products=products,
        displacement=estimate,
        displacement_common=common,
        displacement_measured=by_probes,
        displacement_sq=squares,
        displacement_on_basis=on_basis,
        residual_sq=v_sq,
        probed=whole,
    )


def scale_variance(numbers: int) -> float:
    """Return the variance that rounding a sketch's scale adds, relative to the squared product."""
    # The scale is a number of float32, and so are the sums or the levels that it is computed from.
    return SINGLE_ROUNDING**2 * (2 / 3 + 20 / numbers)


def rounding_of_displacements(
    run: Run, a_sq: FloatArray, fit: Fit, parts: Parts
) -> FloatArray:
    """Return the variance that rounding adds to products of displacements with x - x*, (row, part)."""
    # In recordings in float64 only probes, and displacements at the ends of windows, are float32.
    variance = rounding(a_sq, a_sq, fit, parts)
    return variance / 16 if run.spec.float64 else variance


def rounding(
    vector_sq: FloatArray, a_sq: FloatArray, fit: Fit, parts: Parts
) -> FloatArray:
    """Return the variance that float32 adds to products of vectors with x - x*, (row, part)."""
    # The products with the displacement, the basis and target - anchor are rounded one by one.
    squares = np.diagonal(fit.products, axis1=-2, axis2=-1)
    rank = fit.coefficients.shape[-1]
    known = (fit.coefficients**2 * squares[:, :rank]).sum(-1) + squares[:, rank]
    return parts.sum(SINGLE_ERROR**2 * vector_sq * (a_sq + known), 1)


def _end(
    run: Run, window: int, steps: slice, f: FloatArray, end_probes: FloatArray
) -> tuple[ProbedVectors, FloatArray] | None:
    """Return the displacement at the end of a window, by layer; None if it is not known."""
    # The second value is the variance of the rounding errors of its probes, (1, probe).
    rank = run.spec.basis
    starts, stops = (
        run.windows.variables["start"].values,
        run.windows.variables["stop"].values,
    )
    is_whole = (steps.start, steps.stop) == (starts[window], stops[window])
    if not has_rule(run) or not is_whole:
        return None
    if window == run.n_windows - 1:
        if not run.has_final:
            return None
        final = ProbedVectors(f[:, rank + 1], f[:, :rank], end_probes)
        return final, np.zeros_like(end_probes[None])
    following = slice(window + 1, window + 2)
    [arrival] = run.stored.rows("references/arrival", following)
    row = int(starts[window + 1])
    if row >= run.n_steps:
        return None
    stored = {name: run.stored.rows(name, slice(row, row + 1)) for name in PROBES}
    [probes] = decode_displacements(stored)
    end = ProbedVectors(
        arrival[:, 0].astype(np.float64),
        arrival[:, 1:].astype(np.float64),
        end_probes + probes,
    )
    return end, probe_rounding(stored)
