"""Choose how many numbers a sketch has, and how many bits each of them takes.

A sketch of m numbers can hold a network of up to m parameters without folding any of them
together. The bits that a small network leaves over make its numbers more precise
(`trajstore.sketch.levels`).
"""

from typing import Final

SKETCH_VERSION: Final = 2
"""Arrangement of sketches and probes in new stores; `docs/estimator.md` describes both."""

MIN_SIZE: Final = 8
MAX_SIZE: Final = 1 << 24

MAX_BITS: Final = 16
"""Largest number of bits for a number; more would not reduce errors of float32 rounding."""


def is_size(value: object) -> bool:
    """Whether a number of bits or probes is supported: a power of two from 8 to 2**24."""
    # isinstance would accept true, because bool is a subclass of int.
    return (
        type(value) is int and MIN_SIZE <= value <= MAX_SIZE and value.bit_count() == 1
    )


def sketch_size(n_params: int, most_bits: int) -> dict[str, int]:
    """Return `sketch_bits` and `bits_per_number` of a new recording; both are powers of two."""
    numbers = max(MIN_SIZE, 1 << max(0, n_params - 1).bit_length())
    if numbers > most_bits:
        return {"sketch_bits": most_bits, "bits_per_number": 1}
    bits = min(MAX_BITS, most_bits // numbers)
    return {"sketch_bits": numbers * bits, "bits_per_number": bits}


def sketch_fields(n_params: int, most_bits: int) -> dict[str, int]:
    """Return the fields of a new `RunSpec` that describe its sketch."""
    # Numbers that are no size are left for `trajstore.format.run_spec` to refuse.
    size = {"sketch_bits": most_bits}
    if is_size(most_bits):
        size = sketch_size(n_params, most_bits)
    return {"sketch_version": SKETCH_VERSION, **size}
