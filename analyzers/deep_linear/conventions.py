"""Conventions of losses, which commands import without any large library."""

from typing import Literal

LossConvention = Literal["half-sum", "sum", "mean"]
"""How squared errors are reduced over outputs; every loss is a mean over examples."""
