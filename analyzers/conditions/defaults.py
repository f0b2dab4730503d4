"""Defaults that the analyses share with their commands, which import no large library."""

from typing import Final

MIN_GAP: Final = 0.1
"""Smallest allowed alpha - beta, as in the paper's experiments."""
