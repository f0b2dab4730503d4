"""CIFAR-10 and CIFAR-100, read from their author's archives or from Hugging Face's tables.

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
    decode_image,
    get_split,
    load_tables,
    read_labels,
)
from train.data.images import Images, normalized

SIZE: Final = 32


class Cifar(NamedTuple):
    """Names and constants of one of the two data sets."""

    source: Source
    image: str  # column of images in the hub's tables
    label: str  # column of labels in the hub's tables
    n_classes: int
    folder: str  # folder of the unpacked archive in Python's format
    files: dict[str, tuple[str, ...]]  # names of the files in `folder`, by split
    labels: bytes  # key of the labels in each of `files`
    mean: Tensor  # mean of each channel of the training images, float32 (3,)
    std: Tensor  # standard deviation of each channel, float32 (3,)


def images_and_labels(
    cifar: Cifar, split: str, directory: str | None
) -> tuple[Tensor, Tensor]:
    """Load a split's images, uint8 (example, 3, 32, 32), and labels, int64 (example,)."""
    if (folder := _folder(cifar, directory)) is None:
        title = cifar.source.title
        table = get_split(load_tables(cifar.source, directory), split, title)
        labels = read_labels(table, cifar.label, cifar.n_classes, title)
        return _stacked(table, cifar.image, title), labels
    parts = [_batch(folder / name, cifar) for name in cifar.files[split]]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, labels


def without_augmentation(cifar: Cifar, split: str, directory: str | None) -> Images:
    """Load the images of a split, which are normalised but not augmented."""
    images, labels = images_and_labels(cifar, split, directory)
    return Images(images, labels, partial(normalized, mean=cifar.mean, std=cifar.std))


def _stacked(table: Any, column: str, title: str) -> Tensor:
    """Decode all images of a table, uint8 (example, 3, 32, 32)."""
    images = np.empty((len(table), SIZE, SIZE, 3), np.uint8)
    for i in range(len(table)):
        image = decode_image(table, i, column, title)
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"Image {i} of {title} has {image.size} pixels, expected {(SIZE, SIZE)}."
            )
        images[i] = np.asarray(image)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _folder(cifar: Cifar, directory: str | None) -> Path | None:
    """Return the folder of the archive's files, or None if there is none."""
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


class _ArrayUnpickler(pickle.Unpickler):
    """Reads only lists, numbers and arrays; other objects in a file could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a constructor of arrays, and refuse any other object."""
        if (module, name) in ARRAY_CONSTRUCTORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


ARRAY_CONSTRUCTORS: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
UNPICKLING_ERRORS: Final = (
    pickle.UnpicklingError,
    *(EOFError, AttributeError, ImportError, IndexError, KeyError, MemoryError),
    *(OverflowError, TypeError, ValueError),
)
"""Exceptions that a truncated or overwritten pickle can raise."""


def _batch(path: Path, cifar: Cifar) -> tuple[Tensor, Tensor]:
    """Read images (example, 3, 32, 32) and labels from one file of the archive."""
    try:
        with path.open("rb") as file:
            content = _unpickled(file)
            pixels = np.asarray(content[b"data"], np.uint8)
            images = pixels.reshape(-1, 3, SIZE, SIZE)
            labels = torch.tensor(content[cifar.labels], dtype=torch.int64)
    except UNPICKLING_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is not a file of {cifar.source.title} ({reason}); download it again."
        ) from error
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path} has {len(images)} images, but {len(labels)} labels; download it "
            "again."
        )
    check_labels(labels, cifar.n_classes, cifar.source.title)
    return torch.from_numpy(images.copy()), labels


def _unpickled(file: IO[bytes]) -> Any:
    # The file was written by Python 2, whose strings were bytes.
    return _ArrayUnpickler(file, encoding="bytes").load()
