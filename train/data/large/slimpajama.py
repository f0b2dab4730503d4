"""SlimPajama: text from the web, books and code.

D. Soboleva et al., "SlimPajama: A 627B token cleaned and deduplicated version of RedPajama",
2023. Documents are joined end to end with an end token behind each, and cut into sequences;
targets are the next tokens. Tokens are those of Pythia's tokenizer. The tokens of the first
run are kept in a file next to the data for later runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.hub import Source, get_split, load_tables
from train.data.large.subwords import load_tokenizer
from train.data.words import python_documentation

SOURCE: Final = Source(
    title="SlimPajama",
    repository="cerebras/SlimPajama-627B",
    config=None,
    columns=("text",),
    files="train/chunk*/*.jsonl.zst, or some of these files, and Pythia's tokenizer.json",
)
END: Final = "<|endoftext|>"
N_DOCUMENTS_AT_ONCE: Final = 1000

STAND_IN_STRIDE: Final = 256
"""Number of bytes between the beginnings of two stand-in sequences."""


def slimpajama(
    data: Literal["true", "embedded"],
    directory: str | None,
    *,
    context: int,
    n_tokens: int,
) -> Splits:
    """Load sequences of at most `n_tokens` tokens, or bytes of Python's documentation."""
    if data == "embedded":
        train, validation = (
            Sequences(
                np.frombuffer("\n".join(lines).encode(), np.uint8), context, stride
            )
            for lines, stride in zip(
                python_documentation(), (STAND_IN_STRIDE, context), strict=True
            )
        )
        return Splits(train, validation, 0)
    tokens = _tokens(directory, n_tokens)
    if len(tokens) <= context:
        raise ValueError(
            f"{SOURCE.title} in {directory} has {len(tokens)} tokens, expected more than "
            f"the {context} of a sequence; add files."
        )
    return Splits(Sequences(tokens, context, context), None, 0)


class Sequences(Dataset[Any]):
    """Sequences of tokens and of the tokens after them, each int64 (context,)."""

    def __init__(self, tokens: npt.NDArray[Any], context: int, stride: int) -> None:
        self._tokens, self._context, self._stride = tokens, context, stride

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1 - self._context) // self._stride + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first = index * self._stride
        # The last sequence must not wrap around.
        window = self._tokens[first : first + self._context + 1].astype(np.int64)
        return torch.from_numpy(window[:-1]), torch.from_numpy(window[1:])


def _tokens(directory: str | None, n_tokens: int) -> npt.NDArray[np.uint16]:
    """Return the first tokens of the training text, from the file of an earlier run."""
    if directory is None:
        raise FileNotFoundError(
            f"{SOURCE.title}: no directory was given; pass the directory with "
            f"{SOURCE.files} as --data-dir, or use --data embedded."
        )
    path = Path(directory) / f"first-{n_tokens}-tokens.npy"
    if not path.exists():
        tokenizer = load_tokenizer(Path(directory) / "tokenizer.json", SOURCE.title)
        text = get_split(load_tables(SOURCE, directory), "train", SOURCE.title)
        blocks, n = [], 0
        for block in _encoded(text, tokenizer):
            blocks.append(block[: n_tokens - n])
            n += len(blocks[-1])
            if n == n_tokens:
                break
        np.save(path, np.concatenate(blocks))
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _encoded(table: Any, tokenizer: Any) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield the tokens of blocks of documents, each with an end token."""
    end = tokenizer.token_to_id(END)
    if end is None:
        raise ValueError(
            f"The tokenizer has no token {END!r}; use Pythia's tokenizer.json."
        )
    for rows in table.iter(batch_size=N_DOCUMENTS_AT_ONCE):
        ids = [[*e.ids, end] for e in tokenizer.encode_batch(rows["text"])]
        # Pythia's vocabulary has fewer than 2^16 tokens.
        yield np.concatenate([np.asarray(document, np.uint16) for document in ids])
