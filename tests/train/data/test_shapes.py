"""Shapes in generated pictures have the areas that geometry gives."""

import math

import pytest

torch = pytest.importorskip("torch")

from train.data.shapes import _inside, shapes


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        pytest.param(0, 4.0, id="box"),
        pytest.param(1, math.pi, id="disc"),
        pytest.param(2, 2.0, id="diamond"),
        pytest.param(3, 20 / 9, id="cross"),
        pytest.param(4, math.pi * 3 / 4, id="ring"),
    ],
)
def test_shapes_have_the_areas_of_geometry(kind: int, area: float):
    # Positions are fractions of the width; half widths are between 4 and 10 pixels.
    n_pixels = square = 0.0
    for size in torch.linspace(0, 1, 101):
        inside = _inside(kind, torch.tensor([0.5, 0.5, size]))
        assert inside.shape == (32, 32)
        assert torch.equal(inside, inside.flip(0))
        assert torch.equal(inside, inside.flip(1))
        n_pixels += int(inside.sum())
        square += float(4 + 6 * size) ** 2
    # The errors of pixels on edges average out.
    assert n_pixels == pytest.approx(area * square, rel=0.02)


def test_shapes_are_at_the_given_position():
    inside = _inside(1, torch.tensor([0.25, 0.75, 0.0]))
    rows, columns = inside.nonzero().float().mean(0) + 0.5
    assert (float(rows), float(columns)) == pytest.approx((8, 24), abs=0.3)


def test_pictures_come_from_their_seed():
    one, again, other = shapes(20, seed=3), shapes(20, seed=3), shapes(20, seed=4)
    for a, b, c in zip(one.tensors, again.tensors, other.tensors, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    images, classes = one.tensors
    assert torch.isfinite(images).all()
    assert classes.unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_pictures_do_not_touch_the_random_stream_of_the_training_run():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    shapes(3, seed=1)
    assert torch.equal(torch.rand(3), expected)
