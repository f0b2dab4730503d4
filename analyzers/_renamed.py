"""Keep old public names working as deprecated aliases."""

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed(function: Callable[P, R], old_name: str) -> Callable[P, R]:
    """Return an alias that warns that its dotted name `old_name` is deprecated."""
    module, _, _ = old_name.rpartition(".")
    new_name = f"{module}.{function.__name__}"

    def alias(*args: P.args, **kwargs: P.kwargs) -> R:
        message = f"{old_name} is deprecated; use {new_name}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__doc__ = f"Call `{new_name}`; this name is deprecated."
    return alias
