"""Turn text into sequences of word numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Final

import torch
from torch.utils.data import TensorDataset

from train.data import Splits

UNKNOWN: Final = "<unk>"
END: Final = "<eos>"


def word_splits(
    train: Sequence[str], validation: Sequence[str], *, context: int, min_frequency: int
) -> Splits:
    """Cut two texts into sequences, with the vocabulary of the training text."""
    numbers = vocabulary(train, min_frequency)
    return Splits(
        sequences(train, numbers, context),
        sequences(validation, numbers, context),
        len(numbers),
    )


def vocabulary(lines: Iterable[str], min_frequency: int) -> dict[str, int]:
    """Map words to numbers: 0 for unknown words, 1 for line ends, then frequent words."""
    counts = Counter(word for line in lines for word in line.split())
    frequent = sorted(word for word, n in counts.items() if n >= min_frequency)
    words = [UNKNOWN, END, *(word for word in frequent if word not in {UNKNOWN, END})]
    return {word: i for i, word in enumerate(words)}


def sequences(
    lines: Iterable[str], numbers: dict[str, int], context: int
) -> TensorDataset:
    """Cut lines into inputs and targets (the next words), int64 (context,)."""
    # Empty lines are skipped.
    unknown = numbers[UNKNOWN]
    tokens = torch.tensor(
        [
            numbers.get(word, unknown)
            for line in lines
            if line.strip()
            for word in [*line.split(), END]
        ],
        dtype=torch.int64,
    )
    n = max(0, len(tokens) - 1) // context
    inputs = tokens[: n * context].view(n, context)
    targets = tokens[1 : n * context + 1].view(n, context)
    return TensorDataset(inputs, targets)


def python_documentation() -> tuple[list[str], list[str]]:
    """Return the lines of Python's documentation: the first nine tenths, and the rest."""
    lines = [
        line
        for name in sorted(topics.topics)
        for line in topics.topics[name].split("\n")
    ]
    n_train = len(lines) * 9 // 10
    return lines[:n_train], lines[n_train:]


def read_lines(path: Path, title: str, file_names: str) -> list[str]:
    """Read the lines of a text file, one of the files that a data set consists of."""
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{title}: {path} is missing; {file_names} belong together."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason}); download it again."
        ) from error
