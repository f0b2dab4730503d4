"""SegNet: its size and outputs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.segnet import SegNet, segnet

# Input and output channels of every convolution except the last, as published.
ENCODER = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
ENCODER += [(256, 512), *[(512, 512)] * 5]
DECODER = [*[(512, 512)] * 5, (512, 256), (256, 256), (256, 256), (256, 128)]
DECODER += [(128, 128), (128, 64), (64, 64)]


def test_number_of_parameters():
    expected = sum(9 * n * m + m + 2 * m for n, m in ENCODER + DECODER)
    expected += 9 * 64 * 6 + 6
    assert expected == 29_446_470
    with torch.device("meta"):
        assert sum(p.numel() for p in segnet().parameters()) == expected


def test_convolutions_in_their_order():
    with torch.device("meta"):
        convolutions = [m for m in segnet().modules() if isinstance(m, torch.nn.Conv2d)]
    channels = [(c.in_channels, c.out_channels) for c in convolutions]
    assert channels == [*ENCODER, *DECODER, (64, 6)]


def test_images_become_maps_of_logits():
    with torch.device("meta"):
        model: Any = segnet(4, n_in=2)
        images = torch.empty(2, 2, 64, 32)
    sizes: list[Any] = []
    for stage in (*model.encoder, *model.decoder):
        stage.register_forward_hook(lambda *args: sizes.append(args[2].shape[2:]))
    assert model(images).shape == (2, 4, 64, 32)
    halves = [(64 // 2**i, 32 // 2**i) for i in range(5)]
    assert sizes == [*halves, *halves[::-1]]


def test_normalisation_comes_after_relu():
    torch.manual_seed(0)
    model: Any = SegNet(3, [[4, 4], [8]], 2).eval()
    convolution, _, norm = model.encoder[0][:3]
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        norm.running_mean.fill_(1)
        y = convolution(x).clamp(min=0)
        expected = (y - 1) / (1 + norm.eps) ** 0.5
        torch.testing.assert_close(model.encoder[0][:3](x), expected)
    names = [type(m).__name__ for m in model.encoder[0]]
    assert names == ["Conv2d", "ReLU", "BatchNorm2d"] * 2
    assert [type(m).__name__ for m in model.decoder[1]] == names[:3]


def test_maxima_go_back_to_where_they_were():
    torch.manual_seed(0)
    model: Any = SegNet(3, [[4], [8]], 2).eval()
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for name, module in model.named_modules():

        def keep(_: Any, args: Any, output: Any, name: str = name) -> None:
            inputs[name], outputs[name] = args[0], output

        module.register_forward_hook(keep)
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    for stage, mirror, small in [
        ("encoder.1", "decoder.0", blocks(outputs["encoder.1"]).amax(-1)),
        ("encoder.0", "decoder.1", outputs["decoder.0"]),
    ]:
        places = blocks(outputs[stage]).argmax(-1, keepdim=True)
        large = blocks(inputs[mirror])
        assert torch.equal(large.gather(-1, places)[..., 0], small)
        assert not large.scatter(-1, places, 0).any()
        assert small.any()


def blocks(x: Any) -> Any:
    """Return the four values of each 2 x 2 block along a last axis."""
    return x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)


def test_a_step_moves_every_parameter():
    torch.manual_seed(0)
    model: Any = SegNet(3, [[4, 4], [8]], 6)
    labels = torch.randint(6, (2, 8, 8))
    logits = model(torch.randn(2, 3, 8, 8))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("size", [(48, 32), (32, 48)])
def test_sides_that_do_not_halve_five_times_are_refused(size: tuple[int, int]):
    message = f"are {size[0]} x {size[1]}; .* multiples of 32: crop or pad"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        segnet()(torch.empty(1, 3, *size))
