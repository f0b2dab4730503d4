"""GPT-NeoX, the language models of Pythia.

S. Biderman et al., "Pythia: A Suite for Analyzing Large Language Models Across Training and
Scaling", ICML 2023, arXiv 2304.01373. The model is that of Hugging Face's ``transformers``.
"""

from typing import Any, Final

from torch import Tensor, nn

N_TOKENS: Final = 50_304
"""Size of Pythia's vocabulary, rounded up."""

CONTEXT: Final = 2048

SIZES: Final = {"70m": (512, 6, 8), "160m": (768, 12, 12)}
"""Width, layers and heads."""


class Logits(nn.Module):
    """A language model of ``transformers`` that returns its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, context) to logits (N, context, n_tokens)."""
        logits: Tensor = self.model(tokens, use_cache=False).logits
        return logits


def pythia(size: str) -> Logits:
    """Return Pythia of 70,426,624 ("70m") or 162,322,944 ("160m") parameters."""
    try:
        from transformers import (  # noqa: PLC0415 (takes seconds, and is optional)
            GPTNeoXConfig,
            GPTNeoXForCausalLM,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pythia is a model of Hugging Face's transformers, which is not installed. "
            "Run\npip install transformers"
        ) from error
    width, n_layers, n_heads = SIZES[size]
    config = GPTNeoXConfig(
        vocab_size=N_TOKENS,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=4 * width,
        max_position_embeddings=CONTEXT,
    )
    return Logits(GPTNeoXForCausalLM(config))
