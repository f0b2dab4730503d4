"""WikiText-2: two million words of Wikipedia.

S. Merity, C. Xiong, J. Bradbury, R. Socher, "Pointer Sentinel Mixture Models", ICLR 2017.
arXiv 1609.07843. As in the published code of "No Wrong Turns", arXiv 2306.11922, words that
occur less than five times are unknown, and sequences have 32 words. That code takes the
first 32 words of each line and fills shorter lines up; here lines follow each other, so that
every word is learnt from, and nothing is filled up.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Final, Literal

import torch
from torch.utils.data import TensorDataset

from train.data import Splits
from train.data.hub import Source, load_tables, split_of

SOURCE: Final = Source(
    title="WikiText-2",
    repository="Salesforce/wikitext",
    config="wikitext-2-v1",
    columns=("text",),
    files="wiki.train.tokens and wiki.valid.tokens, or train-*.parquet and "
    "validation-*.parquet",
)
CONTEXT: Final = 32
MIN_FREQUENCY: Final = 5
UNKNOWN: Final = "<unk>"
END: Final = "<eos>"


def wikitext2(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load WikiText-2, or Python's own documentation in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        See `train.data.hub.load_tables`; the classic text files are read, too.

    Returns
    -------
    Splits
        Inputs and targets, int64 of shape (32,); a target is the word after. As many
        classes as words.
    """
    train: Sequence[str]
    validation: Sequence[str]
    if data == "embedded":
        lines = [
            line
            for name in sorted(topics.topics)
            for line in topics.topics[name].split("\n")
        ]
        n_train = len(lines) * 9 // 10
        train, validation = lines[:n_train], lines[n_train:]
    elif (folder := _folder_of_text(directory)) is not None:
        train, validation = (
            _lines(folder / f"wiki.{name}.tokens") for name in ("train", "valid")
        )
    else:
        tables = load_tables(SOURCE, directory)
        train, validation = (
            split_of(tables, name, SOURCE.title)["text"][:]
            for name in ("train", "validation")
        )
    numbers = vocabulary(train)
    return Splits(
        sequences(train, numbers), sequences(validation, numbers), len(numbers)
    )


def vocabulary(lines: Iterable[str]) -> dict[str, int]:
    """Return the numbers of words that are frequent, and of what stands for others."""
    counts = Counter(word for line in lines for word in line.split())
    frequent = sorted(word for word, n in counts.items() if n >= MIN_FREQUENCY)
    words = [UNKNOWN, END, *(word for word in frequent if word not in {UNKNOWN, END})]
    return {word: i for i, word in enumerate(words)}


def sequences(lines: Iterable[str], numbers: dict[str, int]) -> TensorDataset:
    """Cut text into inputs and targets.

    Parameters
    ----------
    lines : iterable of str
        The text; each line ends with a word of its own, empty ones are left out.
    numbers : dict from str to int
        The vocabulary.

    Returns
    -------
    torch.utils.data.TensorDataset
        int64, shape (32,) each.
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
    n = max(0, len(tokens) - 1) // CONTEXT
    inputs = tokens[: n * CONTEXT].view(n, CONTEXT)
    targets = tokens[1 : n * CONTEXT + 1].view(n, CONTEXT)
    return TensorDataset(inputs, targets)


def _folder_of_text(directory: str | None) -> Path | None:
    """Find the classic files, there or in the folder that their archive unpacks to."""
    if directory is None:
        return None
    folders = (Path(directory), Path(directory) / "wikitext-2")
    return next((f for f in folders if (f / "wiki.train.tokens").exists()), None)


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{SOURCE.title}: {path} is missing; wiki.train.tokens and wiki.valid.tokens "
            "belong together."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason}); download it again."
        ) from error
