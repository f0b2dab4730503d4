"""Transformer that translates.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762. Sizes follow
the workload WMT of the AlgoPerf benchmark (G. Dahl et al., 2023, arXiv 2306.07179): layer
normalisation comes before each sub-layer, feed-forward layers have the width of the model,
attention has no biases, and one matrix embeds both languages and computes the logits.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM: Final = 1024
N_HEADS: Final = 16
N_LAYERS: Final = 6
DROPOUT: Final = 0.1
PADDING: Final = 0
"""Token of positions behind the end of a sentence."""


class Attention(nn.Module):
    """Attention of several heads, without biases."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend from x (N, L, dim) to the memory (N, M, dim) where the mask is true."""

        def heads(layer: nn.Module, y: Tensor) -> Tensor:
            z: Tensor = layer(y)
            n, length, dim = z.shape
            split = z.view(n, length, self.n_heads, dim // self.n_heads)
            return split.transpose(1, 2)

        query = heads(self.query, x)
        key, value = heads(self.key, memory), heads(self.value, memory)
        dropout = DROPOUT if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            query, key, value, mask[:, None], dropout_p=dropout
        )
        output: Tensor = self.out(attended.transpose(1, 2).flatten(-2))
        return output


class Layer(nn.Module):
    """Self-attention, attention to a memory if there is one, and a feed-forward layer."""

    def __init__(self, dim: int, n_heads: int, *, has_memory: bool) -> None:
        super().__init__()
        n = 2 if has_memory else 1
        self.attend = nn.ModuleList(Attention(dim, n_heads) for _ in range(n))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(n + 1))
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(dim, dim)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, *sources: tuple[Tensor | None, Tensor]) -> Tensor:
        """Map (N, L, dim) to the same shape; a source is a memory (None: x) and a mask."""
        for attend, norm, (memory, mask) in zip(
            self.attend, self.norms, sources, strict=False
        ):
            y = norm(x)
            x = x + self.dropout(attend(y, y if memory is None else memory, mask))
        output: Tensor = x + self.dropout(self.feed_forward(self.norms[-1](x)))
        return output


class TranslationTransformer(nn.Module):
    """Predicts the next token of a translation from the source and the tokens before it."""

    def __init__(self, n_tokens: int, *, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, dim)
        self.encoder, self.decoder = (
            nn.ModuleList(
                Layer(dim, n_heads, has_memory=has_memory) for _ in range(n_layers)
            )
            for has_memory in (False, True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, std=1e-6)

    def forward(self, pair: Tensor) -> Tensor:
        """Map pairs (N, 2, L), a source and what to continue, to logits (N, L, n_tokens)."""
        source, target = pair.unbind(1)
        # The first token of a translation is predicted from padding.
        target = F.pad(target, (1, 0), value=PADDING)[:, :-1]
        length = source.shape[1]
        known = (source != PADDING)[:, None]
        causal = torch.ones(
            length, length, dtype=torch.bool, device=source.device
        ).tril()[None]
        memory = self._embed(source)
        for layer in self.encoder:
            memory = layer(memory, (None, known))
        memory = self.norms[0](memory)
        x = self._embed(target)
        for layer in self.decoder:
            x = layer(x, (None, causal), (memory, known))
        logits: Tensor = self.norms[1](x) @ self.tokens.weight.T
        return logits / math.sqrt(x.shape[-1])

    def _embed(self, tokens: Tensor) -> Any:
        x = self.tokens(tokens)
        return self.dropout(x + position_codes(*x.shape[1:]).to(x))


def position_codes(n: int, dim: int) -> Tensor:
    """Return sines, then cosines, of wavelengths from 2 pi to 20000 pi, float32 (n, dim)."""
    rates = torch.exp(torch.linspace(0, -math.log(10_000), dim // 2))
    angles = torch.arange(n)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def translation_transformer(n_tokens: int = 32_000) -> TranslationTransformer:
    """Return a transformer of six layers: 133,521,408 parameters with 32,000 tokens."""
    return TranslationTransformer(n_tokens, dim=DIM, n_layers=N_LAYERS, n_heads=N_HEADS)
