"""Products with a fixed vector along a path of SGD, as a linear function of the gradients' products.

With the displacement a_k and the momentum buffer m_k before step k, torch's update is

    d = sign g_k + decay x_k,    m_(k+1) = momentum m_k + intake d,
    a_(k+1) = a_k - lr (direct d + buffered m_(k+1)).

For a vector v orthogonal to the anchor r = x_k - a_k, the products A_k = <a_k, v> and
M_k = <m_k, v> follow from y_k = <g_k, v>, A_0 and M_0. This linear function is the same for all
parts of the parameters with the same settings, and for many quantities at once, so it is a matrix
product. Long windows are cut into blocks of steps, which keeps the matrices small.

These functions have the step as their first axis; the last axis separates parts.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

BLOCK_STEPS: Final = 128
"""Largest number of steps in a block."""

KEPT_BLOCKS: Final = 64
"""Number of matrices that are kept: windows often share their settings."""


class Rule(NamedTuple):
    """Coefficients of the updates of a window, each (step, part); see the module."""

    lr: FloatArray
    momentum: FloatArray
    intake: FloatArray
    direct: FloatArray
    buffered: FloatArray
    decay: FloatArray
    sign: FloatArray

    @property
    def pull(self) -> FloatArray:
        """Factor of d in -u."""
        return self.lr * (self.direct + self.buffered * self.intake)

    @property
    def push(self) -> FloatArray:
        """Factor of the buffer in -u."""
        return self.lr * self.buffered * self.momentum


class States(NamedTuple):
    """Products of displacement and buffer with v."""

    displacement: (
        FloatArray  # A before every step and at the end, (step + 1, ..., part)
    )
    buffer: FloatArray  # M at the end, (..., part)


class Block(NamedTuple):
    """The states in a few steps, as a function of their rows y and of A and M at their start."""

    steps: slice
    parts: Any  # index of the parts with these settings
    displacement: FloatArray  # A before every step and at the end, (step + 1, row)
    buffer: FloatArray  # M at the end, (row,)


class Recurrence(NamedTuple):
    """The rule of a window, ready to be applied."""

    rule: Rule
    blocks: tuple[
        tuple[Block, ...], ...
    ]  # in the order of steps; one block per kind of part


def recurrence_of(rule: Rule) -> Recurrence:
    """Prepare the matrices of a rule."""
    n = len(rule.lr)
    n_blocks = -(-n // BLOCK_STEPS)
    borders = [n * i // n_blocks for i in range(n_blocks + 1)]
    pieces = [slice(*pair) for pair in pairwise(borders)]
    blocks = []
    for steps in pieces:
        # The memory of a part's coefficients tells parts with the same settings.
        columns = np.stack([values[steps] for values in rule]).transpose(2, 0, 1)
        kinds: dict[bytes, list[int]] = {}
        for part, column in enumerate(columns):
            kinds.setdefault(column.tobytes(), []).append(part)
        blocks.append(
            tuple(
                Block(steps, parts if len(kinds) > 1 else slice(None), *_matrix(kind))
                for kind, parts in kinds.items()
            )
        )
    return Recurrence(rule, tuple(blocks))


@lru_cache(maxsize=KEPT_BLOCKS)
def _matrix(kind: bytes) -> tuple[FloatArray, FloatArray]:
    """Return the fields of a block, given its coefficients."""
    rule = Rule(*np.frombuffer(kind).reshape(len(Rule._fields), -1))
    n, pull, push = len(rule.lr), rule.pull, rule.push
    rows = np.eye(n + 2)
    path = np.empty((n + 1, n + 2))
    path[0], m = rows[n], rows[n + 1]
    for k in range(n):
        d = rule.sign[k] * rows[k] + rule.decay[k] * path[k]
        path[k + 1] = path[k] - pull[k] * d - push[k] * m
        m = rule.momentum[k] * m + rule.intake[k] * d
    return path, m


def states(recurrence: Recurrence, rows: FloatArray, tie: FloatArray) -> States:
    """Return A and M from the rows y, A_0 and M_0 - tie A_0, (step + 2, ..., part)."""
    path = np.empty((len(rows) - 1, *rows.shape[1:]))
    buffer = rows[-1] + tie * rows[-2]
    path[0] = rows[-2]
    for blocks in recurrence.blocks:
        start = path[blocks[0].steps.start], buffer
        buffer = np.empty_like(buffer)
        for steps, parts, matrix, last in blocks:
            given = [values[None][..., parts] for values in start]
            inputs = np.concatenate([rows[steps][..., parts], *given])
            path[steps.start + 1 : steps.stop + 1, ..., parts] = _times(
                matrix[1:], inputs
            )
            buffer[..., parts] = _times(last[None], inputs)[0]
    return States(path, buffer)


def gradient_of(
    recurrence: Recurrence,
    on_displacement: FloatArray,
    on_buffer: FloatArray,
    tie: FloatArray,
) -> FloatArray:
    """Return the derivatives of ``(A w).sum(0) + M_end b`` by the rows y, A_0, M_0 - tie A_0."""
    # `on_displacement` is w, (step + 1, ..., part), and `on_buffer` is b, (..., part). The
    # result is (step + 2, ..., part): the transpose of `states`.
    result = np.empty((len(on_displacement) + 1, *on_displacement.shape[1:]))
    a, m = on_displacement[-1], on_buffer
    for blocks in reversed(recurrence.blocks):
        after, a, m = (a, m), np.empty_like(a), np.empty_like(m)
        for steps, parts, matrix, last in blocks:
            ends = [values[None][..., parts] for values in after]
            weights = np.concatenate([on_displacement[steps][..., parts], *ends])
            rows = _times(np.vstack([matrix, last]).T, weights)
            result[steps, ..., parts] = rows[:-2]
            a[..., parts], m[..., parts] = rows[-2:]
    result[-2], result[-1] = a + tie * m, m
    return result


def path_variance(
    recurrence: Recurrence, variance: FloatArray, tie: FloatArray
) -> FloatArray:
    """Return the variance of A, (step + 1, part), if the rows have independent errors."""
    path = np.empty((len(variance) - 1, variance.shape[-1]))
    aa, am = variance[-2], tie * variance[-2]
    mm = variance[-1] + tie**2 * variance[-2]
    path[0] = aa
    for blocks in recurrence.blocks:
        start = aa, mm, am
        aa, am, mm = np.empty((3, variance.shape[-1]))
        for steps, parts, matrix, last in blocks:
            of_a, of_m, mixed = (values[None, parts] for values in start)
            rows = np.concatenate([variance[steps][:, parts], of_a, of_m])
            a, m = matrix[1:], last
            after = a**2 @ rows + 2 * (a[:, -2] * a[:, -1])[:, None] * mixed
            path[steps.start + 1 : steps.stop + 1, parts] = after
            aa[parts] = after[-1]
            mm[parts] = m**2 @ rows + 2 * m[-2] * m[-1] * mixed[0]
            both = a[-1, -2] * m[-1] + a[-1, -1] * m[-2]
            am[parts] = (a[-1] * m) @ rows + both * mixed[0]
    return path


def _times(matrix: FloatArray, values: FloatArray) -> FloatArray:
    """Multiply a matrix by values whose first axis is summed over."""
    product: FloatArray = (matrix @ values.reshape(len(values), -1)).reshape(
        len(matrix), *values.shape[1:]
    )
    return product
