"""Criteo's click logs: four billion advertisements, each clicked or not.

Criteo AI Lab, "Criteo 1TB Click Logs". As in the AlgoPerf benchmark (G. Dahl et al., 2023,
arXiv 2306.07179), days 0 to 22 are for training and the second half of day 23 for validation,
and a number n becomes log(1 + n), with 0 for missing and negative numbers. A category becomes
a number below 2^24 by its CRC-32; AlgoPerf uses another hash.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from train.data import Splits
from train.data.digits import digits

N_TRAIN_DAYS: Final = 23
N_NUMBERS: Final = 13
N_CATEGORIES: Final = 26
N_VALUES: Final = 2**24
"""Numbers of categories; a float32 holds them exactly."""

N_FIELDS: Final = 1 + N_NUMBERS + N_CATEGORIES
SCAN_BYTES: Final = 1 << 24

DOWNLOAD_ADVICE: Final = (
    "Download the Criteo 1TB click logs, unpack them, and pass the directory with day_0 to "
    "day_23 as --data-dir (some of the days are enough); or use --data embedded."
)


def criteo(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load click logs; the stand-in asks which digits are even."""
    if data == "embedded":
        train, validation = digits()
        return Splits(_digits_as_clicks(train), _digits_as_clicks(validation), 1)
    root = Path(directory or "")
    if directory is None or not root.is_dir():
        raise FileNotFoundError(
            f"Criteo: there is no directory {directory}. {DOWNLOAD_ADVICE}"
        )
    days = [root / f"day_{day}" for day in range(N_TRAIN_DAYS)]
    train_days = [ClickLog(path) for path in days if path.exists()]
    if not train_days:
        raise FileNotFoundError(
            f"Criteo: none of day_0 to day_{N_TRAIN_DAYS - 1} is in {directory}. "
            f"{DOWNLOAD_ADVICE}"
        )
    last = root / f"day_{N_TRAIN_DAYS}"
    validation_log: Any = None
    if last.exists():
        log = ClickLog(last)
        validation_log = Subset(log, range(len(log) // 2, len(log)))
    return Splits(ConcatDataset(train_days), validation_log, 1)


class ClickLog(Dataset[Any]):
    """The lines of one file: 39 inputs, float32, and a label."""

    # Eight bytes of memory for each line hold where it begins.

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = line_starts(path)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        with self._path.open("rb") as file:
            examples = []
            for index in indices:
                file.seek(self._starts[index])
                examples.append(parse(file.readline(), self._path, index))
        return examples


def line_starts(path: Path) -> npt.NDArray[np.int64]:
    """Return where the lines of a file begin, in bytes."""
    starts = [np.zeros(1, np.int64)]
    position = 0
    with path.open("rb") as file:
        while block := file.read(SCAN_BYTES):
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts.append(position + newlines + 1)
            position += len(block)
    every = np.concatenate(starts)
    return every[every < position]


def parse(line: bytes, path: Path, index: int) -> tuple[Tensor, Tensor]:
    """Turn a line into 39 inputs, float32, and a label, float32 ()."""
    fields = line.rstrip(b"\n").split(b"\t")
    if len(fields) != N_FIELDS:
        raise ValueError(
            f"Line {index + 1} of {path} has {len(fields)} fields, expected {N_FIELDS}; "
            "unpack the file again."
        )
    label, numbers = fields[0], fields[1 : 1 + N_NUMBERS]
    positive = [max(0.0, float(number or 0)) for number in numbers]
    # The number of the column makes equal words of different columns different.
    rows = [
        zlib.crc32(word + b"%d" % column) % N_VALUES
        for column, word in enumerate(fields[1 + N_NUMBERS :])
    ]
    inputs = torch.tensor([*np.log1p(positive), *rows], dtype=torch.float32)
    return inputs, torch.tensor(float(label))


def _digits_as_clicks(part: TensorDataset) -> TensorDataset:
    """Return 13 pixels as numbers, 26 others as categories, and whether a digit is even."""
    images, labels = part.tensors
    pixels = (16 * images.flatten(1)).round()
    columns = torch.arange(N_CATEGORIES) * 17
    inputs = torch.cat(
        [pixels[:, 18 : 18 + N_NUMBERS].log1p(), pixels[:, 32:58] + columns], 1
    )
    return TensorDataset(inputs, (labels % 2 == 0).float())
