"""The twins that measure a step: compiled loops and torch agree."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore import steps_cpu, tracker
from trajstore.layout import Layout
from trajstore.schema import RunSpec
from trajstore.steps_cpu import StepsOnCPU
from trajstore.steps_torch import StepsOnDevice
from trajstore.tracker import Tracker

SHAPES = {"matrix": (300, 70), "empty": (0, 3), "bias": (70,), "scalar": ()}


class Seen(NamedTuple):
    """What a tracker measured, and how it answers in the end."""

    rows: dict[str, Any]
    arrival: Any
    weights: Any
    probes: Any
    is_unchanged: bool
    is_changed: bool


def measure(steps: type, monkeypatch: Any, **options: Any) -> Seen:
    """Let a tracker follow a random walk in two windows of four steps."""
    monkeypatch.setattr(tracker, "steps_class", lambda _device: steps)
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Any) -> Any:
        return torch.randn(shape, generator=generator)

    parameters = {name: draw(shape) for name, shape in SHAPES.items()}
    names, shapes = tuple(SHAPES), tuple(SHAPES.values())
    document: dict[str, Any] = {
        "names": names,
        "shapes": shapes,
        "seed": 3,
        "sketch_bits": 1024,
        "basis": 3,
        "probes": 64,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
    spec = RunSpec.from_json(document | options)
    tracked = Tracker(list(parameters.values()), Layout(names, shapes), spec)
    rows = tracked.allocate(8)
    tracked.start()
    for step in range(8):
        if step == 4:
            reference = tracked.move()
        for i, parameter in enumerate(parameters.values()):
            # One without a gradient, now and then.
            parameter.grad = None if (step + i) % 5 == 0 else draw(parameter.shape)
        row = {name: values[step] for name, values in rows.items()}
        tracked.before_step(step, row)
        for parameter in parameters.values():
            parameter.add_(0.01 * draw(parameter.shape))
        tracked.after_step(row)
    unchanged = tracked.is_where_last_step_led()
    parameters["bias"][3] = torch.nextafter(parameters["bias"][3], torch.tensor(9.0))
    return Seen(
        {name: values.numpy().copy() for name, values in rows.items()},
        reference.arrival,
        reference.weights,
        reference.probes,
        unchanged,
        tracked.is_where_last_step_led(),
    )


@pytest.fixture(params=[1, 3], ids="threads={}".format)
def threads(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """Work in one part, or in several."""
    before = torch.get_num_threads()
    monkeypatch.setattr(steps_cpu, "BLOCKS_PER_THREAD", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_twins_agree(threads: int, monkeypatch: pytest.MonkeyPatch):
    ours = measure(StepsOnCPU, monkeypatch)
    theirs = measure(StepsOnDevice, monkeypatch)

    assert torch.get_num_threads() == threads
    # float32 products of up to 21000 terms of size 1, blocked.
    np.testing.assert_allclose(
        ours.rows["tables"], theirs.rows["tables"], rtol=1e-5, atol=1e-3
    )
    np.testing.assert_allclose(ours.rows["scales"], theirs.rows["scales"], rtol=1e-5)
    np.testing.assert_allclose(ours.rows["probes"], theirs.rows["probes"], atol=1e-3)
    # Only what is 0 up to rounding may have another sign.
    different = np.unpackbits(ours.rows["signs"] ^ theirs.rows["signs"])
    assert different.mean() < 1e-3
    np.testing.assert_allclose(ours.arrival, theirs.arrival, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5)
    np.testing.assert_allclose(ours.probes, theirs.probes, atol=1e-3)
    for seen in (ours, theirs):
        assert seen.is_unchanged
        assert not seen.is_changed


def test_twins_agree_in_exact_mode(threads: int, monkeypatch: pytest.MonkeyPatch):
    ours = measure(StepsOnCPU, monkeypatch, exact=True)
    theirs = measure(StepsOnDevice, monkeypatch, exact=True)
    for name in ("gradient", "displacement"):
        np.testing.assert_array_equal(ours.rows[name], theirs.rows[name])
    np.testing.assert_allclose(
        ours.rows["tables"], theirs.rows["tables"], rtol=1e-5, atol=1e-3
    )


def test_measuring_in_threads_leaves_their_number_to_torch(threads: int):
    steps_cpu._start_threads()
    assert torch.get_num_threads() == threads
