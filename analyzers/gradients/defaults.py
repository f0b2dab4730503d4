"""Defaults that the analyses share with their commands, which import no large library."""

from typing import Final

WINDOW: Final = 11
"""Number of steps in the running median, and in the running mean of the loss."""

THRESHOLD: Final = 0.5
"""Absolute running median of the cosine above which steps zigzag or are smooth."""
