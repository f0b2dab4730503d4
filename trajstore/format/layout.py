"""Lay out named parameter tensors in one flat vector.

Tensors are stored row-major, in the order of ``named_parameters()``. Each starts at a
multiple of `BLOCK`, and the gaps between them are zero. A block therefore belongs to only
one tensor, and the sum over the blocks of a tensor is the sum over the tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 1024
"""Number of elements in a block; every tensor starts at a multiple of it."""


@dataclass(frozen=True, slots=False)
class Layout:
    """Names, shapes and offsets of the tensors in the flat vector."""

    names: tuple[str, ...]  # names of the parameters, the labels of the dimension layer
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of elements in each tensor, int64 (layer,)."""
        return np.array([prod(shape) for shape in self.shapes], np.int64)

    @cached_property
    def blocks(self) -> npt.NDArray[np.int64]:
        """Number of blocks of each tensor, int64 (layer,)."""
        return -(-self.sizes // BLOCK)

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Index of each tensor's first element in the flat vector, int64 (layer,)."""
        return BLOCK * (np.cumsum(self.blocks) - self.blocks)

    @property
    def n_params(self) -> int:
        """Number of parameters, excluding the gaps."""
        return int(self.sizes.sum())

    @property
    def size(self) -> int:
        """Length of the flat vector, including the gaps."""
        return BLOCK * int(self.blocks.sum())

    @cached_property
    def layer_of_block(self) -> npt.NDArray[np.int64]:
        """Index of the tensor that each block belongs to, int64 (block,)."""
        return np.repeat(np.arange(len(self.names)), self.blocks)

    @cached_property
    def packed_offsets(self) -> npt.NDArray[np.int64]:
        """Index of each tensor's first element in a vector without gaps, int64 (layer,)."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def packed_elements(self) -> npt.NDArray[np.int64]:
        """Index in the flat vector of each element of a vector without gaps, int64 (param,)."""
        shift = np.repeat(self.offsets - self.packed_offsets, self.sizes)
        return np.arange(self.n_params) + shift

    @cached_property
    def elements_of_block(self) -> npt.NDArray[np.int64]:
        """Number of elements in each block that belong to a tensor, int64 (block,)."""
        starts = BLOCK * np.arange(len(self.layer_of_block))
        ends = (self.offsets + self.sizes)[self.layer_of_block]
        return np.asarray(np.minimum(ends - starts, BLOCK), np.int64)

    def flatten(
        self, tensors: Mapping[str, npt.ArrayLike], dtype: str = "float32"
    ) -> npt.NDArray[np.floating[Any]]:
        """Return named arrays as one flat vector (size,) of a type."""
        # Keys that name no parameter are ignored. The error lists all missing arrays and wrong shapes.
        arrays = {
            name: np.asarray(tensors[name]) for name in self.names if name in tensors
        }
        problems = [
            f"{name}: {found}, expected shape {shape}"
            for name, shape in zip(self.names, self.shapes, strict=True)
            if (found := _misfit(arrays.get(name), shape))
        ]
        if problems:
            raise ValueError(
                f"The arrays do not fit the recorded parameters; {len(problems)} of "
                f"{len(self.names)} differ:\n" + "\n".join(problems)
            )
        flat = np.zeros(self.size, dtype)
        for name, offset, size in zip(
            self.names, self.offsets, self.sizes, strict=True
        ):
            flat[offset : offset + size] = arrays[name].reshape(-1)
        return flat

    def unflatten(
        self, flat: npt.NDArray[np.floating[Any]]
    ) -> dict[str, npt.NDArray[np.floating[Any]]]:
        """Return views of the tensors in a flat vector (size,), by name."""
        return {
            name: flat[offset : offset + size].reshape(shape)
            for name, shape, offset, size in zip(
                self.names, self.shapes, self.offsets, self.sizes, strict=True
            )
        }


def _misfit(array: npt.NDArray[Any] | None, shape: tuple[int, ...]) -> str | None:
    """Describe an array that does not fit its parameter; return None if it fits."""
    if array is None:
        return "missing"
    if array.shape != shape:
        return f"got shape {array.shape}"
    return None if array.dtype.kind in "biuf" else f"got values of type {array.dtype}"
