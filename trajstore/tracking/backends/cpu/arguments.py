"""Pass arguments to kernels at an address, so that a kernel can be called in any thread.

Python would unwrap dozens of arrays in every step, and compiling that takes long. `Arguments`
writes the addresses and shapes of arrays into words once, and again only for arrays that are
replaced; a kernel reads them with the function that `arguments_at` returns.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from trajstore.tracking.backends.cpu.views import emit_array

WORD: Final = 8
"""Size of a word in bytes."""


class Arguments:
    """Holds the arguments of a kernel, which has these names and types, at `address`."""

    def __init__(self, argument_types: Mapping[str, Any], /, **values: Any) -> None:
        self._kinds: dict[str, _Kind] = {}
        n_words = 0
        for name, argument_type in argument_types.items():
            is_array = isinstance(argument_type, types.Array)
            n_dims = argument_type.ndim if is_array else 0
            dtype = as_dtype(argument_type.dtype if is_array else argument_type)
            self._kinds[name] = _Kind(n_words, dtype, n_dims)
            n_words += 1 + n_dims
        self._words = np.zeros(n_words, np.int64)
        self.address: int = self._words.ctypes.data
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name in argument_types:
            self.set(name, values[name])

    def set(self, name: str, value: npt.NDArray[Any] | int) -> None:
        """Replace an argument; the same array as before takes no time."""
        if self._arrays.get(name) is value:
            return
        place, dtype, n_dims = self._kinds[name]
        # A kernel would take the memory of another array for what it expects.
        if isinstance(value, int):
            assert n_dims == 0, name
            self._words[place] = value
            return
        assert (value.dtype, value.ndim) == (dtype, n_dims), name
        assert value.flags.c_contiguous, name
        words = value.ctypes.data, *value.shape
        self._words[place : place + len(words)] = words
        # The kernel reads the array later.
        self._arrays[name] = value

    def place_of(self, name: str) -> npt.NDArray[np.int64]:
        """View the address at which an array begins, (1,); who writes another keeps the memory."""
        place = self._kinds[name].place
        return self._words[place : place + 1]


class _Kind(NamedTuple):
    """Place and kind of an argument; integers have no dimensions."""

    place: int
    dtype: npt.DTypeLike
    n_dims: int


def arguments_at(*argument_types: Any) -> Callable[[int], Any]:
    """Return a function for kernels that reads arguments of these types at an address."""
    result = types.Tuple(argument_types)

    def infer_type(_context: Any, _address: Any) -> Any:
        return result(int64), generate_code

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        words, place, values = arguments[0], 0, []

        def word() -> Any:
            nonlocal place
            address = builder.add(words, ir.Constant(words.type, WORD * place))
            place += 1
            return builder.load(builder.inttoptr(address, words.type.as_pointer()))

        for argument_type in argument_types:
            first = word()
            if isinstance(argument_type, types.Array):
                shape = [word() for _ in range(argument_type.ndim)]
                element = context.get_data_type(argument_type.dtype)
                data = builder.inttoptr(first, element.as_pointer())
                first = emit_array(context, builder, argument_type, data, shape)
            values.append(first)
        return context.make_tuple(builder, result, values)

    return cast("Callable[[int], Any]", intrinsic(infer_type))
