"""Deprecated alias of `trajstore.curvature`."""

from typing import Any
from warnings import warn

from trajstore.curvature import hessian


def __getattr__(name: str) -> Any:
    value = getattr(hessian, name)
    message = f"train.hessian.{name} is now trajstore.curvature.{name}."
    warn(message, DeprecationWarning, stacklevel=2)
    return value
