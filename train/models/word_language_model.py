"""The transformer language model of PyTorch's example `word_language_model`.

C. Guille-Escuret et al., "No Wrong Turns: The Simple Geometry Of Neural Networks
Optimization Paths", 2023, arXiv 2306.11922, trains it on WikiText-2, after A. Vaswani
et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762: layer normalisation
after each sub-layer, sinusoids for positions.
"""

import math

import torch
from torch import Tensor, nn


class WordLanguageModel(nn.Module):
    """Predicts the next token from those before; its output matrix is its own.

    `torch.nn.TransformerEncoder` copies one layer, so all layers begin alike.

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary.
    dim : int
        Width of the residual stream, an even multiple of `n_heads`.
    n_hidden : int
        Width of the feed-forward layers.
    n_layers, n_heads : int
        Layers, and attention heads in each.
    over_batch : bool
        Attend from sample to sample at each place instead of from place to place in
        each sample.
    """

    def __init__(
        self,
        n_tokens: int,
        *,
        dim: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        over_batch: bool,
    ) -> None:
        super().__init__()
        self.over_batch = over_batch
        self.tokens = nn.Embedding(n_tokens, dim)
        layer = nn.TransformerEncoderLayer(
            dim, n_heads, n_hidden, dropout=0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, n_tokens)
        nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, context) to logits (N, context, n_tokens)."""
        x = self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim)
        if self.over_batch:
            x = x.transpose(0, 1)
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        mask = nn.Transformer.generate_square_subsequent_mask(
            x.shape[1], device=x.device, dtype=x.dtype
        )
        x = self.layers(x, mask=mask, is_causal=True)
        if self.over_batch:
            x = x.transpose(0, 1)
        logits: Tensor = self.head(x)
        return logits


def sinusoids(n: int, dim: int) -> Tensor:
    """Codes of the places 0 to n - 1 of a sequence (Vaswani et al., section 3.5).

    Place p has sin(p / 10000^(2i / dim)) at 2i and the cosine of the same at 2i + 1.

    Parameters
    ----------
    n : int
        Number of places.
    dim : int
        Length of a code, even.

    Returns
    -------
    torch.Tensor
        Single precision, of shape (n, dim).
    """
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000) / dim))
    angles = torch.arange(n)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def word_language_model(
    n_tokens: int, *, as_published: bool = False
) -> WordLanguageModel:
    """Twelve layers of width 128 with four heads: 1,195,008 + 257 n_tokens parameters.

    Parameters
    ----------
    n_tokens : int
        Size of the vocabulary.
    as_published : bool, default: False
        Do as the published code of "No Wrong Turns" does, by our reading of it: batches
        of shape (N, context) enter an encoder that takes the sequence first. Positions,
        the causal mask and attention then run over the N samples of the batch, at each
        place apart, and a sample's loss depends on the samples before it.

    Returns
    -------
    WordLanguageModel
        Maps tokens (N, context) to logits (N, context, n_tokens). The published one
        returns their log-softmax, which has the same loss.
    """
    return WordLanguageModel(
        n_tokens, dim=128, n_hidden=128, n_layers=12, n_heads=4, over_batch=as_published
    )
