"""ResNet-9: its size, and its shortcuts."""

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.resnet9 import Residual, resnet9


def test_number_of_parameters():
    widths = [3, 64, 128, 128, 128, 256, 512, 512, 512]
    n = sum((9 * a + 3) * b for a, b in pairwise(widths))
    with torch.device("meta"):
        found = sum(p.numel() for p in resnet9(100).parameters())
    assert found == n + 513 * 100 == 6_621_540


def test_resnet9_maps_images_to_logits_with_max_pooling():
    torch.manual_seed(0)
    model: Any = resnet9(7)
    shapes = []
    for layer in model:
        if isinstance(layer, torch.nn.MaxPool2d | Residual):
            layer.register_forward_hook(lambda *a: shapes.append(tuple(a[2].shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [
        *((128, 16, 16), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)),
        (512, 1, 1),
    ]


def test_a_residual_without_its_branch_is_its_input():
    block = Residual(4)
    last: Any = block.branch[-2]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    inputs = torch.randn(3, 4, 5, 5)
    assert torch.equal(block(inputs), inputs)
    torch.nn.init.ones_(last.bias)
    assert torch.equal(block(inputs), inputs + 1)
