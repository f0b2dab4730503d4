"""What a recorder does unless told otherwise; plans count with the same."""

from typing import Final

SKETCH_BITS: Final = 65536
"""Signs kept of every gradient."""

BASIS: Final = 3
"""Directions in which gradients are known exactly."""

PROBES: Final = 1024
"""Numbers in a fixed probe."""

FLUSH_ROWS: Final = 1024
"""Rows are written when there are so many."""

FLUSH_BYTES: Final = 8 << 20
"""Rows are written when they take this much memory, at the latest."""
