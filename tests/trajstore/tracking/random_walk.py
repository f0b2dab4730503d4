"""A random walk that a tracker follows, for comparisons of the twins that measure steps."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.tracking import tracker
from trajstore.tracking.tracker import Tracker

SHAPES = {"matrix": (300, 70), "empty": (0, 3), "bias": (70,), "scalar": ()}


class Seen(NamedTuple):
    """What a tracker measured, and how it answers in the end."""

    rows: dict[str, Any]
    arrival: Any
    weights: Any
    probes: Any
    is_unchanged: bool
    is_changed: bool


def as_it_is(tensor: Any) -> Any:
    return tensor


def spec_of(shapes: Mapping[str, Any], **options: Any) -> RunSpec:
    document: dict[str, Any] = {
        "names": tuple(shapes),
        "shapes": tuple(shapes.values()),
        "seed": 3,
        "sketch_bits": 1024,
        "basis": 3,
        "probes": 64,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
    return RunSpec.from_json(document | options)


def follow(
    steps: type,
    *,
    shapes: Mapping[str, Any] = SHAPES,
    n_steps: int = 8,
    device: str = "cpu",
    arrange: Mapping[str, Callable[[Any], Any]] | None = None,
    arrange_gradient: Mapping[str, Callable[[Any], Any]] | None = None,
    **options: Any,
) -> Seen:
    """Let a tracker follow a random walk in four windows.

    Parameters
    ----------
    steps
        What measures the steps.
    shapes, n_steps, device
        What is followed, how long, and where.
    arrange, arrange_gradient
        Change the type or the strides of single parameters, and of their gradients.
    options
        Of the recording.
    """
    generator = torch.Generator().manual_seed(0)
    arrange, arrange_gradient = arrange or {}, arrange_gradient or {}

    def draw(shape: Any) -> Any:
        return torch.randn(shape, generator=generator).to(device)

    parameters = {
        name: arrange.get(name, as_it_is)(draw(shape)) for name, shape in shapes.items()
    }
    spec = spec_of(shapes, **options)
    layout = Layout(spec.names, spec.shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "steps_class", lambda _device: steps)
        tracked = Tracker(list(parameters.values()), layout, spec)
    rows = tracked.allocate(n_steps)
    tracked.start()
    for step in range(n_steps):
        if step > 0 and step % (n_steps // 4) == 0:
            reference = tracked.move()
        for i, (name, parameter) in enumerate(parameters.items()):
            gradient = arrange.get(name, as_it_is)(draw(parameter.shape))
            gradient = arrange_gradient.get(name, as_it_is)(gradient)
            # One without a gradient, now and then.
            parameter.grad = None if (step + i) % 5 == 0 else gradient
        row = {name: values[step] for name, values in rows.items()}
        tracked.before_step(step, row)
        for parameter in parameters.values():
            parameter.add_(0.01 * draw(parameter.shape))
        tracked.after_step(row)
    unchanged = tracked.is_where_last_step_led()
    changed = parameters["bias"]
    # More precise numbers are rounded to float32.
    before = changed[3].float() if changed.dtype is torch.float64 else changed[3]
    changed[3] = torch.nextafter(before, torch.full_like(before, 9.0))
    return Seen(
        {name: values.cpu().numpy().copy() for name, values in rows.items()},
        reference.arrival.cpu(),
        reference.weights.cpu(),
        reference.probes.cpu(),
        unchanged,
        tracked.is_where_last_step_led(),
    )


def assert_same(ours: Seen, theirs: Seen) -> None:
    """Compare what twins have seen of the same walk: equal up to rounding."""
    # float32 products of up to 21000 terms of size 1, blocked.
    np.testing.assert_allclose(
        ours.rows["tables"], theirs.rows["tables"], rtol=1e-5, atol=1e-3
    )
    if "signs" in ours.rows:
        np.testing.assert_allclose(
            ours.rows["scales"], theirs.rows["scales"], rtol=1e-5
        )
        np.testing.assert_allclose(
            ours.rows["probes"], theirs.rows["probes"], atol=1e-3
        )
        # Only what is 0 up to rounding may have another sign.
        different = np.unpackbits(ours.rows["signs"] ^ theirs.rows["signs"])
        assert different.mean() < 1e-3
    else:
        for name in ("gradient", "displacement"):
            np.testing.assert_array_equal(ours.rows[name], theirs.rows[name])
    np.testing.assert_allclose(ours.arrival, theirs.arrival, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5)
    np.testing.assert_allclose(ours.probes, theirs.probes, atol=1e-3)
    for seen in (ours, theirs):
        assert seen.is_unchanged
        assert not seen.is_changed
