"""The generator of random signs, Philox4x64-10, for compiled loops; see `trajstore.sketch.signs`."""

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import uint64
from numba.extending import intrinsic

Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


def _upper_half(_context: Any, _x: Any, _y: Any) -> Any:
    """Return the upper 64 bits of the 128-bit product."""

    def generate_code(
        _context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        long = ir.IntType(128)
        x, y = (builder.zext(argument, long) for argument in arguments)
        product = builder.lshr(builder.mul(x, y), ir.Constant(long, 64))
        return builder.trunc(product, ir.IntType(64))

    return uint64(uint64, uint64), generate_code


_high_product: Final = intrinsic(_upper_half)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def random_block(block: np.uint64, step: int, seed: int, role: int) -> Words:
    """Return a block of four random words; the first block has the number 1."""
    a, b, c, d = np.uint64(block), np.uint64(0), np.uint64(0), np.uint64(step)
    first, second = np.uint64(seed), np.uint64(role)
    for _ in range(10):
        high_a = _high_product(np.uint64(0xD2E7470EE14C6C93), a)
        low_a = np.uint64(0xD2E7470EE14C6C93) * a
        high_c = _high_product(np.uint64(0xCA5A826395121157), c)
        low_c = np.uint64(0xCA5A826395121157) * c
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first += np.uint64(0x9E3779B97F4A7C15)
        second += np.uint64(0xBB67AE8584CAA73B)
    return a, b, c, d
