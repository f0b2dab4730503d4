"""Signs, buffers and codes of the sketch and the probes, as the kernels for CPUs expect them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch import levels
from trajstore.sketch.sketch import Sketch, probes_of, sketch_of
from trajstore.tracking.backends.cpu import coding
from trajstore.tracking.backends.cpu.compiling import now
from trajstore.tracking.backends.memory import huge_zeros

Floats = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]

CPU: Final = torch.device("cpu")

WORD: Final = 64
"""Number of bits in a word of random signs."""


@dataclass(frozen=True)
class Folding:
    """Signs and buffers of the sketch and the probes; the arrays are empty in exact mode."""

    sketch: Sketch | None
    width: int  # width of the fold; 0 in exact mode
    filled: int  # number of buckets that may differ from 0
    probe_columns: Signs  # sequence of the column signs of the probes
    probe_rows: Floats  # row signs of the probes
    second_fold: tuple[Signs, int, int, int]  # arguments of `sketching.probe`
    step_signs: Signs  # signs drawn in every step
    row_signs: Signs  # the part of `step_signs` for the rows of the fold
    folds: Floats  # (part, 3, bucket): folds of gradient, displacement and weighted gradient
    blocks: tuple[int, int]  # lengths of the blocks of the two Hadamard transforms
    # Writes the codes and scales of a rotated fold: code(numbers, codes, scales).
    code: Callable[[Floats, npt.NDArray[np.uint8], Floats], None]


def no_folding(n_parts: int) -> Folding:
    """Return empty arrays, for exact mode."""
    empty, none = np.zeros(0, np.float32), np.zeros(0, np.int8)
    return Folding(
        sketch=None,
        width=0,
        filled=0,
        probe_columns=none,
        probe_rows=empty,
        second_fold=(none, 1, 1, 0),
        step_signs=none,
        row_signs=none,
        folds=np.zeros((n_parts, 3, 0), np.float32),
        blocks=(1, 1),
        code=coding.code_signs,
    )


def folding_of(layout: Layout, spec: RunSpec, n_parts: int) -> Folding:
    """Return the signs and buffers for vectors that are folded in several parts."""
    sketch, probes = sketch_of(spec, layout), probes_of(spec, layout)
    fold, numbers, n_signs = sketch.fold, sketch.numbers, sum(sketch.sign_counts)
    block = numbers // sketch.n_blocks
    signs = np.zeros(-(-n_signs // WORD) * WORD, np.int8)
    return Folding(
        sketch=sketch,
        width=fold.width,
        filled=min(fold.width, sketch.size),
        probe_columns=fold.column_sequence.astype(np.int8),
        probe_rows=probes.row_signs,
        second_fold=(
            probes.bucket_signs.astype(np.int8),
            probes.bucket_fold.width,
            probes.block,
            probes.shift,
        ),
        step_signs=signs,
        row_signs=signs[numbers:n_signs],
        folds=huge_zeros(n_parts, 3, fold.buckets, device=CPU).numpy(),
        blocks=(numbers if sketch.is_mixed else block, block),
        code=_code(spec.bits_per_number, numbers),
    )


def _code(bits: int, numbers: int) -> Callable[..., None]:
    """Return a function that codes this many numbers with this many bits each."""
    if bits == 1:
        return now(coding.code_signs)
    found = np.zeros(numbers, np.int32)
    if bits < 8:
        code = coding.code_2_bits if bits == 2 else coding.code_4_bits
        return partial(now(code), levels.levels(bits), levels.borders(bits), found)
    many = bits, levels.levels(bits), levels.guide(bits), found
    return partial(coding.code_many_levels, *many)
