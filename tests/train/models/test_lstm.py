"""The LSTM language model: the paper's numbers of parameters, and its outputs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.lstm import LSTMLanguageModel, lstm_language_model
from train.workloads.catalogue import WORKLOADS


@pytest.mark.parametrize(
    ("name", "n_words", "millions"),
    [("ptb-lstm", 10_000, 35.4), ("wikitext2-lstm", 33_278, 44.8)],
)
def test_numbers_of_parameters_are_the_papers(name: str, n_words: int, millions: float):
    width = WORKLOADS[name].settings.width
    assert width is not None
    with torch.device("meta"):
        model = lstm_language_model(n_words, width)
    n = sum(p.numel() for p in model.parameters())
    pairs = [(400, width), (width, width), (width, 400)]
    layers = sum(4 * b * (a + b + 2) for a, b in pairs)
    assert n == layers + n_words * 401
    assert round(n / 1e6, 1) == millions


def small_model() -> Any:
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, dim=4, width=6).double()
    torch.nn.init.normal_(model.head.bias)
    return model


def slow_logits(model: Any, sequence: Any) -> Any:
    """Return the logits of one sequence, computed word by word from the cell's equations."""
    xs = [model.tokens.weight[token] for token in sequence]
    for layer in model.layers:
        n = layer.hidden_size
        h = c = torch.zeros(n, dtype=torch.float64)
        ys = []
        for x in xs:
            gates = layer.weight_ih_l0 @ x + layer.bias_ih_l0
            gates = gates + layer.weight_hh_l0 @ h + layer.bias_hh_l0
            i, f, g, o = gates.split(n)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        xs = ys
    return torch.stack([model.tokens.weight @ x + model.head.bias for x in xs])


def test_outputs_equal_a_loop_over_words():
    model = small_model()
    tokens = torch.randint(11, (3, 5))
    expected = torch.stack([slow_logits(model, row.tolist()) for row in tokens])
    torch.testing.assert_close(model(tokens), expected)


def test_the_output_matrix_is_the_embedding():
    model = small_model()
    assert model.head.weight is model.tokens.weight
    assert [name for name, _ in model.named_parameters() if "weight" in name] == [
        "tokens.weight",
        *(f"layers.{i}.weight_{kind}_l0" for i in range(3) for kind in ("ih", "hh")),
    ]
