"""CIFAR-10 and CIFAR-100 as their author's archives, and as the hub's tables, have them.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.data.hub import (
    Source,
    check_labels,
    labels_of,
    load_tables,
    picture,
    split_of,
)
from train.data.images import Images, normalized

SIZE: Final = 32


class Cifar(NamedTuple):
    """One of the two data sets.

    Attributes
    ----------
    source : Source
        On the hub.
    image, label : str
        Columns there.
    n_classes : int
        How many.
    folder : str
        What the archive in Python's format unpacks to.
    files : dict from str to tuple of str
        In that folder, by split.
    labels : bytes
        What they are called there.
    mean, std : torch.Tensor
        Of the channels of the training images.
    """

    source: Source
    image: str
    label: str
    n_classes: int
    folder: str
    files: dict[str, tuple[str, ...]]
    labels: bytes
    mean: Tensor
    std: Tensor


def images_and_labels(
    cifar: Cifar, split: str, directory: str | None
) -> tuple[Tensor, Tensor]:
    """Load images of one split.

    Parameters
    ----------
    cifar : Cifar
        Which data set.
    split : {"train", "test"}
        Which part.
    directory : str or None
        Holds the archive's files, or the folder that it unpacks to; or see
        `train.data.hub.load_tables`.

    Returns
    -------
    images : torch.Tensor
        uint8, shape (example, 3, 32, 32).
    labels : torch.Tensor
        int64, shape (example,).

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is damaged, or something else.
    """
    if (folder := _folder(cifar, directory)) is None:
        title = cifar.source.title
        table = split_of(load_tables(cifar.source, directory), split, title)
        labels = labels_of(table, cifar.label, cifar.n_classes, title)
        return _stacked(table, cifar.image, title), labels
    parts = [_batch(folder / name, cifar) for name in cifar.files[split]]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, labels


def as_they_are(cifar: Cifar, split: str, directory: str | None) -> Images:
    """Load images of one split, for a model that gets them without augmentation."""
    images, labels = images_and_labels(cifar, split, directory)
    return Images(images, labels, partial(normalized, mean=cifar.mean, std=cifar.std))


def _stacked(table: Any, column: str, title: str) -> Tensor:
    """Decode all images, uint8 of shape (example, 3, 32, 32)."""
    images = np.empty((len(table), SIZE, SIZE, 3), np.uint8)
    for i in range(len(table)):
        image = picture(table, i, column, title)
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"Image {i} of {title} has {image.size} pixels, expected {(SIZE, SIZE)}."
            )
        images[i] = np.asarray(image)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _folder(cifar: Cifar, directory: str | None) -> Path | None:
    """Find the archive's files, there or in the folder that it unpacks to."""
    if directory is None:
        return None
    folders = (Path(directory), Path(directory) / cifar.folder)
    names = [name for split in cifar.files.values() for name in split]
    for folder in folders:
        missing = [name for name in names if not (folder / name).is_file()]
        if len(missing) == len(names):
            continue
        if missing:
            raise FileNotFoundError(
                f"{cifar.source.title}: {folder / missing[0]} is missing; "
                f"{', '.join(names)} belong together."
            )
        return folder
    return None


class _Arrays(pickle.Unpickler):
    """Reads lists, numbers and arrays; anything else in a file might run its own code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes an array."""
        if (module, name) in ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


ARRAYS: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
DAMAGE: Final = (
    pickle.UnpicklingError,
    *(EOFError, AttributeError, ImportError, IndexError, KeyError, MemoryError),
    *(OverflowError, TypeError, ValueError),
)
"""What a pickle that is cut off or overwritten may raise."""


def _batch(path: Path, cifar: Cifar) -> tuple[Tensor, Tensor]:
    """Read one file of the archive: images (example, 3, 32, 32), and labels."""
    try:
        with path.open("rb") as file:
            content = _unpickled(file)
            pixels = np.asarray(content[b"data"], np.uint8)
            images = pixels.reshape(-1, 3, SIZE, SIZE)
            labels = torch.tensor(content[cifar.labels], dtype=torch.int64)
    except DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is no file of {cifar.source.title} ({reason}); download it again."
        ) from error
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path} has {len(images)} images, but {len(labels)} labels; download it "
            "again."
        )
    check_labels(labels, cifar.n_classes, cifar.source.title)
    return torch.from_numpy(images.copy()), labels


def _unpickled(file: IO[bytes]) -> Any:
    # Written by Python 2, whose text was bytes.
    return _Arrays(file, encoding="bytes").load()
