"""WMT 2017: six million sentences in German and English.

O. Bojar et al., "Findings of the 2017 Conference on Machine Translation (WMT17)", 2017. As in
the AlgoPerf benchmark (G. Dahl et al., 2023, arXiv 2306.07179), German is translated to
English, with 32,000 tokens for both languages and at most 256 tokens in a sentence. The tokens
are byte pairs that are learnt from the training sentences; AlgoPerf uses SentencePiece.
"""

from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.hub import Source, get_split, load_tables
from train.data.large.subwords import load_tokenizer, text_bytes, train_tokenizer
from train.data.words import python_documentation

SOURCE: Final = Source(
    title="WMT 2017",
    repository="wmt/wmt17",
    config="de-en",
    columns=("translation",),
    files="train-*.parquet and validation-*.parquet",
)
N_TOKENS: Final = 32_000
LENGTH: Final = 256
END: Final = 1
"""Token behind a sentence; 0 fills the rest."""

STAND_IN_LENGTH: Final = 64


def wmt(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load pairs of sentences, or pairs of lines of Python's documentation as a stand-in."""
    if data == "embedded":
        lines = [LinePairs(part) for part in python_documentation()]
        return Splits(lines[0], lines[1], N_TOKENS)
    tables = load_tables(SOURCE, directory)
    parts = [
        get_split(tables, name, SOURCE.title)["translation"]
        for name in ("train", "validation")
    ]
    tokenizer = _tokenizer(directory, parts[0])
    train, validation = (Sentences(part, tokenizer) for part in parts)
    return Splits(train, validation, N_TOKENS)


class Sentences(Dataset[Any]):
    """Source and target, int64 (2, 256), and the target again, int64 (256,)."""

    def __init__(self, pairs: Any, tokenizer: Any) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self._pairs[index]
        source, target = (
            torch.tensor(self._tokenizer.encode(pair[language]).ids, dtype=torch.int64)
            for language in ("de", "en")
        )
        return example(source, target, LENGTH)


class LinePairs(Dataset[Any]):
    """Lines and the lines that follow them, as bytes."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = [line.strip() for line in lines if line.strip()]

    def __len__(self) -> int:
        return len(self._lines) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        source, target = (
            text_bytes(line, first=END + 1) for line in self._lines[index : index + 2]
        )
        return example(source, target, STAND_IN_LENGTH)


def example(source: Tensor, target: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """End two sentences, cut or fill them to a length, and return input and target."""
    pair = torch.zeros(2, length, dtype=torch.int64)
    for row, tokens in zip(pair, (source, target), strict=True):
        kept = tokens[: length - 1]
        row[: len(kept)] = kept
        row[len(kept)] = END
    return pair, pair[1]


def _tokenizer(directory: str | None, pairs: Any) -> Any:
    """Load the byte pairs from the directory of the data, or learn them."""
    if directory is None:
        raise FileNotFoundError(
            "WMT 2017: the learnt tokens need a directory; pass the directory of the data "
            "as --data-dir, or use --data embedded."
        )
    path = Path(directory) / "tokenizer.json"
    if path.exists():
        return load_tokenizer(path, SOURCE.title)
    lines = (pair[language] for pair in pairs for language in ("de", "en"))
    return train_tokenizer(path, lines, N_TOKENS)
