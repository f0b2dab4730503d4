"""Deprecated alias of `train.curvature.hessian`."""

from typing import Any
from warnings import warn

from train.curvature import hessian


def __getattr__(name: str) -> Any:
    value = getattr(hessian, name)
    message = f"train.hessian.{name} is now train.curvature.hessian.{name}."
    warn(message, DeprecationWarning, stacklevel=2)
    return value
