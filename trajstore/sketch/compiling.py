"""Compile loops of analyses with Numba, and keep the results on disk."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

FASTMATH: Final = frozenset({"contract", "nsz"})
"""LLVM flags that leave the order of operations, infinities and NaN as they are."""


def compiled(
    *signature: Any, fastmath: frozenset[str] = FASTMATH, **options: Any
) -> Callable[[F], F]:
    """Compile a function, and keep the result on disk if there is a place for it."""
    options |= {"nogil": True, "fastmath": {*fastmath}}

    def decorated(function: F) -> F:
        try:
            result = numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError:
            result = numba.njit(*signature, **options)(function)
        return cast("F", result)

    return decorated
