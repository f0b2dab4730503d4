"""View memory as arrays in compiled loops.

Slices of arrays would do the same, but handle negative and missing bounds, which takes several
times as long to compile.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final, cast

from llvmlite import ir
from numba import float32, int8, int32, int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic


def emit_array(
    context: Any, builder: Any, array_type: Any, data: Any, shape: Sequence[Any]
) -> Any:
    """Emit a row-major array that begins at a pointer, and does not own its memory."""
    # Numba's own function emits several times as many instructions.
    model = context.data_model_manager[array_type]
    stride = context.get_constant(
        types.intp, context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    )
    n_elements = reduce(builder.mul, shape)
    array = ir.Constant(context.get_value_type(array_type), None)
    fields = {"data": data, "nitems": n_elements, "itemsize": stride}
    for name, value in fields.items():
        array = builder.insert_value(array, value, model.get_field_position(name))
    for axis in reversed(range(len(shape))):
        for name, value in (("shape", shape[axis]), ("strides", stride)):
            place = model.get_field_position(name), axis
            array = builder.insert_value(array, value, place)
        if axis > 0:
            stride = builder.mul(stride, shape[axis])
    return array


def _first_element(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """Emit the pointer to the first element of an array."""
    place = context.data_model_manager[array_type].get_field_position("data")
    return builder.extract_value(array, place)


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
        return emit_array(context, builder, vector, data, [n])

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
        data = _first_element(context, builder, array, whole)
        first_element = builder.gep(data, [first])
        return emit_array(context, builder, vector, first_element, [n])

    return vector(array, int64, int64), generate_code


part_of: Final = intrinsic(_part_of)


def _erase(_context: Any, array: Any, _first: Any, _n: Any) -> Any:
    """Set n elements of a row-major array, which begin with the element `first`, to 0."""

    # A loop would take ten times as long to compile.
    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        whole, first, n = arguments
        place = builder.gep(_first_element(context, builder, array, whole), [first])
        size = context.get_abi_sizeof(context.get_data_type(array.dtype))
        cgutils.memset(builder, place, builder.mul(n, n.type(size)), 0)
        return context.get_dummy_value()

    return void(array, int64, int64), generate_code


erase: Final = intrinsic(_erase)


def _at(_context: Any, array: Any, _place: Any) -> Any:
    """Return the element of a row-major array at a place, which counts all elements."""

    # An index would take longer to compile, because it may be negative.
    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        whole, place = arguments
        first = _first_element(context, builder, array, whole)
        return builder.load(builder.gep(first, [place]))

    return array.dtype(array, int64), generate_code


at: Final = intrinsic(_at)


def _add_to(_context: Any, array: Any, _place: Any, _value: Any) -> Any:
    """Add a value to the element of a row-major array at a place, which counts all elements."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        whole, place, value = arguments
        element = builder.gep(_first_element(context, builder, array, whole), [place])
        builder.store(builder.fadd(builder.load(element), value), element)
        return context.get_dummy_value()

    return void(array, int64, array.dtype), generate_code


add_to: Final = intrinsic(_add_to)


def _address_of(_context: Any, array: Any) -> Any:
    """Return the address of the first element of an array."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        data = _first_element(context, builder, array, arguments[0])
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


def _quotient(_context: Any, _a: Any, _b: Any) -> Any:
    """Return a // b of two integers that are not negative; `//` takes longer to compile."""

    def generate_code(
        _context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        return builder.udiv(*arguments)

    return int64(int64, int64), generate_code


quotient: Final = intrinsic(_quotient)
