"""View memory as arrays in compiled loops.

Slices of arrays would do the same, but handle negative and missing bounds, which takes several
times as long to compile.
"""

from collections.abc import Callable
from typing import Any, Final, cast

from numba import float32, int8, int32, int64, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array


def _contiguous(context: Any, builder: Any, vector: Any, data: Any, n: Any) -> Any:
    """Emit an array (n,) that begins at a pointer, and does not own its memory."""
    array = make_array(vector)(context, builder)
    integer = context.get_value_type(types.intp)
    size = context.get_abi_sizeof(context.get_data_type(vector.dtype))
    populate_array(
        array,
        data=data,
        shape=(n,),
        strides=(integer(size),),
        itemsize=integer(size),
        meminfo=None,
    )
    return array._getvalue()


def _at_addresses_of(element_type: Any) -> Callable[..., Any]:
    """Return a function that views n numbers of this type at an address."""
    vector = types.Array(element_type, 1, "C")

    def infer_type(_context: Any, _address: Any, _n: Any) -> Any:
        return vector(int64, int64), generate_code

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        address, n = arguments
        pointer = context.get_data_type(element_type).as_pointer()
        data = builder.inttoptr(address, pointer)
        return _contiguous(context, builder, vector, data, n)

    return cast("Callable[..., Any]", intrinsic(infer_type))


floats_at: Final = _at_addresses_of(float32)
codes_at: Final = _at_addresses_of(int8)
words_at: Final = _at_addresses_of(int32)


def _part_of(_context: Any, array: Any, _first: Any, _n: Any) -> Any:
    """View n elements of a row-major array, which begin with the element `first`."""
    vector = types.Array(array.dtype, 1, "C")

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        whole, first, n = arguments
        data = make_array(array)(context, builder, whole).data
        return _contiguous(context, builder, vector, builder.gep(data, [first]), n)

    return vector(array, int64, int64), generate_code


part_of: Final = intrinsic(_part_of)


def _address_of(_context: Any, array: Any) -> Any:
    """Return the address of the first element of an array."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        data = make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, context.get_value_type(int64))

    return int64(array), generate_code


address_of: Final = intrinsic(_address_of)


def _smaller(_context: Any, _a: Any, _b: Any) -> Any:
    """Return the smaller one of two integers; `min` takes longer to compile."""

    def generate_code(
        _context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        a, b = arguments
        return builder.select(builder.icmp_signed("<", a, b), a, b)

    return int64(int64, int64), generate_code


smaller: Final = intrinsic(_smaller)
