"""Text as numbers of words."""

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


def splits_of(
    train: Sequence[str], validation: Sequence[str], *, context: int, min_frequency: int
) -> Splits:
    """Cut two texts into sequences, with the words of the first.

    Parameters
    ----------
    train, validation : sequence of str
        Lines.
    context : int
        Words in a sequence.
    min_frequency : int
        Words that occur less often in the first text are unknown.

    Returns
    -------
    Splits
        Inputs and targets, int64 of shape (context,); a target is the word after. As many
        classes as words.
    """
    numbers = vocabulary(train, min_frequency)
    return Splits(
        sequences(train, numbers, context),
        sequences(validation, numbers, context),
        len(numbers),
    )


def vocabulary(lines: Iterable[str], min_frequency: int) -> dict[str, int]:
    """Return the numbers of words that are frequent, and of what stands for others."""
    counts = Counter(word for line in lines for word in line.split())
    frequent = sorted(word for word, n in counts.items() if n >= min_frequency)
    words = [UNKNOWN, END, *(word for word in frequent if word not in {UNKNOWN, END})]
    return {word: i for i, word in enumerate(words)}


def sequences(
    lines: Iterable[str], numbers: dict[str, int], context: int
) -> TensorDataset:
    """Cut text into inputs and targets.

    Parameters
    ----------
    lines : iterable of str
        The text; each line ends with a word of its own, empty ones are left out.
    numbers : dict from str to int
        The vocabulary.
    context : int
        Words in a sequence.

    Returns
    -------
    torch.utils.data.TensorDataset
        int64, shape (context,) each.
    """
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


def documentation() -> tuple[list[str], list[str]]:
    """Return lines of Python's own documentation, nine tenths and the rest: a stand-in."""
    lines = [
        line
        for name in sorted(topics.topics)
        for line in topics.topics[name].split("\n")
    ]
    n_train = len(lines) * 9 // 10
    return lines[:n_train], lines[n_train:]


def lines_of(path: Path, title: str, together: str) -> list[str]:
    """Read a text.

    Parameters
    ----------
    path : pathlib.Path
        A file.
    title : str
        Of the data set, for messages.
    together : str
        Which files belong together, for messages.

    Returns
    -------
    list of str
        Its lines.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ValueError
        If it is no text.
    """
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{title}: {path} is missing; {together} belong together."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason}); download it again."
        ) from error
