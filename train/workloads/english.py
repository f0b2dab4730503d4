"""Language models of Python's own documentation; settings are our own."""

from typing import Final

from train.data import Splits
from train.data.english import VOCABULARY, english
from train.models.lstm import LSTMLanguageModel
from train.models.transformer import LanguageModel
from train.workloads.definition import by_name, embedded
from train.workloads.tasks import LANGUAGE

CONTEXT: Final = 64
"""Number of characters in a sequence."""

TRANSFORMER_DIM: Final = 128
N_TRANSFORMER_LAYERS: Final = 4

ENGLISH: Final = by_name(
    embedded(
        "a transformer language model on English text",
        LANGUAGE,
        "Python's own English documentation",
        lambda _: Splits(english(CONTEXT), None, VOCABULARY),
        lambda *_: LanguageModel(
            VOCABULARY,
            CONTEXT,
            dim=TRANSFORMER_DIM,
            n_layers=N_TRANSFORMER_LAYERS,
            n_heads=4,
        ),
        workload="english-transformer",
        epochs=5,
        batch_size=64,
        optimizer="adam",
        lr=1e-3,
    ),
    embedded(
        "three LSTM layers on characters of English text",
        LANGUAGE,
        "Python's own English documentation",
        lambda _: Splits(english(CONTEXT), None, VOCABULARY),
        lambda _, training: LSTMLanguageModel(VOCABULARY, dim=64, width=training.width),
        workload="english-lstm",
        epochs=2,
        batch_size=32,
        optimizer="nsgd",
        lr=1.0,
        schedule="cosine",
        width=128,
    ),
)
