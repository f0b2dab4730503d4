"""Penn Treebank: a million words of the Wall Street Journal.

M. Marcus, B. Santorini, M. Marcinkiewicz, "Building a Large Annotated Corpus of English: The
Penn Treebank", 1993; as prepared by T. Mikolov et al., "Recurrent Neural Network Based Language
Model", 2010: lower case, without punctuation, 10,000 words.
"""

from pathlib import Path
from typing import Final, Literal

from train.data import Splits
from train.data.wikitext2 import MIN_FREQUENCY
from train.data.words import python_documentation, read_lines, word_splits

TITLE: Final = "Penn Treebank"
N_WORDS: Final = 10_000
"""Size of the vocabulary, including the end of a line."""

DOWNLOAD_ADVICE: Final = (
    "Unpack simple-examples.tgz from T. Mikolov's page on language models, and pass the "
    "directory with ptb.train.txt and ptb.valid.txt as --data-dir; or use --data embedded."
)


def penn_treebank(
    data: Literal["true", "embedded"], directory: str | None, *, context: int
) -> Splits:
    """Load sequences of words from Penn Treebank, or Python's documentation as a stand-in."""
    if data == "embedded":
        return word_splits(
            *python_documentation(), context=context, min_frequency=MIN_FREQUENCY
        )
    folder = _folder(directory)
    train, validation = (
        read_lines(folder / f"ptb.{name}.txt", TITLE, "ptb.train.txt and ptb.valid.txt")
        for name in ("train", "valid")
    )
    splits = word_splits(train, validation, context=context, min_frequency=1)
    if splits.n_classes != N_WORDS:
        raise ValueError(
            f"{TITLE} has {N_WORDS} words, but found {splits.n_classes} in {folder}; "
            "download it again."
        )
    return splits


def _folder(directory: str | None) -> Path:
    """Return the folder of the files, which may be inside the unpacked archive."""
    if directory is None:
        raise FileNotFoundError(f"{TITLE}: no directory was given. {DOWNLOAD_ADVICE}")
    root = Path(directory)
    for folder in (root, root / "data", root / "simple-examples" / "data"):
        if (folder / "ptb.train.txt").exists():
            return folder
    raise FileNotFoundError(f"{TITLE}: it is not in {directory}. {DOWNLOAD_ADVICE}")
