"""Addresses are looked up again where tensors have changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.format.layout import Layout
from trajstore.tracking.backends.cpu.addresses import Addresses

LAYOUT = Layout(("a", "b"), ((4, 4), (3,)))


def parameters() -> Any:
    return [torch.arange(16.0).reshape(4, 4), torch.arange(3.0)]


def values(addresses: Any, copies: Any) -> Any:
    """Read float32 numbers at addresses, which the copies keep valid."""
    import ctypes

    sizes = (16, 3)
    pointers = [ctypes.cast(int(a), ctypes.POINTER(ctypes.c_float)) for a in addresses]
    assert copies is not None
    return [
        np.ctypeslib.as_array(p, (n,)).copy()
        for p, n in zip(pointers, sizes, strict=True)
    ]


def other_memory(tensor: Any) -> None:
    tensor.data = tensor.data + 1


def transposed_in_place(tensor: Any) -> None:
    tensor.data = tensor.data.t()


def other_type(tensor: Any) -> None:
    tensor.data = tensor.data.double()


def same_memory_of_halves(tensor: Any) -> None:
    whole = tensor.data.view(torch.float16).reshape(-1)
    tensor.data = whole[:16].reshape(4, 4)


def negative_view(tensor: Any) -> None:
    tensor.data = torch._neg_view(tensor.data.clone())


CHANGES: dict[str, Callable[[Any], None]] = {
    f.__name__: f
    for f in (
        other_memory,
        transposed_in_place,
        other_type,
        same_memory_of_halves,
        negative_view,
    )
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_parameter_is_read_as_it_is_now(change: str):
    tensors = parameters()
    addresses = Addresses(LAYOUT, tensors)
    for _ in range(2):
        addresses.of_parameters()
    CHANGES[change](tensors[0])
    expected = tensors[0].resolve_neg().float().numpy().reshape(-1)
    for _ in range(2):
        found = values(*addresses.of_parameters())
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], [0, 1, 2])


def test_unchanged_parameters_are_looked_up_once(monkeypatch: pytest.MonkeyPatch):
    tensors = parameters()
    addresses = Addresses(LAYOUT, tensors)
    first, copies = addresses.of_parameters()
    assert copies == []
    monkeypatch.setattr(Addresses, "of", None)
    tensors[0].add_(1)
    np.testing.assert_array_equal(addresses.of_parameters()[0], first)


def test_a_shrunk_parameter_is_refused():
    tensors = parameters()
    addresses = Addresses(LAYOUT, tensors)
    addresses.of_parameters()
    tensors[1].resize_(2)
    with pytest.raises(ValueError, match=r"b has the shape \(2,\), but had \(3,\)"):
        addresses.of_parameters()


def test_absent_vectors_have_the_address_0():
    addresses = Addresses(LAYOUT, parameters())
    vector = torch.ones(3)
    found, copies = addresses.of([None, vector])
    assert found.tolist() == [0, vector.data_ptr()]
    assert copies == []


def test_absent_parameters_have_the_address_0_every_time():
    parameter = torch.ones(3)
    addresses = Addresses(LAYOUT, [None, parameter])
    for _ in range(2):
        assert addresses.of_parameters()[0].tolist() == [0, parameter.data_ptr()]


def test_a_sparse_vector_is_copied():
    addresses = Addresses(LAYOUT, parameters())
    found = values(*addresses.of([torch.eye(4).to_sparse(), torch.ones(3)]))
    np.testing.assert_array_equal(found[0], np.eye(4).reshape(-1))
