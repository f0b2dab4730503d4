"""Sums of a window continue after resuming on ranks that share the parameters."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import SHAPES, one_rank, spec_of
from trajstore.format.layout import Layout
from trajstore.tracking.placement import Placement, unsharded
from trajstore.tracking.tracker import Tracker

N_BEFORE, N_STEPS = 3, 5


def walk(group: Any, state: Any = None) -> tuple[Any, Any]:
    """Return the sums after three steps of five, and what is known at the end."""
    # With a state, the first steps are left out, because it contains their sums.
    options: dict[str, Any] = {
        "energies": True,
        "window_folds": 2,
        "displacement_sum": True,
    }
    spec = replace(spec_of(SHAPES, sketch_bits=512), **options)
    layout = Layout(spec.names, spec.shapes)
    placement = Placement(layout, unsharded(layout).pieces, group)
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Any]:
        return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]

    parameters = draw()
    tracker = Tracker(parameters, layout, spec, placement)
    tracker.sums.least_steps = 1
    tracker.start()
    if state is not None:
        tracker.sums.restore(0, N_BEFORE, state)
    rows = tracker.allocate(N_STEPS)
    for step in range(N_STEPS):
        gradients, updates = draw(), draw()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if state is None or step >= N_BEFORE:
            tracker.before_step(step, {name: r[step] for name, r in rows.items()})
        if state is None and step == N_BEFORE - 1:
            kept = tracker.sums.state()
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.add_(0.01 * update)
    return kept if state is None else state, tracker.end_window()


def test_sums_continue_after_resuming():
    with one_rank() as group:
        state, expected = walk(group)
        _, found = walk(group, state)
    np.testing.assert_array_equal(found.sum_signs, expected.sum_signs)
    np.testing.assert_array_equal(found.displacement_codes, expected.displacement_codes)
    np.testing.assert_allclose(found.energies, expected.energies, rtol=1e-3)
    np.testing.assert_allclose(found.sum_scales, expected.sum_scales, rtol=1e-5)
    scales = found.displacement_scales, expected.displacement_scales
    np.testing.assert_allclose(*scales, rtol=1e-5)
    assert torch.isfinite(expected.sum_scales).all()
