"""Penn Treebank: a million words of the Wall Street Journal.

M. Marcus, B. Santorini, M. Marcinkiewicz, "Building a Large Annotated Corpus of English: The
Penn Treebank", 1993; as prepared by T. Mikolov et al., "Recurrent Neural Network Based Language
Model", 2010: lower case, without punctuation, 10,000 words.
"""

from pathlib import Path
from typing import Final, Literal

from train.data import Splits
from train.data.wikitext2 import MIN_FREQUENCY
from train.data.words import documentation, lines_of, splits_of

TITLE: Final = "Penn Treebank"
N_WORDS: Final = 10_000
"""The end of a line is one of them."""

ADVICE: Final = (
    "Unpack simple-examples.tgz of T. Mikolov's page on language models, and give the "
    "directory with ptb.train.txt and ptb.valid.txt as --data-dir; or use --data embedded."
)


def penn_treebank(
    data: Literal["true", "embedded"], directory: str | None, *, context: int
) -> Splits:
    """Load Penn Treebank, or Python's own documentation in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        Holds ``ptb.train.txt`` and ``ptb.valid.txt``, or is what their archive unpacks to.
    context : int
        Words in a sequence.

    Returns
    -------
    Splits
        Inputs and targets, int64 of shape (context,); a target is the word after. As many
        classes as words: 10,000, or those that occur five times in the documentation.

    Raises
    ------
    FileNotFoundError
        If it is not there; says what to download.
    ValueError
        If it is damaged, or another text.
    """
    if data == "embedded":
        return splits_of(*documentation(), context=context, min_frequency=MIN_FREQUENCY)
    folder = _folder(directory)
    train, validation = (
        lines_of(folder / f"ptb.{name}.txt", TITLE, "ptb.train.txt and ptb.valid.txt")
        for name in ("train", "valid")
    )
    splits = splits_of(train, validation, context=context, min_frequency=1)
    if splits.n_classes != N_WORDS:
        raise ValueError(
            f"{TITLE} has {N_WORDS} words, but found {splits.n_classes} in {folder}; "
            "download it again."
        )
    return splits


def _folder(directory: str | None) -> Path:
    """Find the files, there or in a folder of the archive."""
    if directory is None:
        raise FileNotFoundError(f"{TITLE}: no directory was given. {ADVICE}")
    root = Path(directory)
    for folder in (root, root / "data", root / "simple-examples" / "data"):
        if (folder / "ptb.train.txt").exists():
            return folder
    raise FileNotFoundError(f"{TITLE}: it is not in {directory}. {ADVICE}")
