"""Model families: documented sizes, and outputs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.models.mlp import medium_mlp, mlp
from train.models.resnet import (
    BasicBlock,
    cifar_resnet18,
    digits_resnet,
)
from train.models.transformer import LanguageModel


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def test_numbers_of_parameters():
    assert count(digits_resnet()) == 308_074
    assert count(cifar_resnet18()) == 11_173_962
    assert count(mlp([64, 512, 512, 10])) == 65 * 512 + 513 * 512 + 513 * 10


def test_numbers_of_parameters_of_the_large_models():
    with torch.device("meta"):
        assert count(cifar_resnet18(2)) == 44_662_922
        assert count(medium_mlp()) == 46_190_602


@pytest.mark.parametrize("width", [0, -2])
def test_a_cifar_resnet_needs_a_positive_width(width: int):
    with pytest.raises(ValueError, match=f"width is {width}; .* at least 1"):
        cifar_resnet18(width)


def test_the_wider_cifar_resnet_maps_images_to_ten_logits():
    with torch.device("meta"):
        model: Any = cifar_resnet18(2)
        images = torch.empty(2, 3, 32, 32)
    assert model(images).shape == (2, 10)
    assert [block.conv2.out_channels for block in model.blocks[::2]] == [
        *(128, 256, 512, 1024)
    ]


def test_medium_mlp_has_the_gradients_of_the_published_one():
    # The published network applies a log-softmax, and its loss applies another log-softmax.
    with torch.device("meta"):
        assert medium_mlp()(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    torch.manual_seed(0)
    logits = (5 * torch.randn(7, 10, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(10, (7,))
    functional = torch.nn.functional
    loss = functional.cross_entropy(logits, targets)
    twice = functional.cross_entropy(logits.log_softmax(1), targets)
    torch.testing.assert_close(loss, twice)
    ours, published = (torch.autograd.grad(x, logits)[0] for x in (loss, twice))
    torch.testing.assert_close(ours, published)


def test_numbers_of_parameters_of_the_language_model():
    vocabulary, context, dim, n_layers = 50, 20, 16, 3
    model = LanguageModel(vocabulary, context, dim=dim, n_layers=n_layers, n_heads=4)
    block = 12 * dim**2 + 9 * dim + 4 * dim  # matrices, biases, two normalisations
    expected = (vocabulary + context) * dim + n_layers * block + 2 * dim
    assert count(model) == expected


def test_mlp_is_affine_maps_with_relu_between():
    torch.manual_seed(0)
    model = mlp([6, 5, 4, 3])
    inputs = torch.randn(7, 2, 3)
    weights = [p.detach().double() for p in model.parameters()]
    y = inputs.double().flatten(1)
    for i in range(0, len(weights), 2):
        y = y @ weights[i].T + weights[i + 1]
        if i < len(weights) - 2:
            y = y.clamp(min=0)
    torch.testing.assert_close(model(inputs).double(), y, rtol=1e-5, atol=1e-6)
    assert (model(inputs) < 0).any()


@pytest.mark.parametrize(
    ("make", "shape"),
    [(digits_resnet, (2, 1, 8, 8)), (cifar_resnet18, (2, 3, 32, 32))],
    ids=["digits", "cifar"],
)
def test_resnets_map_images_to_ten_logits(make: Any, shape: tuple[int, ...]):
    torch.manual_seed(0)
    model = make().eval()
    features: list[Any] = []
    model.blocks.register_forward_hook(lambda *args: features.append(args[2]))
    with torch.no_grad():
        logits = model(torch.randn(shape))
    assert logits.shape == (2, 10)
    # The last layer receives averages over the last 4 x 4 maps.
    assert features[0].shape[2:] == (4, 4)
    means = features[0].double().mean((2, 3))
    head = model.head
    expected = means @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n_out", "stride", "size"), [(4, 1, 6), (8, 1, 6), (4, 2, 3)])
def test_a_block_without_its_branch_is_its_shortcut(n_out: int, stride: int, size: int):
    torch.manual_seed(0)
    block = BasicBlock(4, n_out, stride).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    inputs = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        outputs, shortcut = block(inputs), block.shortcut(inputs)
    assert outputs.shape == (3, n_out, size, size)
    assert torch.equal(outputs, shortcut.clamp(min=0))


def language_model() -> Any:
    torch.manual_seed(0)
    return LanguageModel(11, 9, dim=16, n_layers=2, n_heads=4)


def test_the_head_of_the_language_model_is_its_embedding():
    model = language_model()
    assert model.head.weight is model.tokens.weight
    names = [name for name, _ in model.named_parameters()]
    assert "tokens.weight" in names
    assert "head.weight" not in names


def test_the_language_model_does_not_look_ahead():
    model = language_model()
    tokens = torch.randint(11, (3, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert before.shape == (3, 9, 11)
    # The sums are the same and in the same order, up to the kernel's choice of blocks.
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-6)
    assert ((before[:, 5:] - after[:, 5:]).abs().amax((0, 2)) > 1e-4).all()


def test_the_language_model_takes_shorter_sequences():
    model = language_model()
    tokens = torch.randint(11, (2, 9))
    with torch.no_grad():
        whole, part = model(tokens), model(tokens[:, :4])
    torch.testing.assert_close(whole[:, :4], part, rtol=1e-5, atol=1e-6)
