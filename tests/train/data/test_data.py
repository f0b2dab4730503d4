"""Data that needs no download."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
load_digits = pytest.importorskip("sklearn.datasets").load_digits

from train.data.digits import digits
from train.data.english import VOCABULARY, english


def test_digits_equal_scikit_learns():
    parts = digits()
    bunch = load_digits()
    assert [len(part) for part in parts] == [1437, 360]
    images = torch.cat([part.tensors[0] for part in parts])
    labels = torch.cat([part.tensors[1] for part in parts])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    # Sixteen levels of grey: exact in float32.
    assert np.array_equal(images[:, 0].numpy() * 16, bunch.images)
    assert np.array_equal(labels.numpy(), bunch.target)
    assert (images.min().item(), images.max().item()) == (0, 1)


def test_digits_are_the_same_every_time():
    for first, second in zip(digits(), digits(), strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(first.tensors, second.tensors, strict=True)
        )


@pytest.mark.parametrize("context", [1, 64, 1000])
def test_targets_are_the_tokens_after(context: int):
    inputs, targets = english(context).tensors
    assert inputs.shape == targets.shape
    assert inputs.shape[1] == context
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert inputs.min() >= 0
    assert inputs.max() < VOCABULARY


def test_english_is_text():
    inputs, _ = english(64).tensors
    text = bytes(inputs.flatten().tolist()).decode("ascii")
    assert len(text) > 100_000
    assert text.count(" the ") > 1000


def test_english_is_the_same_every_time_and_for_every_context():
    long, again = english(96).tensors[0], english(96).tensors[0]
    short = english(32).tensors[0]
    assert torch.equal(long, again)
    n = min(long.numel(), short.numel())
    assert torch.equal(long.flatten()[:n], short.flatten()[:n])
