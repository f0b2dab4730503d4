"""What the errors of a recording would be if its sketch or its probes had other sizes.

The recorded norms, energies and directions say how large the errors of any sketch of the same
gradients are. Only variances are those of the other options: estimates stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.crowding import bucket_borders, bucket_densities
from analyzers._engine.arrays.displacement_product import Product
from analyzers._engine.arrays.geometry import Estimate, sketch_variance
from analyzers._engine.arrays.probe_errors import Forms
from analyzers._engine.probes import NAMES
from analyzers._engine.rules import Parts
from trajstore.format.layout import Layout
from trajstore.format.rows import decode_probes
from trajstore.format.run_spec import RunSpec
from trajstore.planning.errors import plain_error, probe_crowding
from trajstore.reading.run import Run
from trajstore.sketch.displacement_sum import middle
from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE, Sketch, sketch_of
from trajstore.sketch.window_sum import LEAST_STEPS

FloatArray = npt.NDArray[np.floating[Any]]


class Energies(NamedTuple):
    """Energies of weighted gradients and of a weighted residual."""

    gradient_sq: FloatArray  # |G|^2, (step, layer)
    residual_sq: FloatArray  # |u|^2, (layer,)
    crowd: FloatArray  # of the recorded sketch, see `sketch_variance`, (step, layer)


@dataclass(frozen=True, slots=False, kw_only=True)
class OtherOptions:
    """Variances of estimates with the options of another recording of the same steps."""

    run: Run
    spec: RunSpec  # options of the other recording

    @property
    def is_packed(self) -> bool:
        """Whether the other sketch is packed."""
        return self.spec.is_packed

    @cached_property
    def sketch(self) -> Sketch:
        """Sketch of the other recording."""
        return sketch_of(self.spec, self.run.layout)

    @cached_property
    def plain_ratio(self) -> float:
        """Variance of a plain sketch, relative to that of the recorded one."""
        own = plain_error(self.run.spec, self.run.layout)
        return (plain_error(self.spec, self.run.layout) / own) ** 2

    @cached_property
    def probe_ratio(self) -> float:
        """Variance of products from probes, relative to that of the recorded ones."""
        other, own = (_probe_variance(s) for s in (self.spec, self.run.spec))
        return other / own if own else 1.0

    def variance(self, energies: Energies) -> FloatArray:
        """Return the variance of products of the other sketch, (step, layer)."""
        gradient_sq, residual_sq, crowd = energies
        layout, own, other = self.run.layout, self.run.stored.sketch, self.sketch
        even = even_crowd(gradient_sq, residual_sq, layout, other)
        variance = sketch_variance(
            gradient_sq,
            residual_sq,
            even,
            layout.sizes,
            code_variance=other.code_variance,
        )
        if own.is_packed or other.is_packed:
            return variance
        # Energies that are not even within layers are more or less crowded, in any fold.
        density = gradient_sq / np.maximum(layout.sizes, 1) * residual_sq
        found = np.maximum(crowd - density, 0).sum(1)
        expected = even_crowd(gradient_sq, residual_sq, layout, own) - density
        expected = np.maximum(expected, 0).sum(1)
        ratio = np.divide(found, expected, out=np.ones_like(found), where=expected > 0)
        folded = FOLD_VARIANCE * np.maximum(even - density, 0)
        return np.asarray(variance + (ratio[:, None] - 1) * folded)

    def sum_of_displacements(
        self,
        recorded: Estimate | None,
        steps: slice,
        residual_sq: FloatArray,  # |v'|^2, (part,)
        end_probes: FloatArray,  # of the advance, if this is the last window, (probe,)
    ) -> Estimate | None:
        """Return the product with a window's sum of displacements, NaN if only its error is known."""
        if not self._has_sum(steps, self.spec.displacement_sum):
            return None
        if recorded is not None:
            value, stderr = recorded
            return Estimate(value, stderr * np.sqrt(self.plain_ratio))
        run, n = self.run, steps.stop - steps.start
        anchors = run.windows.variables["probes"].values
        window = int(run.stored.rows("window", steps)[0])
        if window < run.n_windows - 1:
            end_probes = anchors[window + 1] - anchors[window]
        _, probes = _read_probes(run, steps)
        energy = np.square(probes.sum(0) - middle(n) * end_probes).sum()
        variance = plain_error(self.spec, run.layout) ** 2 * energy * residual_sq
        return Estimate(np.full_like(residual_sq, np.nan), np.sqrt(variance))

    def sum_of_gradients(
        self,
        recorded: Estimate | None,
        steps: slice,
        energies: Energies,
        tables: Mapping[str, FloatArray],
        products: FloatArray,  # (step, part)
        parts: Parts,
    ) -> Estimate | None:
        """Return the product with a window's sum of gradients."""
        if not self._has_sum(steps, self.spec.window_folds > 0):
            return None
        other = total_variance(self.spec, self.run.layout)
        if recorded is not None:
            own = total_variance(self.run.spec, self.run.layout)
            return Estimate(recorded.value, recorded.stderr * np.sqrt(other / own))
        probes, _ = _read_probes(self.run, steps)
        # The probes tell the norm of the sum; products of successive gradients, its layers.
        n, own = len(probes), tables["grad_sq"].sum(0)
        steady = np.maximum(tables["grad_dot_previous"][1:].mean(0), 0)
        layers = own + n * (n - 1) * steady
        weights = np.divide(
            energies.gradient_sq[0],
            tables["grad_sq"][0],
            out=np.zeros_like(own),
            where=tables["grad_sq"][0] > 0,
        )
        energy = np.square(probes.sum(0)).sum() * (layers * weights).sum()
        energy /= max(float(layers.sum()), np.finfo(float).tiny)
        variance = parts.sum(other * energy * energies.residual_sq[None], 1)[0]
        return Estimate(products.sum(0), np.sqrt(variance))

    def _has_sum(self, steps: slice, is_stored: bool) -> bool:
        """Whether the other recording has a sum of a window."""
        return is_stored and steps.stop - steps.start >= LEAST_STEPS

    def of_probes(self, product: Product) -> Product:
        """Return a product that other probes tell."""
        along, across, mixed, cosine = product.forms
        root = np.sqrt(self.probe_ratio)
        forms = Forms(root * along, root * across, root * mixed, cosine)
        stderr = np.sqrt(forms.variance() + product.rounded)
        estimate = Estimate(product.estimate.value, stderr)
        return product._replace(estimate=estimate, forms=forms)


def _read_probes(run: Run, steps: slice) -> tuple[FloatArray, FloatArray]:
    """Read the probes of the gradients and of the displacements, (step, probe)."""
    return decode_probes({name: run.stored.rows(name, steps) for name in NAMES})


def _probe_variance(spec: RunSpec) -> float:
    """Return the variance of products from probes of vectors of norm 1."""
    crowding = probe_crowding(spec.n_params, spec.probes) if spec.is_packed else 1.0
    return crowding / spec.probes


def even_crowd(
    gradient_sq: FloatArray, residual_sq: FloatArray, layout: Layout, sketch: Sketch
) -> FloatArray:
    """Return `crowd` of `sketch_variance` if energies are even within layers, (step, layer)."""
    width, sizes = sketch.fold.width, layout.sizes
    places = layout.packed_offsets if sketch.is_packed else layout.offsets, sizes, width
    lengths = np.diff(bucket_borders(*places), append=width)
    counts = np.maximum(sizes, 1)
    density = bucket_densities(gradient_sq / counts, *places) * lengths
    # How many elements of each layer an interval has in every bucket, (layer, interval).
    elements = bucket_densities(np.eye(len(sizes)), *places)
    crowd: FloatArray = (density @ elements.T) * (residual_sq / counts)
    return crowd


def total_variance(spec: RunSpec, layout: Layout) -> float:
    """Return the variance of products with a sum of gradients, for vectors of norm 1."""
    # Every fold has its own rows; their energies are taken to be equal.
    n_rows = sketch_of(spec, layout).fold.n_rows
    crowded = max(0.0, 1 - spec.window_folds / n_rows)
    folded = FOLD_VARIANCE * crowded + CODE_VARIANCE
    return float(folded / (spec.window_folds * spec.sketch_numbers))
