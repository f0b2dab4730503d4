"""Predict the disk space, the memory and the error of gamma of a recording.

Sizes follow from the format (`trajstore.format.arrays`) and from measured compression
ratios. `trajstore.planning.errors` predicts the error. Compression ratios depend on the training
run; `benchmarks/planning.py` measured them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt, prod, sqrt
from typing import Final

from trajstore.format.arrays import (
    DISPLACEMENT_CODES,
    ITEM_SIZE,
    KEYFRAME_EVERY,
    SUM_SIGNS,
    ArraySpec,
    n_blocks,
    n_metric_columns,
    step_arrays,
    vector_array,
    window_arrays,
)
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import (
    BASIS,
    FLUSH_BYTES,
    FLUSH_ROWS,
    PROBES,
    SKETCH_BITS,
    RunSpec,
)
from trajstore.format.sketch_size import sketch_fields
from trajstore.format.window_length import choose_windows
from trajstore.format.windows import OWN_WINDOWS, Windows
from trajstore.planning.errors import (
    ErrorRange,
    ExpectedErrors,
    Rate,
    plain_error,
    probe_crowding,
)
from trajstore.planning.measured import RUN_SPREAD, Optimizer
from trajstore.planning.similar import (
    Recorded,
    Times,
    scaled_mean,
    scaled_step,
    times_of,
)
from trajstore.sketch.deltas import n_codes
from trajstore.sketch.vector_forms import are_compact, n_words
from trajstore.sketch.window_sum import LEAST_STEPS, with_window_sums

COMPRESSION: Final = {
    "epoch": 0.05,
    "iteration": 0.05,
    "window": 0.05,
    "scalars": 0.13,
    "tables": 0.85,
    "scales": 0.9,
    "probe_scales": 0.85,
    "references/codes": 0.8,
    "references/probes": 0.63,
}
"""Ratios of bytes on disk to bytes in memory (``benchmarks/planning.py``); 1 for other arrays."""

WHOLE: Final = ("gradient", "displacement")
"""Arrays of an exact recording that hold a vector of the parameters in every step."""

OF_PROBES: Final = ("gradient_probes", "displacement_probes")
"""Arrays of the probes of every step."""

VECTOR_BYTES: Final = {"float32": 12, "float64": 60}
"""Bytes of a recorder's vectors for each parameter, by the type of the parameters.

In float32: previous gradient, displacement and anchor. In float64 these, the gradient and the update,
and float32 copies of gradient and displacement with the three vectors that sketch them. On a CPU,
large networks have compact vectors (`trajstore.sketch.vector_forms`).
"""


@dataclass(frozen=True, slots=False, kw_only=True)
class Plan:
    """Predicted size and errors of a recording."""

    spec: RunSpec  # its `total_steps` is not None
    rate: Rate = "constant"
    optimizer: Optimizer | None = None  # None if unknown
    like: Recorded | None = None  # a similar run, from which errors are extrapolated
    windows_reason: str = ""  # why windows are not epochs, if they were chosen

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps in the run."""
        assert self.spec.total_steps is not None
        return self.spec.total_steps

    @cached_property
    def layout(self) -> Layout:
        """Positions of the layers in flat vectors."""
        return Layout(self.spec.names, self.spec.shapes)

    @cached_property
    def windows(self) -> Windows:
        """Schedule of the run's windows."""
        return Windows.of(self.spec)

    @cached_property
    def n_windows(self) -> int:
        """Number of windows in the run, each with an anchor."""
        return sum(1 for _ in window_starts(self.windows, self.n_steps))

    @cached_property
    def bytes_per_step(self) -> Mapping[str, float]:
        """Size on disk of one step in bytes, by array."""
        # The gaps between the tensors of an exact recording compress to nothing, and so do the
        # probes that no parameter of a tiny network has.
        n_params = self.layout.n_params
        filled = dict.fromkeys(WHOLE, n_params / self.layout.size)
        if self.spec.is_packed:
            filled |= dict.fromkeys(OF_PROBES, min(1.0, n_params / self.spec.probes))
        return {
            name: _bytes_on_disk(name, array) * filled.get(name, 1.0)
            for name, array in self._step_arrays.items()
        }

    @cached_property
    def bytes_of_anchors(self) -> Mapping[str, float]:
        """Size on disk of all anchors in bytes, by array."""
        arrays = window_arrays(self.spec, size=self._size, block=BLOCK)
        rows = dict.fromkeys(arrays, self.n_windows)
        # The first anchor is a keyframe and has no codes.
        rows["references/codes"] -= 1
        rows["references/keyframes"] = -(-self.n_windows // KEYFRAME_EVERY)
        # Rows of short windows are zeros, which compress to nothing.
        n_long = int((self.windows.lengths >= LEAST_STEPS).sum())
        rows |= {n: n_long for n in (SUM_SIGNS, DISPLACEMENT_CODES) if n in rows}
        return {
            name: rows[name] * _bytes_on_disk(name, arrays[name]) for name in arrays
        }

    @property
    def share_of_anchors(self) -> float:
        """Share of the store's bytes that all anchors take, with the sums of their windows."""
        return sum(self.bytes_of_anchors.values()) / self.disk

    @property
    def bytes_of_final(self) -> int:
        """Size on disk of the final parameters in bytes."""
        vector = vector_array(self._size, self.spec.float_type)
        return self._size * ITEM_SIZE[vector.dtype]

    @cached_property
    def bytes_of_metadata(self) -> int:
        """Size on disk of the JSON documents in bytes."""
        arrays = self._step_arrays | window_arrays(
            self.spec, size=self._size, block=BLOCK
        )
        documents = [json.dumps(a.metadata(self.n_steps)) for a in arrays.values()]
        # Every array has a document, and the root document repeats all of them.
        return 2 * sum(map(len, documents)) + len(json.dumps(self.spec.to_json()))

    @cached_property
    def disk(self) -> float:
        """Size on disk of the whole store in bytes."""
        return (
            self.n_steps * sum(self.bytes_per_step.values())
            + sum(self.bytes_of_anchors.values())
            + self.bytes_of_final
            + self.bytes_of_metadata
        )

    @property
    def memory(self) -> int:
        """Peak memory that a recording on a CPU adds, in bytes."""
        return self.memory_of_rank(1) + 2 * self._batch_bytes + self._memory_of_writer

    @property
    def memory_with_parameters(self) -> int:
        """Peak memory of the accelerator that a recording adds, in bytes."""
        # The vectors, and two buffers of rows.
        return self.memory_of_rank(1, on_cpu=False) + 2 * self._batch_bytes

    @property
    def memory_of_host(self) -> int:
        """Peak memory of the host that a recording on an accelerator adds, in bytes."""
        # The writer copies the code of an anchor, and a keyframe, through a buffer.
        anchor = ITEM_SIZE["int8"] + ITEM_SIZE[self.spec.float_type]
        return self._memory_of_writer + anchor * self._size + FLUSH_BYTES

    @property
    def _memory_of_writer(self) -> int:
        """Memory of the rows being written, and of the last chunk of every array."""
        arrays = self._step_arrays.values()
        tails = sum(a.chunk[0] * _bytes_of_row(a) for a in arrays)
        return self._batch_bytes + min(tails, self.n_steps * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return sum(map(_bytes_of_row, self._step_arrays.values()))

    @property
    def _batch_bytes(self) -> int:
        return max(self._row_bytes, min(FLUSH_ROWS * self._row_bytes, FLUSH_BYTES))

    def memory_of_rank(self, n_ranks: int, *, on_cpu: bool = True) -> int:
        """Return the memory for vectors on each of some ranks that share the parameters, in bytes."""
        # The codes are those of past anchors, and of anchors that wait to be written unless a new
        # code takes the memory of the oldest one.
        size = -(-self._size // n_ranks)
        n_past = min(n_codes(self.spec.basis), self.n_windows)
        waiting = size if n_past == 0 else min(size, FLUSH_BYTES)
        codes = (n_past * size + waiting) * ITEM_SIZE["int8"]
        vectors = VECTOR_BYTES[self.spec.float_type] * self._size
        if on_cpu and are_compact(self.spec):
            vectors -= ITEM_SIZE["float32"] * (2 * self._size - n_words(self.layout))
        return -(-vectors // n_ranks) + codes

    @property
    def gathered(self) -> int:
        """Memory on the first of several ranks for an anchor and its code while they are written."""
        return self._size * (ITEM_SIZE[self.spec.float_type] + ITEM_SIZE["int8"])

    @property
    def window_share(self) -> float:
        """Length of the longest window, as a fraction of the run."""
        # In a short run, all windows are cut.
        longest = min(int(self.windows.lengths.max()), self.windows.length)
        return min(1.0, longest / self.n_steps)

    @cached_property
    def plain_error(self) -> float:
        """Standard error of gamma from a sketch without weights or basis."""
        return plain_error(self.spec, self.layout)

    def stderr(self, *, mean_of: int = 1) -> ErrorRange:
        """Return the expected standard error of mid-run gamma, averaged over `mean_of` steps."""
        if self.spec.exact:
            return ErrorRange(0.0, 0.0, 0.0)
        return (
            self._scaled(self.like, mean_of)
            if self.like
            else self._extrapolated(mean_of)
        )

    def _scaled(self, like: Recorded, mean_of: int) -> ErrorRange:
        """Return the errors of a similar run, scaled to the windows of this plan."""
        similar = Plan(
            spec=like.with_sketch_of(self.spec),
            rate=like.rate,
            optimizer=like.optimizer,
        )
        of_epoch = like.spec.steps_per_epoch
        n = mean_of if mean_of > 1 else self.spec.steps_per_epoch
        own, planned = similar._times(of_epoch), self._times(n)
        error = scaled_step(like, self.spec, own, planned)
        if mean_of > 1:
            mean = scaled_mean(like, self.spec, own, planned) if of_epoch else None
            if mean is None:
                step, of_steps = (self._extrapolated(n).typical for n in (1, mean_of))
                mean = error * of_steps / step
            error = mean
        if self.spec.basis == like.spec.basis:
            ratios = ErrorRange(1.0, 1.0, 1.0)
        else:
            same = replace(self, spec=replace(self.spec, basis=like.spec.basis))
            pairs = zip(
                self._extrapolated(mean_of), same._extrapolated(mean_of), strict=True
            )
            ratios = ErrorRange(*sorted(other / found for other, found in pairs))
        low, typical, high = (error * ratio for ratio in ratios)
        return ErrorRange(low / RUN_SPREAD, typical, high * RUN_SPREAD)

    def _times(self, mean_of: int | None) -> Times:
        """Return the lengths of this plan that errors of a similar run are scaled by."""
        n_steps, lengths = self.n_steps, self.windows.lengths
        # Without epochs, the middle lacks a window at either end.
        mean_of = mean_of or int(lengths.max())
        return times_of(lengths, n_steps=n_steps, mean_of=mean_of)

    def _extrapolated(self, mean_of: int) -> ErrorRange:
        """Return the errors that measured runs predict."""
        epoch = self.window_share
        if self.spec.steps_per_epoch is not None:
            epoch = self.spec.steps_per_epoch / self.n_steps
        expected = ExpectedErrors(
            plain=self.plain_error,
            basis=self.spec.basis,
            probes=self.spec.probes,
            n_steps=self.n_steps,
            window=self.window_share,
            epoch=min(1.0, epoch),
            rate=self.rate,
            optimizer=self.optimizer,
            has_sums=is_sgd(self.optimizer) or self.spec.window_folds > 0,
            has_displacement_sums=self.spec.displacement_sum,
            crowding=probe_crowding(self.layout.n_params, self.spec.probes),
        )
        shared = expected.stderr(mean_of=mean_of)
        own = replace(expected, window=expected.epoch).stderr(mean_of=mean_of)
        share = self._share_of_own_windows
        pairs = zip(shared, own, strict=True)
        return ErrorRange(*(sqrt((1 - share) * s**2 + share * o**2) for s, o in pairs))

    @property
    def _share_of_own_windows(self) -> float:
        """Share of the steps mid-run whose epochs have windows of their own, if others share."""
        if self.spec.shared_epochs == 1:
            return 0.0
        n_epochs = self.n_steps / (self.spec.steps_per_epoch or self.n_steps)
        return min(1.0, (OWN_WINDOWS - 1) / max(n_epochs - 2, 1))

    @property
    def _size(self) -> int:
        return self.layout.size

    @cached_property
    def _step_arrays(self) -> dict[str, ArraySpec]:
        return step_arrays(
            self.spec,
            size=self._size,
            n_metrics=n_metric_columns(0),
            n_blocks=n_blocks(self.spec.sketch_numbers),
        )


def plan_recording(
    layout: Layout,
    *,
    n_steps: int,
    steps_per_epoch: int | None = None,
    sketch_bits: int = SKETCH_BITS,
    basis: int = BASIS,
    probes: int = PROBES,
    reference_every: int | None = None,
    exact: bool = False,
    float64: bool = False,
    rate: Rate = "constant",
    optimizer: Optimizer | None = None,
    like: Recorded | None = None,
) -> Plan:
    """Return the plan of a recording by a `trajstore.Recorder` with these arguments."""
    spec = RunSpec.from_json(
        {
            "names": layout.names,
            "shapes": layout.shapes,
            "seed": 0,
            **sketch_fields(layout.n_params, sketch_bits),
            "basis": basis,
            "probes": probes,
            "steps_per_epoch": steps_per_epoch,
            "reference_every": reference_every,
            "total_steps": n_steps,
            "exact": exact,
            "compressed": exact,
            "float64": float64,
            "scaled": not float64,
        }
    )
    spec, reason = choose_windows(spec)
    spec = with_window_sums(spec, Windows.of(spec), is_sgd=is_sgd(optimizer))
    return Plan(
        spec=spec,
        rate=rate,
        optimizer=optimizer,
        like=like,
        windows_reason=reason,
    )


def is_sgd(optimizer: Optimizer | None) -> bool:
    """Whether the updates of an optimizer are known sums of gradients."""
    return optimizer in {"sgd", "momentum"}


def guess_layout(n_params: int, n_tensors: int | None = None) -> Layout:
    """Return a plausible layout of a network with `n_params` parameters."""
    # Half of the tensors are matrices of equal size; the others are vectors as long as a
    # side of a matrix. By default, the number of tensors grows with the cube root of the
    # number of parameters, scaled to ResNet-18 (62 tensors, 11.2 million parameters).
    if n_params < 1:
        raise ValueError(f"`n_params` must be at least 1, got {n_params}.")
    if n_tensors is None:
        n_tensors = min(n_params, max(2, round(62 * (n_params / 11.2e6) ** (1 / 3))))
    if not 1 <= n_tensors <= n_params:
        raise ValueError(
            f"`n_tensors` must lie between 1 and the number of parameters, {n_params}; "
            f"got {n_tensors}."
        )
    n_vectors = n_tensors // 2
    n_matrices = n_tensors - n_vectors
    length = isqrt(n_params // n_tensors)
    n_in_matrices = n_params - n_vectors * length
    sizes = [
        n_in_matrices * (i + 1) // n_matrices - n_in_matrices * i // n_matrices
        for i in range(n_matrices)
    ]
    sizes += [length] * n_vectors
    return Layout(
        tuple(f"tensor {i}" for i in range(n_tensors)), tuple((n,) for n in sizes)
    )


def window_starts(windows: Windows, n_steps: int) -> Iterator[int]:
    """Yield the first steps of all windows of a run that never calls `start_epoch`."""
    start = 0
    while start < n_steps:
        yield start
        start = windows.next_start(start + 1, 0)


def _bytes_of_row(array: ArraySpec) -> int:
    return ITEM_SIZE[array.dtype] * prod(array.inner)


def _bytes_on_disk(name: str, array: ArraySpec) -> float:
    return COMPRESSION.get(name, 1.0) * _bytes_of_row(array)
