"""Memory that recording takes once for a process, whatever it records."""

from typing import Final

PROCESS_MEMORY: Final = 240_000_000
"""Bytes of libraries and compiled loops in a process that records on a CPU
(``benchmarks/process_memory.py``)."""
