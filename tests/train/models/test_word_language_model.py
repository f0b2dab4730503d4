"""The paper's language model: its size, outputs, and attention."""

import math
from itertools import product
from math import cos, sin
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.word_language_model import (
    WordLanguageModel,
    sinusoids,
    word_language_model,
)

N, CONTEXT, N_TOKENS = 3, 5, 11


def small_model(*, over_batch: bool) -> Any:
    torch.manual_seed(0)
    model = WordLanguageModel(
        N_TOKENS, dim=8, n_hidden=6, n_layers=2, n_heads=2, over_batch=over_batch
    )
    with torch.no_grad():  # so that no two layers, and no two biases, are alike
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model.double()


def normalised(x: Any, norm: Any) -> Any:
    variance = ((x - x.mean()) ** 2).mean()
    return norm.weight * (x - x.mean()) / (variance + 1e-5).sqrt() + norm.bias


def attended(query: Any, visible: list[Any], attention: Any) -> Any:
    """Return the attention output of a query over visible vectors, with two heads."""
    (wq, wk, wv) = attention.in_proj_weight.split(8)
    (bq, bk, bv) = attention.in_proj_bias.split(8)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q = (wq @ query + bq)[head]
        scores = [((wk @ x + bk)[head] @ q / 2).exp() for x in visible]
        values = [(wv @ x + bv)[head] for x in visible]
        total = sum(scores)
        heads.append(sum(s / total * v for s, v in zip(scores, values, strict=True)))
    projection = attention.out_proj
    return projection.weight @ torch.cat(heads) + projection.bias


def slow_logits(model: Any, sequence: Any) -> Any:
    """Return the logits of one sequence, computed vector by vector."""
    xs = []
    for place, token in enumerate(sequence.tolist()):
        code = [
            f(place / 10_000 ** (i / 8)) for i in range(0, 8, 2) for f in (sin, cos)
        ]
        xs.append(math.sqrt(8) * model.tokens.weight[token] + torch.tensor(code))
    for layer in model.layers.layers:
        ys = []
        for i, x in enumerate(xs):
            y = normalised(x + attended(x, xs[: i + 1], layer.self_attn), layer.norm1)
            hidden = (layer.linear1.weight @ y + layer.linear1.bias).clamp(min=0)
            z = y + layer.linear2.weight @ hidden + layer.linear2.bias
            ys.append(normalised(z, layer.norm2))
        xs = ys
    return torch.stack([model.head.weight @ x + model.head.bias for x in xs])


def dependencies(model: Any) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the tokens on which the logits depend, by sample and position."""
    torch.manual_seed(1)
    tokens = torch.randint(N_TOKENS, (N, CONTEXT))
    cells = list(product(range(N), range(CONTEXT)))
    seen: dict[tuple[int, int], set[tuple[int, int]]] = {cell: set() for cell in cells}
    with torch.no_grad():
        before = model(tokens)
        for cell in cells:
            changed = tokens.clone()
            changed[cell] = (changed[cell] + 1) % N_TOKENS
            moved = (model(changed) - before).abs().amax(2) > 1e-9
            for sample, place in moved.nonzero().tolist():
                seen[sample, place].add(cell)
    return seen


@pytest.mark.parametrize("as_published", [False, True])
def test_number_of_parameters(as_published: bool):
    d, vocabulary = 128, 1000
    attention, feed_forward, norms = 4 * (d * d + d), 2 * (d * d + d), 2 * 2 * d
    layers = 12 * (attention + feed_forward + norms)
    assert layers == 1_195_008
    with torch.device("meta"):
        model = word_language_model(vocabulary, as_published=as_published)
    n = sum(p.numel() for p in model.parameters())
    assert n == layers + vocabulary * d + vocabulary * (d + 1)


def test_outputs_equal_a_loop_over_vectors():
    model = small_model(over_batch=False)
    torch.manual_seed(2)
    tokens = torch.randint(N_TOKENS, (N, CONTEXT))
    expected = torch.stack([slow_logits(model, row) for row in tokens])
    torch.testing.assert_close(model(tokens), expected, rtol=1e-6, atol=1e-6)


def test_as_published_the_batch_is_the_sequence():
    model = small_model(over_batch=True)
    torch.manual_seed(2)
    tokens = torch.randint(N_TOKENS, (N, CONTEXT))
    expected = torch.stack([slow_logits(model, column) for column in tokens.T], dim=1)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_position_depends_on_itself_and_earlier_positions(mode: str):
    seen = dependencies(getattr(word_language_model(N_TOKENS).double(), mode)())
    for sample, place in seen:
        assert seen[sample, place] == {(sample, i) for i in range(place + 1)}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_as_published_a_position_depends_on_earlier_samples(mode: str):
    model = word_language_model(N_TOKENS, as_published=True).double()
    seen = dependencies(getattr(model, mode)())
    for sample, place in seen:
        assert seen[sample, place] == {(i, place) for i in range(sample + 1)}


def test_sinusoids():
    codes = sinusoids(40, 6)
    assert codes.shape == (40, 6)
    for place, i in product(range(40), range(3)):
        angle = place / 10_000 ** (2 * i / 6)
        pair = codes[place, 2 * i : 2 * i + 2].tolist()
        assert pair == pytest.approx([sin(angle), cos(angle)], abs=1e-5)


def test_initial_odds_are_nearly_even():
    torch.manual_seed(0)
    model = word_language_model(200)
    assert model.head.weight is not model.tokens.weight
    assert not model.head.bias.any()
    first, *others = ([*layer.parameters()] for layer in model.layers.layers)
    assert len(others) == 11
    for other in others:
        assert all(map(torch.equal, first, other))
    for weight in (model.head.weight, model.tokens.weight):
        assert weight.abs().max().item() == pytest.approx(0.1, rel=1e-3)
        assert weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    tokens = torch.randint(200, (4, 32))
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(200), rel=0.1)
