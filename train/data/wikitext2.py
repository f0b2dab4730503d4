"""WikiText-2: two million words of Wikipedia.

S. Merity, C. Xiong, J. Bradbury, R. Socher, "Pointer Sentinel Mixture Models", ICLR 2017.
arXiv 1609.07843. As in the published code of "No Wrong Turns", arXiv 2306.11922, words that
occur fewer than five times become the unknown word, and sequences have 32 words by default.
That code takes the first 32 words of each line and pads shorter lines. This module concatenates
lines, so every word is used and nothing is padded.
"""

from pathlib import Path
from typing import Final, Literal

from train.data import Splits
from train.data.hub import Source, get_split, load_tables
from train.data.words import python_documentation, read_lines, word_splits

SOURCE: Final = Source(
    title="WikiText-2",
    repository="Salesforce/wikitext",
    config="wikitext-2-v1",
    columns=("text",),
    files="wiki.train.tokens and wiki.valid.tokens, or with train-*.parquet and "
    "validation-*.parquet,",
)
CONTEXT: Final = 32
MIN_FREQUENCY: Final = 5


def wikitext2(
    data: Literal["true", "embedded"],
    directory: str | None,
    *,
    context: int = CONTEXT,
    min_frequency: int = MIN_FREQUENCY,
) -> Splits:
    """Load sequences of words from WikiText-2, or Python's documentation as a stand-in."""
    if data == "embedded":
        train, validation = python_documentation()
    elif (folder := _folder_of_text(directory)) is not None:
        train, validation = (
            read_lines(
                folder / f"wiki.{name}.tokens",
                SOURCE.title,
                "wiki.train.tokens and wiki.valid.tokens",
            )
            for name in ("train", "valid")
        )
    else:
        tables = load_tables(SOURCE, directory)
        train, validation = (
            get_split(tables, name, SOURCE.title)["text"][:]
            for name in ("train", "validation")
        )
    return word_splits(train, validation, context=context, min_frequency=min_frequency)


def _folder_of_text(directory: str | None) -> Path | None:
    """Return the folder of the original text files, or None if there is none."""
    # The folder may be inside the unpacked archive.
    if directory is None:
        return None
    folders = (Path(directory), Path(directory) / "wikitext-2")
    return next((f for f in folders if (f / "wiki.train.tokens").exists()), None)
