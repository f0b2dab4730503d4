import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.format.layout import BLOCK, Layout

LAYOUT = Layout(
    names=("weight", "empty", "bias", "temperature", "exact", "kernel"),
    shapes=((30, 40), (0, 5), (7,), (), (2, 1024), (3, 4, 5, 30)),
)


def arrays() -> dict[str, npt.NDArray[Any]]:
    start = 1
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True):
        n = int(np.prod(shape))
        tensors[name] = np.arange(start, start + n, dtype=np.float32).reshape(shape)
        start += n
    return tensors


MISFITS = [
    pytest.param({"weight": None}, ["weight: missing, expected shape (30, 40)"], id="missing"),
    pytest.param(
        {"bias": np.zeros((7, 1))},
        ["bias: got shape (7, 1), expected shape (7,)"],
        id="another shape of the same size",
    ),
    pytest.param(
        {"temperature": np.zeros(1)},
        ["temperature: got shape (1,), expected shape ()"],
        id="an axis too many",
    ),
    pytest.param(
        {"empty": None, "bias": np.zeros(8), "kernel": None, "weight": 3.0},
        [
            "weight: got shape (), expected shape (30, 40)",
            "empty: missing, expected shape (0, 5)",
            "bias: got shape (8,), expected shape (7,)",
            "kernel: missing, expected shape (3, 4, 5, 30)",
        ],
        id="several",
    ),
]  # fmt: skip


def test_offsets_equal_the_closed_form():
    assert BLOCK == 1024
    assert LAYOUT.sizes.tolist() == [1200, 0, 7, 1, 2048, 1800]
    assert LAYOUT.blocks.tolist() == [2, 0, 1, 1, 2, 2]
    assert LAYOUT.offsets.tolist() == [0, 2048, 2048, 3072, 4096, 6144]
    assert LAYOUT.layer_of_block.tolist() == [0, 0, 2, 3, 4, 4, 5, 5]
    assert LAYOUT.n_params == 5056
    assert LAYOUT.size == 8192


def test_tensors_lie_row_major_at_their_offsets_and_gaps_are_zero():
    flat = LAYOUT.flatten(arrays())
    assert flat.dtype == np.float32
    expected = np.zeros(8192)
    expected[:1200] = np.arange(1, 1201)
    expected[2048:2055] = np.arange(1201, 1208)
    expected[3072] = 1208
    expected[4096:6144] = np.arange(1209, 3257)
    expected[6144:7944] = np.arange(3257, 5057)
    np.testing.assert_array_equal(flat, expected)


def test_unflatten_is_the_inverse():
    tensors = arrays()
    back = LAYOUT.unflatten(LAYOUT.flatten(tensors))
    assert list(back) == list(LAYOUT.names)
    for name, expected in tensors.items():
        assert back[name].shape == expected.shape
        np.testing.assert_array_equal(back[name], expected)
        assert back[name].dtype == np.float32


def test_unflattened_tensors_are_views():
    flat = LAYOUT.flatten(arrays())
    LAYOUT.unflatten(flat)["temperature"][...] = -5
    assert flat[3072] == -5


def test_special_values_survive():
    layout = Layout(names=("x",), shapes=((4,),))
    values = np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32)
    back = layout.unflatten(layout.flatten({"x": values}))["x"]
    assert back.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_arrays_of_other_types_are_converted(dtype):
    layout = Layout(names=("x",), shapes=((2, 3),))
    values = np.arange(6).reshape(2, 3)
    flat = layout.flatten({"x": values.astype(dtype)})
    np.testing.assert_array_equal(flat[:6], np.arange(6))
    assert layout.flatten({"x": values.tolist()}).tobytes() == flat.tobytes()


def test_arrays_that_are_not_contiguous_are_read_in_order():
    layout = Layout(names=("x",), shapes=((2, 3),))
    flat = layout.flatten({"x": np.arange(6).reshape(3, 2).T})
    assert flat[:6].tolist() == [0, 2, 4, 1, 3, 5]


def test_tensors_are_accepted_without_conversion():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    np.testing.assert_array_equal(LAYOUT.flatten(tensors), LAYOUT.flatten(arrays()))


def test_unknown_keys_are_ignored():
    extra: dict[str, Any] = {"running_mean": np.zeros(3), "config": "no array"}
    np.testing.assert_array_equal(
        LAYOUT.flatten(arrays() | extra), LAYOUT.flatten(arrays())
    )


@pytest.mark.parametrize(("changes", "problems"), MISFITS)
def test_all_arrays_that_do_not_fit_are_listed(changes, problems):
    tensors = {k: v for k, v in (arrays() | changes).items() if v is not None}
    head = "The arrays do not fit the recorded parameters; "
    message = "\n".join([f"{head}{len(problems)} of 6 differ:", *problems])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LAYOUT.flatten(tensors)


def test_a_layout_may_have_only_empty_tensors():
    layout = Layout(names=("x", "y"), shapes=((0,), (3, 0)))
    flat = layout.flatten({"x": [], "y": np.zeros((3, 0))})
    assert flat.shape == (0,)
    assert layout.unflatten(flat)["y"].shape == (3, 0)


def test_packed_vectors_have_no_gaps():
    layout = Layout(("a", "empty", "b", "c"), ((2, 3), (0, 4), (1025,), ()))
    np.testing.assert_array_equal(layout.packed_offsets, [0, 6, 6, 1031])
    tensors = {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape) + 1
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    packed = layout.flatten(tensors)[layout.packed_elements]
    expected = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    np.testing.assert_array_equal(packed, expected)
