"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in ten classes.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017. arXiv 1708.07747.
"""

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from train.data import Splits
from train.data.hub import (
    Source,
    check_labels,
    decode_image,
    get_split,
    load_tables,
    read_labels,
)
from train.data.images import Images, enlarged_digits, normalized

SOURCE: Final = Source(
    title="Fashion-MNIST",
    repository="zalando-datasets/fashion_mnist",
    config=None,
    columns=("image", "label"),
    files="train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, or its *.parquet files",
)
N_CLASSES: Final = 10
SIZE: Final = 28

MEAN: Final = torch.tensor([0.2860])
STD: Final = torch.tensor([0.3530])
"""Mean and standard deviation of the pixels of the training images."""

IDX_UINT8_MAGIC: Final = b"\0\0\x08"
"""First bytes of an IDX file of unsigned bytes."""

FILE_PREFIXES: Final = {"train": "train", "test": "t10k"}
FILE_SUFFIXES: Final = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}


def fashion_mnist(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load Fashion-MNIST images (1, 28, 28), or digits as a stand-in."""
    if data == "embedded":
        return Splits(*enlarged_digits(SIZE, n_channels=1), N_CLASSES)
    folder = _folder(directory)
    if folder is None:
        tables = load_tables(SOURCE, directory)
        parts = [_from_table(tables, split) for split in FILE_PREFIXES]
    else:
        parts = [_from_files(folder, split) for split in FILE_PREFIXES]
    transform = partial(normalized, mean=MEAN, std=STD)
    train, test = (Images(*part, transform) for part in parts)
    return Splits(train, test, N_CLASSES)


def _folder(directory: str | None) -> Path | None:
    """Return the folder of the original files, or None if there is none."""
    # The files may be in the directory itself, or where torchvision puts them.
    if directory is None:
        return None
    root = Path(directory)
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        if any(
            _existing_files(
                folder, f"{FILE_PREFIXES['train']}-{FILE_SUFFIXES['images']}"
            )
        ):
            return folder
    return None


def _existing_files(folder: Path, name: str) -> list[Path]:
    """Return the existing files of a name: the unpacked file first, then the compressed."""
    paths = (folder / name, folder / f"{name}.gz")
    return [path for path in paths if path.is_file()]


def _from_files(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read images (example, 1, 28, 28) and labels from the original files."""
    images, labels = (
        _read(folder, f"{FILE_PREFIXES[split]}-{name}")
        for name in FILE_SUFFIXES.values()
    )
    if images.shape != (len(labels), SIZE, SIZE) or labels.ndim != 1:
        raise ValueError(
            f"{folder} has {split} images of the shape {images.shape} and labels of the "
            f"shape {labels.shape}, expected {SIZE} x {SIZE} pixels for each label."
        )
    classes = torch.from_numpy(labels).long()
    check_labels(classes, N_CLASSES, SOURCE.title)
    return torch.from_numpy(images)[:, None], classes


def _read(folder: Path, name: str) -> Any:
    """Read an array from an IDX file, which may be compressed."""
    paths = _existing_files(folder, name)
    if not paths:
        raise FileNotFoundError(
            f"{SOURCE.title}: {folder / name} is missing, and so is its .gz file; the "
            "images and labels for training and test belong together."
        )
    path = paths[0]
    try:
        content = (
            gzip.decompress(path.read_bytes())
            if path.suffix == ".gz"
            else path.read_bytes()
        )
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be unpacked ({error}); download it again."
        ) from error
    array = _array(content)
    if array is None:
        raise ValueError(
            f"{path} is not an array of bytes in IDX format, or is truncated; download "
            "it again."
        )
    return array


def _array(content: bytes) -> Any:
    """Return the array in the content of an IDX file, or None if the content is invalid."""
    # The content is a type, a number of dimensions, their lengths and the elements.
    start = 4 + 4 * content[3] if len(content) > 3 else 0
    if content[:3] != IDX_UINT8_MAGIC or len(content) < start:
        return None
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        return None
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _from_table(tables: Any, split: str) -> tuple[Tensor, Tensor]:
    """Decode images (example, 1, 28, 28) and labels from the hub's tables."""
    table = get_split(tables, split, SOURCE.title)
    labels = read_labels(table, "label", N_CLASSES, SOURCE.title)
    images = np.empty((len(table), SIZE, SIZE), np.uint8)
    for i in range(len(table)):
        image = decode_image(table, i, "image", SOURCE.title)
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"Image {i} of {SOURCE.title} has {image.size} pixels, expected "
                f"{(SIZE, SIZE)}."
            )
        # All three channels of a grey image are equal.
        images[i] = np.asarray(image)[..., 0]
    return torch.from_numpy(images)[:, None], labels
