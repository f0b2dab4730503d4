"""A language model of three LSTM layers.

Layers and the tied output matrix as in S. Merity, N. Keskar, R. Socher, "Regularizing and
Optimizing LSTM Language Models", ICLR 2018, arXiv 1708.02182, without its regularisation; the
cell is that of S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", 1997.
"""

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

DIM: Final = 400
"""Numbers that stand for a word, as in the published model."""


class LSTMLanguageModel(nn.Module):
    """Predicts the next token; the embedding is also the output matrix.

    Every sequence begins with a state of zeros.

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary.
    dim : int
        Numbers for a token, and width of the last layer.
    width : int
        Of the first two layers.
    """

    def __init__(self, n_tokens: int, *, dim: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, dim)
        widths = [dim, width, width, dim]
        self.layers = nn.ModuleList(
            nn.LSTM(n_in, n_out, batch_first=True) for n_in, n_out in pairwise(widths)
        )
        self.head = nn.Linear(dim, n_tokens)
        nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, context) to logits (N, context, n_tokens)."""
        x = self.tokens(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        logits: Tensor = self.head(x)
        return logits


def lstm_language_model(n_tokens: int, width: int) -> LSTMLanguageModel:
    """Three layers: 35,427,116 parameters for 10,000 words at a width of 1473.

    R. Islamov et al., "Loss Landscape Characterization of Neural Networks without
    Over-Parametrization", NeurIPS 2024, gives 35.4 million on Penn Treebank, and 44.8 on
    WikiText-2 with 33,278 words, and no widths. The difference is that of a tied embedding
    of 400; the width that gives both numbers, 1473, is our own.

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary.
    width : int
        Of the first two layers.

    Returns
    -------
    LSTMLanguageModel
        Maps tokens (N, context) to logits (N, context, n_tokens).
    """
    return LSTMLanguageModel(n_tokens, dim=DIM, width=width)
