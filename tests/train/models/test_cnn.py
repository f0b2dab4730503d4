"""The network of two convolutions: its size and outputs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.cnn import cnn


@pytest.mark.parametrize("width", [32, 2048])
def test_number_of_parameters(width: int):
    with torch.device("meta"):
        model = cnn(3, 32, 10, width=width)
    n = sum(p.numel() for p in model.parameters())
    assert n == (9 * 3 + 1) * 32 + (9 * 32 + 1) * width + (64 * width + 1) * 10


def convolved(image: Any, weight: Any, bias: Any) -> Any:
    """Convolve with 3 x 3, rectify, and take maxima of 2 x 2, one number at a time."""
    n, size = len(weight), image.shape[-1]
    padded = torch.zeros(len(image), size + 2, size + 2, dtype=image.dtype)
    padded[:, 1:-1, 1:-1] = image
    full = torch.zeros(n, size, size, dtype=image.dtype)
    for k in range(n):
        for i in range(size):
            for j in range(size):
                part = padded[:, i : i + 3, j : j + 3]
                full[k, i, j] = ((part * weight[k]).sum() + bias[k]).clamp(min=0)
    blocks = full.view(n, size // 2, 2, size // 2, 2)
    return blocks.amax((2, 4))


def test_outputs_equal_loops():
    torch.manual_seed(0)
    model = cnn(2, 8, 5, width=3).double()
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in model.parameters())
    expected = [
        w3 @ convolved(convolved(image, w1, b1), w2, b2).flatten() + b3
        for image in images
    ]
    torch.testing.assert_close(model(images), torch.stack(expected))
