"""WikiText-2: two million words of Wikipedia.

S. Merity, C. Xiong, J. Bradbury, R. Socher, "Pointer Sentinel Mixture Models", ICLR 2017.
arXiv 1609.07843. As in the published code of "No Wrong Turns", arXiv 2306.11922, words that
occur less than five times are unknown, and sequences have 32 words, if nothing else is asked
for. That code takes the first 32 words of each line and fills shorter lines up; here lines
follow each other, so that every word is learnt from, and nothing is filled up.
"""

from pathlib import Path
from typing import Final, Literal

from train.data import Splits
from train.data.hub import Source, load_tables, split_of
from train.data.words import documentation, lines_of, splits_of

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


def wikitext2(
    data: Literal["true", "embedded"],
    directory: str | None,
    *,
    context: int = CONTEXT,
    min_frequency: int = MIN_FREQUENCY,
) -> Splits:
    """Load WikiText-2, or Python's own documentation in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        See `train.data.hub.load_tables`; the classic text files are read, too.
    context : int, default: 32
        Words in a sequence.
    min_frequency : int, default: 5
        Rarer words are unknown.

    Returns
    -------
    Splits
        Inputs and targets, int64 of shape (context,); a target is the word after. As many
        classes as words.
    """
    if data == "embedded":
        train, validation = documentation()
    elif (folder := _folder_of_text(directory)) is not None:
        train, validation = (
            lines_of(
                folder / f"wiki.{name}.tokens",
                SOURCE.title,
                "wiki.train.tokens and wiki.valid.tokens",
            )
            for name in ("train", "valid")
        )
    else:
        tables = load_tables(SOURCE, directory)
        train, validation = (
            split_of(tables, name, SOURCE.title)["text"][:]
            for name in ("train", "validation")
        )
    return splits_of(train, validation, context=context, min_frequency=min_frequency)


def _folder_of_text(directory: str | None) -> Path | None:
    """Find the classic files, there or in the folder that their archive unpacks to."""
    if directory is None:
        return None
    folders = (Path(directory), Path(directory) / "wikitext-2")
    return next((f for f in folders if (f / "wiki.train.tokens").exists()), None)
