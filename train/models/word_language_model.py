"""Transformer language model of PyTorch's example `word_language_model`.

C. Guille-Escuret et al., "No Wrong Turns: The Simple Geometry Of Neural Networks
Optimization Paths", 2023, arXiv 2306.11922, train it on WikiText-2. As in A. Vaswani et al.,
"Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762, layer normalisation comes after
each sub-layer, and positions have sinusoidal codes.
"""

import math

import torch
from torch import Tensor, nn


class WordLanguageModel(nn.Module):
    """Predicts the next token from earlier tokens; the output matrix is not tied."""

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
        # `torch.nn.TransformerEncoder` copies one layer, so all start from equal weights.
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
        # With `over_batch`, attention runs over the samples of a batch at each position.
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
    """Return the codes of positions (Vaswani et al., section 3.5), float32 (n, dim)."""
    # The code of position p is sin(p / 10000^(2i / dim)) at index 2i, and the cosine of the
    # same angle at index 2i + 1.
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000) / dim))
    angles = torch.arange(n)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def word_language_model(
    n_tokens: int, *, as_published: bool = False
) -> WordLanguageModel:
    """Return a model of twelve layers of width 128: 1,195,008 + 257 n_tokens parameters."""
    # `as_published` follows our reading of the published code of "No Wrong Turns": batches
    # of shape (N, context) enter an encoder that expects the sequence first. Position codes,
    # the causal mask and attention therefore run over the N samples of the batch, separately
    # at each position, and a sample's loss depends on the samples before it. The published
    # model returns log_softmax of these logits, which gives the same loss.
    return WordLanguageModel(
        n_tokens, dim=128, n_hidden=128, n_layers=12, n_heads=4, over_batch=as_published
    )
