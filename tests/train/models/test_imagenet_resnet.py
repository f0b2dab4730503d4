"""ImageNet ResNets: sizes at every width, and outputs."""

from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.imagenet_resnet import (
    Bottleneck,
    ImageNetResNet,
    imagenet_resnet18,
    imagenet_resnet50,
    imagenet_resnet152,
)
from train.models.resnet import BasicBlock

WIDTHS = [0.5, 1, 2]


def n_parameters(make: Any, width: float) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make(width).parameters())


def conv_bn(n_in: int, n_out: int, size: int) -> int:
    return n_in * n_out * size**2 + 2 * n_out


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (imagenet_resnet18, 11_689_512),
        (imagenet_resnet50, 25_557_032),
        (imagenet_resnet152, 60_192_808),
    ],
)
def test_known_numbers_of_parameters(make: Any, expected: int):
    assert n_parameters(make, 1) == expected


@pytest.mark.parametrize("width", WIDTHS)
def test_resnet18_at_any_width(width: float):
    n = int(64 * width)
    expected = conv_bn(3, n, 7) + 4 * conv_bn(n, n, 3)
    for m in (2 * n, 4 * n, 8 * n):
        expected += conv_bn(m // 2, m, 3) + 3 * conv_bn(m, m, 3) + conv_bn(m // 2, m, 1)
    assert n_parameters(imagenet_resnet18, width) == expected + (8 * n + 1) * 1000


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("make", "n_blocks"),
    [(imagenet_resnet50, (3, 4, 6, 3)), (imagenet_resnet152, (3, 8, 36, 3))],
)
def test_bottleneck_networks_at_any_width(make: Any, n_blocks: Any, width: float):
    n = int(64 * width)
    expected, n_in = conv_bn(3, n, 7), n
    for inner, length in zip((n, 2 * n, 4 * n, 8 * n), n_blocks, strict=True):
        outer = 4 * inner
        every = conv_bn(inner, inner, 3) + conv_bn(inner, outer, 1)
        first = conv_bn(n_in, inner, 1) + conv_bn(n_in, outer, 1)
        expected += length * every + first + (length - 1) * conv_bn(outer, inner, 1)
        n_in = outer
    assert n_parameters(make, width) == expected + (n_in + 1) * 1000


@pytest.mark.parametrize("width", [0, -1, 0.3])
def test_a_width_without_whole_channels_is_refused(width: float):
    with pytest.raises(ValueError, match=rf"width is {width}; .* multiple of 1/64"):
        imagenet_resnet18(width)


@pytest.mark.parametrize("make", [imagenet_resnet18, imagenet_resnet50])
def test_images_shrink_thirty_two_times(make: Any):
    torch.manual_seed(0)
    model = make(1 / 8, n_classes=5).eval()
    sizes: list[Any] = []
    for module in (model.stem, model.blocks):
        module.register_forward_hook(lambda *args: sizes.append(args[2].shape[2:]))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 96, 64))
    assert sizes == [(24, 16), (3, 2)]
    assert logits.shape == (2, 5)
    assert not torch.allclose(logits[0], logits[1])


def test_the_stem_takes_maxima_of_three_by_three_pixels():
    torch.manual_seed(0)
    stem = imagenet_resnet18(1 / 8).stem.eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        large, small = stem[:3](images), stem(images)
    assert large.shape[2:] == (16, 16)
    for i, j in product(range(8), range(8)):
        rows, columns = (slice(max(2 * k - 1, 0), 2 * k + 2) for k in (i, j))
        maxima = large[:, :, rows, columns].amax((2, 3))
        assert torch.equal(small[:, :, i, j], maxima)


def test_every_stage_but_the_first_begins_with_a_stride():
    model: Any = ImageNetResNet(Bottleneck, [2, 3, 1, 2], [8, 16, 32, 64], 4, 2)
    assert [b.conv2.stride[0] for b in model.blocks] == [1, 1, 2, 1, 1, 2, 2, 1]
    assert all(b.conv1.stride == b.conv3.stride == (1, 1) for b in model.blocks)
    basic: Any = ImageNetResNet(BasicBlock, [1, 1, 1, 1], [4, 8, 16, 32], 4, 2)
    assert [b.conv1.stride[0] for b in basic.blocks] == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("n_out", "stride", "size"), [(8, 1, 6), (16, 1, 6), (8, 2, 3)]
)
def test_a_bottleneck_without_its_branch_is_its_shortcut(
    n_out: int, stride: int, size: int
):
    torch.manual_seed(0)
    block: Any = Bottleneck(8, n_out, stride).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    inputs = torch.randn(3, 8, 6, 6)
    with torch.no_grad():
        outputs, shortcut = block(inputs), block.shortcut(inputs)
    assert outputs.shape == (3, n_out, size, size)
    assert torch.equal(outputs, shortcut.clamp(min=0))


def test_convolutions_begin_with_the_variance_of_their_fan_out():
    torch.manual_seed(0)
    model: Any = imagenet_resnet18(0.5)
    weight = model.blocks[-2].conv1.weight
    assert weight.shape == (256, 128, 3, 3)
    expected = (2 / (9 * 256)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
