"""A piece of a tensor is measured like the whole tensor with zeros elsewhere."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import one_rank, spec_of
from trajstore.format.layout import BLOCK, Layout
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.eager import EagerBackend
from trajstore.tracking.placement import Piece, Placement, unsharded
from trajstore.tracking.tracker import Tracker

N_STEPS = 4

# Shape of a tensor, and the part of it that a rank holds.
PIECES: dict[str, tuple[tuple[int, ...], tuple[slice, ...]]] = {
    "rows": ((9, 700), (slice(4, 7), slice(None))),
    "columns": ((7, 4096), (slice(None), slice(1024, 2048))),
    "columns within blocks": ((7, 3072), (slice(None), slice(1100, 1900))),
    "columns over borders": ((5, 4096), (slice(None), slice(1000, 2100))),
    "columns of an odd width": ((6, 1500), (slice(None), slice(700, 1200))),
    "rows and columns": ((8, 4096), (slice(3, 6), slice(2048, 3000))),
    "one row": ((8, 4096), (slice(3, 4), slice(2048, 3000))),
    "channels": ((4, 8, 32, 32), (slice(None), slice(2, 4), slice(None), slice(None))),
    "three levels": ((3, 4, 2048), (slice(0, 3), slice(1, 3), slice(5, 900))),
    "one number": ((), ()),
}


def piece_of(layout: Layout, part: tuple[slice, ...]) -> Piece:
    """Return the piece of the second layer."""
    shape = layout.shapes[1]
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    local = numbers[part] if part else numbers
    strides = tuple(by // numbers.itemsize for by in numbers.strides)
    first = int(layout.offsets[1]) + int(local.reshape(-1)[0])
    return Piece(local.shape, strides, first)


def walk(tensors: Any, placement: Placement, backend: Any, zeros: Any) -> Any:
    """Return the rows and the anchors' codes of a walk; `zeros` keeps the rest of tensors 0."""
    spec = spec_of(
        dict(zip(placement.layout.names, placement.layout.shapes, strict=True))
    )
    tracker = Tracker(tensors, placement.layout, spec, placement, backend=backend)
    rows = tracker.allocate(N_STEPS)
    tracker.start()
    codes = []
    for step in range(N_STEPS):
        if step > 1:
            codes.append(tracker.move().codes)
        zeros(step)
        row = {name: values[step] for name, values in rows.items()}
        tracker.before_step(step, row)
        for tensor in tensors:
            tensor.sub_(tensor.grad, alpha=0.01)
        tracker.after_step(row)
    return rows, torch.stack(codes), placement.gather(tracker.anchor), placement.size


@pytest.mark.parametrize("backend", [CPUBackend, EagerBackend])
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_equals_the_whole_with_zeros(name: str, backend: Any):
    shape, part = PIECES[name]
    layout = Layout(("first", "second"), ((30,), shape))
    generator = torch.Generator().manual_seed(0)
    first, whole = torch.randn(30, generator=generator), torch.zeros(shape)
    drawn = torch.randn(whole[part].shape, generator=generator)
    whole[part] = drawn
    gradients = [torch.randn(drawn.shape, generator=generator) for _ in range(N_STEPS)]
    pieces = unsharded(layout).pieces[0], piece_of(layout, part)
    found = drawn.clone()
    of_first = [first.clone(), first.clone()]

    def set_gradients(tensor: Any, other: Any, *, is_whole: bool) -> Any:
        def zeros(step: int) -> None:
            other.grad = torch.ones(30)
            tensor.grad = torch.zeros(tensor.shape)
            tensor.grad[part if is_whole else ...] = gradients[step]

        return zeros

    expected = walk(
        [of_first[0], whole],
        unsharded(layout),
        backend,
        set_gradients(whole, of_first[0], is_whole=True),
    )
    with one_rank() as group:
        placement = Placement(layout, pieces, group)
        result = walk(
            [of_first[1], found],
            placement,
            backend,
            set_gradients(found, of_first[1], is_whole=False),
        )
        _check_gathering(placement, layout)
    tables = result[0]["tables"], expected[0]["tables"]
    np.testing.assert_allclose(*tables, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result[0]["signs"], expected[0]["signs"])
    np.testing.assert_allclose(result[0]["probes"], expected[0]["probes"], atol=1e-3)
    np.testing.assert_array_equal(result[1], expected[1])
    np.testing.assert_allclose(result[2], expected[2], atol=1e-6)
    # No more blocks are kept than have elements.
    blocks = np.unique(
        np.flatnonzero(layout.flatten({"first": first, "second": whole})) // BLOCK
    )
    if "odd" not in name and "levels" not in name:
        assert result[3] == BLOCK * len(blocks)


def _check_gathering(placement: Placement, layout: Layout) -> None:
    """Check that what is scattered to a rank is gathered from it."""
    numbers = torch.arange(1.0, layout.size + 1)
    mine = torch.zeros(placement.size)
    placement.scatter(numbers, mine)
    whole = placement.gather(mine)
    assert torch.equal(whole[whole != 0], numbers[whole != 0])
    assert (whole != 0).sum() == sum(view.numel() for view in placement.views(mine))
