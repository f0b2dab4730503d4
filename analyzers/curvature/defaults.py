"""Defaults that the analyses share with their commands, which import no large library."""

from typing import Final

TOLERANCE: Final = 1e-4
"""Largest |cosine| that counts as zero: our own criterion."""
