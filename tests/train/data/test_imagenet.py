"""Crops of photographs are distributed like those of torchvision's augmentation."""

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from train.data.imagenet import Photographs, _random_crop

WIDTH, HEIGHT = 250, 200
N = 400


def ramps(width: int, height: int) -> Any:
    """Return a photograph whose red is the column and whose green is the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, 0 * rows], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def box_of(part: Any) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a part of `ramps`, from lines of best fit."""
    pixels = np.asarray(part).astype(float)
    sides = []
    for profile in (pixels[..., 0].mean(0), pixels[..., 1].mean(1)):
        # Edges are left out, because resampling cannot interpolate beyond them.
        inner = np.arange(24, 200)
        slope, start = np.polyfit(inner + 0.5, profile[inner] + 0.5, 1)
        sides.append((start, slope * 224))
    (left, width), (top, height) = sides
    return left, top, width, height


def reference_parts(rng: np.random.Generator, n: int) -> Any:
    """Draw boxes by rejection, as torchvision documents RandomResizedCrop."""
    boxes: list[tuple[float, ...]] = []
    while len(boxes) < n:
        area = rng.uniform(0.08, 1) * WIDTH * HEIGHT
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= WIDTH and h <= HEIGHT:
            left, top = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
            boxes.append((left, top, w, h))
    return np.array(boxes)


def statistics(boxes: Any) -> list[Any]:
    left, top, width, height = boxes.T
    area, log_ratio = width * height, np.log(width / height)
    return [left, top, area, area**2, log_ratio, log_ratio**2]


def test_random_crops_are_distributed_as_documented():
    torch.manual_seed(0)
    photograph = ramps(WIDTH, HEIGHT)
    found = np.array([box_of(_random_crop(photograph)) for _ in range(N)])
    expected = reference_parts(np.random.default_rng(0), 20 * N)
    left, top, width, height = found.T
    # Grey levels are whole numbers, so boxes are known to a fraction of a pixel.
    assert left.min() > -1
    assert top.min() > -1
    assert (left + width).max() < WIDTH + 1
    assert (top + height).max() < HEIGHT + 1
    for mine, theirs in zip(statistics(found), statistics(expected), strict=True):
        error = math.hypot(
            mine.std() / math.sqrt(len(mine)), theirs.std() / math.sqrt(len(theirs))
        )
        assert abs(mine.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize(
    ("size", "box"),
    [((250, 12), (117, 0, 16, 12)), ((12, 250), (0, 117, 12, 16))],
    ids=["wide", "high"],
)
def test_photographs_without_a_fitting_crop_are_cropped_at_the_centre(
    size: tuple[int, int], box: tuple[int, ...]
):
    # A crop of 8 % of the area and a ratio of at most 4 / 3 is 13 pixels high, but the image
    # only 12.
    found = box_of(_random_crop(ramps(*size)))
    assert found == pytest.approx(box, abs=0.6)


def test_half_of_the_training_images_are_mirrored():
    def falls(images: list[Any]) -> int:
        return sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in images)

    table = Table([{"image": ramps(250, 250), "label": 1}])
    torch.manual_seed(0)
    training = Photographs(table, is_training=True)
    # Of 100 images, 50 are expected; four standard deviations are 20.
    assert abs(falls([training[0][0] for _ in range(100)]) - 50) < 20
    validation = Photographs(table, is_training=False)
    assert falls([validation[0][0] for _ in range(5)]) == 0


class Table:
    """The part of a table that the data set uses."""

    features: dict[str, Any] = {"label": None}  # noqa: RUF012

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return [row[key] for row in self._rows]
        return self._rows[key]
