"""Parts of words as tokens, with Hugging Face's ``tokenizers``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_tokenizer(path: Path, title: str) -> Any:
    """Load a tokenizer from its JSON file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{title}: {path} is missing; put the tokenizer's tokenizer.json there, or use "
            "--data embedded."
        )
    return _tokenizers().Tokenizer.from_file(str(path))


def train_tokenizer(path: Path, lines: Iterable[str], n_tokens: int) -> Any:
    """Learn byte pairs from text, and keep them in a JSON file for later runs."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        lines, n_tokens, show_progress=False, special_tokens=["<pad>", "<eos>"]
    )
    tokenizer.save(str(path))
    return tokenizers.Tokenizer.from_file(str(path))


def text_bytes(text: str, first: int = 0) -> Tensor:
    """Return the bytes of text as tokens, the smallest being `first`, int64 (byte,)."""
    return torch.tensor(list(text.encode()), dtype=torch.int64) + first


def _tokenizers() -> Any:
    """Import ``tokenizers`` late, because embedded data do not need it."""
    try:
        import tokenizers  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Text is cut into tokens with Hugging Face's tokenizers, which is not "
            'installed. Use --data embedded, or run\npip install "trajstore[data]"'
        ) from error
    return tokenizers
