"""ISPRS Vaihingen: aerial photographs of a German town with a class for every pixel.

M. Cramer, "The DGPF-Test on Digital Airborne Camera Evaluation", 2010; provided by the German
Society for Photogrammetry, Remote Sensing and Geoinformation (DGPF). As in "No Wrong Turns",
arXiv 2306.11922, there are 11 tiles for training and 5 for validation, and an epoch has 10,000
random patches, flipped along either axis at random. The paper does not say which tiles it
uses, so our tile numbers are those of its published code. As in that code, validation patches
are also flipped.
"""

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.shapes import shapes

TRAIN_TILES: Final = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26)
VALIDATION_TILES: Final = (28, 30, 32, 34, 37)

N_TRAIN_PATCHES: Final = 10_000
N_VALIDATION_PATCHES: Final = 1_000
PATCH_SIZE: Final = 256

CLASS_COLOURS: Final = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
"""Colours of the classes in the images of labels, in the order of the class numbers."""

DOWNLOAD_ADVICE: Final = (
    "Ask for the data at isprs.org (2D semantic labelling, Vaihingen), and pass the "
    "directory with top/ and gts_for_participants/ as --data-dir; or use --data embedded."
)


def vaihingen(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load Vaihingen, or generated images of 32 x 32 pixels as a stand-in."""
    if data == "embedded":
        return Splits(shapes(160, seed=0), shapes(40, seed=1), len(CLASS_COLOURS))
    root = _root(directory)
    return Splits(
        RandomPatches([_read(root, i) for i in TRAIN_TILES], N_TRAIN_PATCHES),
        RandomPatches([_read(root, i) for i in VALIDATION_TILES], N_VALIDATION_PATCHES),
        len(CLASS_COLOURS),
    )


class RandomPatches(Dataset[Any]):
    """Random patches of tiles; every access draws a new patch and ignores the index."""

    def __init__(self, tiles: list[tuple[Tensor, Tensor]], n: int) -> None:
        self._tiles, self._n = tiles, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._n:
            raise IndexError(index)
        image, classes = self._tiles[int(torch.randint(len(self._tiles), ()))]
        height, width = classes.shape
        top = int(torch.randint(0, height - PATCH_SIZE + 1, ()))
        left = int(torch.randint(0, width - PATCH_SIZE + 1, ()))
        part = (..., slice(top, top + PATCH_SIZE), slice(left, left + PATCH_SIZE))
        pixels, target = image[part].float() / 255, classes[part].long()
        for axis in (-1, -2):
            if torch.rand(()) < 0.5:
                pixels, target = pixels.flip(axis), target.flip(axis)
        return pixels, target


def _root(directory: str | None) -> Path:
    """Return the directory of the tiles, and refuse one in which a tile is missing."""
    if directory is None:
        raise FileNotFoundError(f"Vaihingen: no directory was given. {DOWNLOAD_ADVICE}")
    root = Path(directory)
    numbers = (*TRAIN_TILES, *VALIDATION_TILES)
    missing = [i for i in numbers if not all(path.exists() for path in _tile(root, i))]
    if missing:
        raise FileNotFoundError(
            f"Vaihingen: {directory} lacks the photograph or the classes of "
            f"{len(missing)} of {len(numbers)} tiles, starting with tile {missing[0]}. "
            f"{DOWNLOAD_ADVICE}"
        )
    return root


def _tile(root: Path, number: int) -> tuple[Path, Path]:
    """Return the paths of a tile's photograph and of its image of classes."""
    name = f"top_mosaic_09cm_area{number}.tif"
    return root / "top" / name, root / "gts_for_participants" / name


def _read(root: Path, number: int) -> tuple[Tensor, Tensor]:
    """Read a tile: pixels, uint8 (3, height, width), and classes, uint8 (height, width)."""
    photograph, classes = _tile(root, number)
    pixels, colours = _pixels(photograph), _pixels(classes)
    if pixels.shape != colours.shape or min(pixels.shape[:2]) < PATCH_SIZE:
        raise ValueError(
            f"{classes} has the shape {colours.shape}, and its photograph has the shape "
            f"{pixels.shape}; expected equal shapes of at least {PATCH_SIZE} x {PATCH_SIZE} "
            "pixels."
        )
    labels = np.full(colours.shape[:2], 255, np.uint8)
    for i, colour in enumerate(CLASS_COLOURS.values()):
        labels[(colours == colour).all(-1)] = i
    if (labels == 255).any():
        row, column = np.argwhere(labels == 255)[0]
        raise ValueError(
            f"{classes} has the colour {tuple(colours[row, column].tolist())}, which belongs "
            f"to none of the {len(CLASS_COLOURS)} classes."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)


def _pixels(path: Path) -> Any:
    """Read an RGB image, uint8 (height, width, 3)."""
    from PIL import Image  # noqa: PLC0415 - optional; not needed for embedded data

    try:
        with Image.open(path) as image:
            # Other modes are refused: converted colours might not match any class.
            if image.mode in {"RGB", "RGBA"}:
                return np.array(image)[..., :3].copy()
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again.") from error
    raise ValueError(f"{path} has the image mode {mode}, expected 8-bit RGB.")
