"""Keep old public names working as deprecated aliases."""

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed(function: Callable[P, R], old_name: str) -> Callable[P, R]:
    """Return a function that warns that `old_name`, a dotted name, has a new name."""
    place, _, _ = old_name.rpartition(".")
    new_name = f"{place}.{function.__name__}"

    def alias(*args: P.args, **kwargs: P.kwargs) -> R:
        message = f"{old_name} is deprecated; use {new_name}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__doc__ = f"Call `{new_name}`; this name is deprecated."
    return alias
