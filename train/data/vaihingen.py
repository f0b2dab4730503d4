"""ISPRS Vaihingen: aerial photographs of a German town, with a class for every pixel.

M. Cramer, "The DGPF-Test on Digital Airborne Camera Evaluation", 2010; provided by the German
Society for Photogrammetry, Remote Sensing and Geoinformation (DGPF). As in "No Wrong Turns",
arXiv 2306.11922, 11 tiles are for training and 5 for validation, and an epoch has 10,000
random patches, flipped and mirrored at random. The paper does not say which tiles those are:
the numbers here are those of its published code. Patches for validation are flipped and
mirrored, too, as they are there.
"""

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.shapes import shapes

TRAIN: Final = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26)
VALIDATION: Final = (28, 30, 32, 34, 37)
"""Numbers of tiles."""

PATCHES_TRAIN: Final = 10_000
PATCHES_VALIDATION: Final = 1_000
SIZE: Final = 256

COLOURS: Final = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
"""Of the classes, in their order."""

ADVICE: Final = (
    "Ask for the data at isprs.org (2D semantic labelling, Vaihingen), and give the "
    "directory with top/ and gts_for_participants/ as --data-dir; or use --data embedded."
)


def vaihingen(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load Vaihingen, or generated shapes in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        Holds ``top_mosaic_09cm_area1.tif`` and so on in ``top``, the photographs, and in
        ``gts_for_participants``, the classes as colours.

    Returns
    -------
    Splits
        Images (3, 256, 256) in [0, 1] and classes of their pixels; six classes. Shapes
        have 32 x 32 pixels.

    Raises
    ------
    FileNotFoundError
        If tiles are missing.
    ValueError
        If a tile is damaged, too small, or has colours of no class.
    """
    if data == "embedded":
        return Splits(shapes(160, seed=0), shapes(40, seed=1), len(COLOURS))
    root = _root(directory)
    return Splits(
        RandomPatches([_read(root, i) for i in TRAIN], PATCHES_TRAIN),
        RandomPatches([_read(root, i) for i in VALIDATION], PATCHES_VALIDATION),
        len(COLOURS),
    )


class RandomPatches(Dataset[Any]):
    """Parts of tiles, drawn from torch's random stream whatever index is asked for.

    Parameters
    ----------
    tiles : list of tuple of torch.Tensor
        Images, uint8 (3, height, width), and classes, uint8 (height, width).
    n : int
        How many there are said to be.
    """

    def __init__(self, tiles: list[tuple[Tensor, Tensor]], n: int) -> None:
        self._tiles, self._n = tiles, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._n:
            raise IndexError(index)
        image, classes = self._tiles[int(torch.randint(len(self._tiles), ()))]
        height, width = classes.shape
        top = int(torch.randint(0, height - SIZE + 1, ()))
        left = int(torch.randint(0, width - SIZE + 1, ()))
        part = (..., slice(top, top + SIZE), slice(left, left + SIZE))
        pixels, target = image[part].float() / 255, classes[part].long()
        for axis in (-1, -2):
            if torch.rand(()) < 0.5:
                pixels, target = pixels.flip(axis), target.flip(axis)
        return pixels, target


def _root(directory: str | None) -> Path:
    """Check that all tiles are in a directory."""
    if directory is None:
        raise FileNotFoundError(f"Vaihingen: no directory was given. {ADVICE}")
    root = Path(directory)
    numbers = (*TRAIN, *VALIDATION)
    missing = [i for i in numbers if not all(path.exists() for path in _tile(root, i))]
    if missing:
        raise FileNotFoundError(
            f"Vaihingen: {directory} lacks the photographs or the classes of "
            f"{len(missing)} of {len(numbers)} tiles, first of number {missing[0]}. "
            f"{ADVICE}"
        )
    return root


def _tile(root: Path, number: int) -> tuple[Path, Path]:
    """Return where the photograph is, and where the classes of its pixels are."""
    name = f"top_mosaic_09cm_area{number}.tif"
    return root / "top" / name, root / "gts_for_participants" / name


def _read(root: Path, number: int) -> tuple[Tensor, Tensor]:
    """Read one tile, uint8 of shape (3, height, width) and (height, width)."""
    photograph, classes = _tile(root, number)
    pixels, colours = _pixels(photograph), _pixels(classes)
    if pixels.shape != colours.shape or min(pixels.shape[:2]) < SIZE:
        raise ValueError(
            f"{classes} has the shape {colours.shape}, expected that of the photograph, "
            f"{pixels.shape}, with at least {SIZE} x {SIZE} pixels."
        )
    known = np.full(colours.shape[:2], 255, np.uint8)
    for i, colour in enumerate(COLOURS.values()):
        known[(colours == colour).all(-1)] = i
    if (known == 255).any():
        row, column = np.argwhere(known == 255)[0]
        raise ValueError(
            f"{classes} has the colour {tuple(colours[row, column].tolist())}, which is "
            f"none of the {len(COLOURS)} classes."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(known)


def _pixels(path: Path) -> Any:
    """Read an image, uint8 of shape (height, width, 3)."""
    from PIL import Image  # noqa: PLC0415 - of an extra, and embedded data do without

    try:
        with Image.open(path) as image:
            # Others would be turned into colours that nobody has drawn.
            if image.mode in {"RGB", "RGBA"}:
                return np.array(image)[..., :3].copy()
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again.") from error
    raise ValueError(f"{path} has pixels of the kind {mode}, expected RGB in 8 bits.")
