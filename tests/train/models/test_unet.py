"""UNet: its size and outputs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.unet import UNet, unet


def test_number_of_parameters():
    def twice(n_in: int, n: int) -> int:
        return 9 * n_in * n + 9 * n * n + 2 * 2 * n

    down = twice(3, 32) + twice(32, 64) + twice(64, 128) + twice(128, 256)
    bottom = twice(256, 512)
    enlarge = sum(4 * 2 * n * n + n for n in (32, 64, 128, 256))
    up = sum(twice(2 * n, n) for n in (32, 64, 128, 256))
    head = 6 * (32 + 1)
    assert down + bottom + enlarge + up + head == 7_763_206
    with torch.device("meta"):
        assert sum(p.numel() for p in unet().parameters()) == 7_763_206


def test_images_become_maps_of_logits():
    torch.manual_seed(0)
    model: Any = unet(4, n_in=2).eval()
    sizes: list[Any] = []
    for level in (*model.down, *model.up):
        level.register_forward_hook(lambda *args: sizes.append(args[2].shape[1:]))
    with torch.no_grad():
        logits = model(torch.randn(1, 2, 32, 16))
    assert logits.shape == (1, 4, 32, 16)
    levels = [(32 * 2**i, 32 // 2**i, 16 // 2**i) for i in range(5)]
    assert sizes == [*levels, *levels[-2::-1]]


def test_a_level_going_up_sees_the_enlarged_image_and_the_copy():
    torch.manual_seed(0)
    model: Any = UNet(3, [4, 8, 16], 2).eval()
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for name, module in model.named_modules():

        def keep(_: Any, args: Any, output: Any, name: str = name) -> None:
            inputs[name], outputs[name] = args[0], output

        module.register_forward_hook(keep)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 8, 8))
    # The copy of the finest level is used last.
    for level, copy, n in [(0, 1, 8), (1, 0, 4)]:
        seen = inputs[f"up.{level}"]
        assert torch.equal(seen[:, :n], outputs[f"enlarge.{level}"])
        assert torch.equal(seen[:, n:], outputs[f"down.{copy}"])
    blocks = outputs["down.0"].unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(inputs["down.1"], blocks.amax((4, 5)))
    assert torch.equal(inputs["enlarge.1"], outputs["up.0"])
    assert torch.equal(inputs["head"], outputs["up.1"])
    assert torch.equal(logits, outputs["head"])


def test_a_step_moves_every_parameter():
    torch.manual_seed(0)
    model: Any = UNet(3, [4, 8, 16], 6)
    labels = torch.randint(6, (2, 8, 8))
    logits = model(torch.randn(2, 3, 8, 8))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("size", [(24, 32), (32, 24)])
def test_sides_that_do_not_halve_four_times_are_refused(size: tuple[int, int]):
    message = f"are {size[0]} x {size[1]}; .* multiples of 16: crop or pad"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        unet()(torch.empty(1, 3, *size))
