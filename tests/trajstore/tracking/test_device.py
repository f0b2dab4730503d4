"""Test that a step does not wait for the device or start more operations for more tensors.

The tests use torch's "meta" device, whose tensors have no elements: copying a value to the host
fails, and copies from the host can be detected.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.trajstore.tracking.random_walk import spec_of
from trajstore.format.layout import Layout
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking import tracker
from trajstore.tracking.backends import eager
from trajstore.tracking.placement import Piece, Placement
from trajstore.tracking.scaling import Scaling
from trajstore.tracking.tracker import Tracker

META = torch.device("meta")


class Operations(TorchDispatchMode):
    """Counts operations, and records the operations that the host waits for.

    The host waits for a copy between devices unless the copy is non-blocking. On a CUDA device, the
    host would also wait for a copy from memory that is not pinned; `upload` pins the memory.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        self.counts[name] += 1
        out = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, out))
        devices = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)}
        is_asynchronous = kwargs.get("non_blocking") or any(a is True for a in args)
        if len(devices) > 1 and "copy" in name and not is_asynchronous:
            self.waits.append(name)
        waiting_operations = (
            "_local_scalar_dense",
            "nonzero",
            "aten.equal",
            "aten.masked_select",
        )
        if any(word in name for word in waiting_operations):
            self.waits.append(name)
        return out


@pytest.fixture(autouse=True)
def _meta_has_no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tracker, eager):
        monkeypatch.setattr(module, "no_grad_float32", lambda _device: torch.no_grad())


def tracked(n_layers: int, *, divided: bool = False, **options: Any) -> Tracker:
    """Return a tracker of several tensors on the meta device."""
    shapes = {str(i): (40, 50) for i in range(n_layers)}
    parameters = [torch.empty(shape, device=META) for shape in shapes.values()]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    spec = spec_of(shapes, **options)
    layout = Layout(spec.names, spec.shapes)
    placement = None
    if divided:
        # The placement of one of several ranks, but without a group, so nothing is summed.
        pieces = [Piece((20, 50), (50, 1), int(offset)) for offset in layout.offsets]
        placement = Placement(layout, tuple(pieces))
        parameters = [torch.empty(20, 50, device=META) for _ in parameters]
    return Tracker(parameters, layout, spec, placement)


def step(tracked: Tracker, number: int, **options: Any) -> None:
    row = {name: rows[0] for name, rows in tracked.allocate(1).items()}
    tracked.before_step(number, row, **options)
    tracked.after_step(row)


@pytest.mark.parametrize(
    "options",
    [{}, {"exact": True}, {"divided": True}],
    ids=["whole", "exact", "divided"],
)
def test_steps_and_windows_do_not_wait(options: dict[str, bool]):
    followed = tracked(3, **options)
    with Operations() as operations:
        followed.start()
        for number in range(6):
            if number % 2:
                followed.move()
                followed.anchor_sq()
            step(followed, number)
    assert operations.waits == []


def test_scaled_gradients_and_measurements_do_not_wait():
    followed = tracked(3)
    ids = frozenset(map(id, followed._parameters))
    scaling = Scaling(torch.empty((), device=META), ids)
    with Operations() as operations:
        followed.start()
        step(followed, 0, scaling=scaling)
        row = {name: rows[0] for name, rows in followed.allocate(1).items()}
        followed.measure(7, row)
        followed.measure_update(8, row, row)
        followed.gradient_norm(scaling)
    assert operations.waits == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.ones(2).to(META),
        lambda: torch.empty(2, device=META).copy_(torch.ones(2)),
        lambda: torch.ones(1).item(),
    ],
    ids=["upload", "copy", "item"],
)
def test_the_guard_against_waiting_can_fail(wait: Any):
    with Operations() as operations:
        wait()
    assert len(operations.waits) == 1


def test_an_upload_does_not_wait():
    with Operations() as operations:
        upload(np.ones(3), META)
    assert operations.counts["aten._to_copy.default"] == 1
    assert operations.waits == []


def operations_of_a_step(n_layers: int, **options: Any) -> int:
    """Count the operations that a step starts, including views."""
    followed = tracked(n_layers, sketch_bits=2**17, **options)
    followed.start()
    with Operations() as operations:
        row = {name: rows[0] for name, rows in followed.allocate(1).items()}
        before = operations.counts.total()
        followed.before_step(0, row)
        followed.after_step(row)
    return int(operations.counts.total() - before)


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_the_number_of_operations_does_not_grow_with_the_number_of_tensors(exact: bool):
    few, many = (operations_of_a_step(n, exact=exact) for n in (2, 30))
    assert few == many < 160
