"""Compute with NumPy what a tracker knows at the ends of the windows of a walk."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import Walk
from trajstore.format.layout import BLOCK, Layout
from trajstore.sketch import deltas
from trajstore.sketch.displacement_sum import DisplacementSum
from trajstore.sketch.sketch import probes_of, sketch_of
from trajstore.sketch.window_sum import WindowSum


def expected_energies(walk: Walk) -> Any:
    """Return energies per element of each block, the largest of a layer being 1."""
    layout = Layout(walk.spec.names, walk.spec.shapes)
    energies = []
    for window in range(len(walk.anchors)):
        squares = np.sum([np.float64(g) ** 2 for g in gradients_of(walk, window)], 0)
        density = []
        for layer, (offset, size) in enumerate(
            zip(layout.offsets, layout.sizes, strict=True)
        ):
            tensor = squares[offset : offset + size]
            blocks = [tensor[i : i + BLOCK].mean() for i in range(0, int(size), BLOCK)]
            largest = max(blocks, default=0)
            density += [b / largest if largest else 0 for b in blocks]
            assert len(blocks) == layout.blocks[layer]
        energies.append(density)
    return np.array(energies)


def expected_sums(walk: Walk) -> list[Any]:
    """Return the signs and scales of the weighted sum of each window's gradients."""
    spec = walk.spec
    layout = Layout(spec.names, spec.shapes)
    codes = []
    for window, anchor in enumerate(walk.anchors):
        weights = np.repeat(anchor.weights, layout.blocks * BLOCK)
        total = np.sum([weights * g for g in gradients_of(walk, window)], 0)
        sketch = replace(sketch_of(spec, layout), window=window)
        window_sum = WindowSum(sketch=sketch, n_folds=spec.window_folds)
        codes.append(window_sum.encode(total.astype(np.float32)))
    return codes


def expected_displacements(walk: Walk) -> list[Any]:
    """Return the codes and scales of the sum of each window's displacements."""
    spec = walk.spec
    layout = Layout(spec.names, spec.shapes)
    codes, anchor, ends = [], walk.before[0], [*walk.before[2:], walk.after[-1]]
    for window, (coded, end) in enumerate(zip(walk.anchors, ends, strict=True)):
        if window > 0:
            anchor = anchor + deltas.decode(coded.codes, coded.scales)
        steps = [
            x for x, w in zip(walk.before, walk.window, strict=True) if w == window
        ]
        at_end = (len(steps) - 1) / 2 * np.float64(end - anchor)
        total: Any = np.sum([x - anchor for x in steps], 0, dtype=np.float64) - at_end
        if spec.is_packed:
            total = total[layout.packed_elements]
        sketch, probes = sketch_of(spec, layout), probes_of(spec, layout)
        total_sketch = DisplacementSum(sketch=sketch, probes=probes, window=window)
        codes.append(total_sketch.encode(total.astype(np.float32)))
    return codes


def gradients_of(walk: Walk, window: int) -> list[Any]:
    """Return the gradients of the steps of a window."""
    return [g for g, w in zip(walk.gradients, walk.window, strict=True) if w == window]
