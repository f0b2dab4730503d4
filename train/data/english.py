"""English text that every Python installation has: the language reference of ``help()``."""

from pydoc_data import topics
from typing import Final

import torch
from torch.utils.data import TensorDataset

VOCABULARY: Final = 128
"""Tokens are ASCII codes; a question mark replaces each character that is not ASCII."""


def english(context: int) -> TensorDataset:
    """Cut the text into inputs and targets (the next tokens), int64 (context,)."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    n = (len(tokens) - 1) // context
    inputs = tokens[: n * context].view(n, context)
    targets = tokens[1 : n * context + 1].view(n, context)
    return TensorDataset(inputs, targets)
