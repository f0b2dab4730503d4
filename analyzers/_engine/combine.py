"""Combine exact tables, fits and estimated products into the quantities of each step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.collisions import SINGLE_ERROR, Collisions
from analyzers._engine.arrays.displacement_product import (
    ProbedVectors,
    displacement_product,
    layer_products,
)
from analyzers._engine.arrays.geometry import (
    Estimate,
    Sampled,
    decayed,
    distance,
    geometry,
    sketch_variance,
)
from analyzers._engine.fit import Fit
from analyzers._engine.project import Projected, ResidualSums
from analyzers._engine.tables import read_tables, sketch_weights
from analyzers._engine.walk import past_windows, window_steps
from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]


def combine(
    run: Run,
    steps: slice,
    parts: Sequence[Mapping[int, Projected]],
    *,
    layers: bool,
    weight_decay: float,
) -> dict[str, FloatArray]:
    """Return the geometry of `steps`, each quantity of shape (step,) or (step, layer)."""
    # `parts` are results of `project` that together cover all rows of the fold.
    by_window = [
        _combine_window(
            run,
            c,
            part,
            [projected[c] for projected in parts],
            layers=layers,
            weight_decay=weight_decay,
        )
        for c, part in window_steps(run, steps).items()
    ]
    return {
        name: np.concatenate([values[name] for values in by_window])
        for name in by_window[0]
    }


def _combine_window(
    run: Run,
    window: int,
    steps: slice,
    parts: Sequence[Projected],
    *,
    layers: bool,
    weight_decay: float,
) -> dict[str, FloatArray]:
    fit = parts[0].fit
    columns = zip(*(part.sums for part in parts), strict=True)
    sums = ResidualSums(
        *(np.asarray(np.sum(c, axis=0, dtype=np.float64)) for c in columns)
    )
    tables = read_tables(run, steps)
    gradient_sq = tables["grad_sq"]
    # Values are not finite where training diverged; the quantities are NaN there.
    with np.errstate(invalid="ignore"):
        low_rank = (tables["grad_dot_basis"] * fit.coefficients).sum(-1)
        known = tables["grad_dot_displacement"] - low_rank
        variance = sketch_variance(
            gradient_sq * sketch_weights(run, window) ** 2,
            sums.energy,
            sums.crowd,
            run.layout.sizes,
            code_variance=run.stored.sketch.code_variance,
        )
        if not layers:
            known, variance = (a.sum(1, keepdims=True) for a in (known, variance))
        estimated = np.sum([part.products for part in parts], axis=0)
        if run.spec.is_packed:
            # The error of the code is orthogonal to the gradient.
            along = run.stored.sketch.code_variance * estimated**2
            variance = np.maximum(variance - along, 0)
            variance += _rounding(gradient_sq, tables, fit, layers=layers)
        numerator = Estimate(known - estimated, np.sqrt(variance))
        to_target = _distance(run, window, steps, tables, fit, sums, layers=layers)
        if not layers:
            numerator = Estimate(numerator.value[:, 0], numerator.stderr[:, 0])
            gradient_sq = gradient_sq.sum(1)
        sampled = Sampled(numerator, gradient_sq, np.zeros_like(gradient_sq))
        if weight_decay:
            products = _parameter_products(tables, fit, layers=layers)
            sampled = decayed(sampled, to_target, **products, weight_decay=weight_decay)
        return geometry(sampled, to_target)


def _rounding(
    vector_sq: FloatArray, tables: dict[str, FloatArray], fit: Fit, *, layers: bool
) -> FloatArray:
    """Return the variance that float32 adds to products of a vector with x - x*, (step, result)."""
    # The products with the displacement, the basis and target - anchor are rounded one by one.
    squares = np.diagonal(fit.products, axis1=-2, axis2=-1)
    rank = fit.coefficients.shape[-1]
    known = (fit.coefficients**2 * squares[:, :rank]).sum(-1) + squares[:, rank]
    variance: FloatArray = (
        SINGLE_ERROR**2 * vector_sq * (tables["displacement_sq"] + known)
    )
    return variance if layers else variance.sum(1, keepdims=True)


def _parameter_products(
    tables: dict[str, FloatArray], fit: Fit, *, layers: bool
) -> dict[str, FloatArray]:
    """Return the arguments of `decayed` that involve x or x*; the run needs a basis."""
    products, rank = fit.products, fit.coefficients.shape[-1]
    # x* = r + v, where the anchor r is the first vector of the basis.
    target_sq = products[:, 0, 0] + 2 * products[:, 0, rank] + products[:, rank, rank]
    squares = {
        "param_sq": tables["param_sq"],
        "grad_dot_param": tables["grad_dot_param"],
        "target_sq": np.broadcast_to(target_sq, tables["param_sq"].shape),
    }
    return squares if layers else {name: v.sum(1) for name, v in squares.items()}


def _distance(
    run: Run,
    window: int,
    steps: slice,
    tables: dict[str, FloatArray],
    fit: Fit,
    sums: ResidualSums,
    *,
    layers: bool,
) -> Estimate:
    """Estimate |x - x*| at `steps` as the root of ``|a|^2 - 2 <a, v> + |v|^2``."""
    # With the anchor r of the window: a = x - r, v = x* - r and f = end of window - r.
    rank = run.spec.basis
    squares, on_basis = tables["displacement_sq"], tables["displacement_dot_basis"]
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    _, probes = decode_probes({name: run.stored.rows(name, steps) for name in names})
    anchors = run.windows["probes"].values
    anchor, past = anchors[window], past_windows(window, rank)
    is_last = window == run.n_windows - 1
    end_probes = sums.probes[1] if is_last else anchors[window + 1] - anchor
    basis_probes = [anchor, *(anchor - anchors[c] for c in past)]

    products, coefficients = fit.products, fit.coefficients
    gram, v, f = products[:, :rank, :rank], products[:, rank], products[:, rank + 1]
    # The residual is v minus its fit on the basis.
    residual = v - (products[..., :rank] @ coefficients[..., None])[..., 0]
    explained = (coefficients * residual[:, :rank]).sum(-1)
    collisions = None
    if run.spec.is_packed:
        collisions = Collisions(sums.probe_energies, sums.overlap)
    residual_sq = np.maximum(residual[:, rank] - explained, 0)
    whole = displacement_product(
        a=ProbedVectors(squares.sum(1), on_basis.sum(1), probes),
        basis=ProbedVectors(np.zeros(rank), gram.sum(0), np.stack(basis_probes)[:rank]),
        f=ProbedVectors(f[:, rank + 1].sum(), f[:, :rank].sum(0), end_probes),
        v=ProbedVectors(residual_sq.sum(), residual[:, :rank].sum(0), sums.probes[0]),
        f_dot_v=residual[:, rank + 1].sum(),
        collisions=collisions,
    )
    known = (on_basis * coefficients).sum(-1)
    rounding: FloatArray = np.zeros((1, 1))
    if run.spec.is_packed:
        rounding = _rounding(squares, tables, fit, layers=layers)
    if not layers:
        stderr = np.hypot(whole.estimate.stderr, np.sqrt(rounding[:, 0]))
        product = Estimate(known.sum(1) + whole.estimate.value, stderr)
        return distance(squares.sum(1), product, v[:, rank].sum())
    by_layer = layer_products(
        whole,
        a_sq=squares,
        a_dot_basis=on_basis,
        f_sq=f[:, rank + 1],
        f_dot_basis=f[:, :rank],
        f_dot_v=residual[:, rank + 1],
        v_sq=residual_sq,
        v_dot_basis=residual[:, :rank],
        v_probes=sums.layer_probes,
        gram=gram,
        collisions=collisions,
    )
    stderr = np.hypot(by_layer.stderr, np.sqrt(rounding))
    product = Estimate(known + by_layer.value, stderr)
    return distance(squares, product, v[:, rank])
