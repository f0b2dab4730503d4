"""Backend that runs compiled loops, for parameters in the memory of a CPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch import levels
from trajstore.sketch.signs import Role
from trajstore.sketch.sketch import Sketch, probes_of, sketch_of
from trajstore.tracking.backends import cpu_kernels as kernels
from trajstore.tracking.backends.columns import measured_columns
from trajstore.tracking.backends.memory import huge_zeros, row_major
from trajstore.tracking.backends.threads import preserve_torch_threads
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

BLOCKS_PER_THREAD: Final = 128
"""Least number of blocks per thread; for fewer blocks, starting a thread costs too much."""

WORD: Final = 64
"""Number of bits in a word of random signs."""

STEP_SIGNS: Final = int(Role.STEP)
"""`Role.STEP` as an int, because Numba needs 25 microseconds to convert an enumeration member."""

NUMBA_LOCK: Final = Lock()
"""Held while kernels run in Numba's threads; not all threading layers allow two callers."""

CPU: Final = torch.device("cpu")


class _Columns(NamedTuple):
    """Columns of `tables`, in the form that the kernels expect."""

    before: int  # first column that is measured before the step
    n_before: int
    # Columns of `kernels.PRODUCTS` and of `kernels.BASIS_PRODUCTS`, relative to `before`.
    products: Integers  # (product,)
    basis: Integers  # (2, basis)
    after: int  # first column that is measured after the step
    n_after: int
    updates: Integers  # (product,): columns of `kernels.UPDATES`, relative to `after`
    grad_sq: int  # column of |g|^2 in a table


@dataclass(frozen=True)
class _Folding:
    """Signs and buffers of the sketch and the probes; the arrays are empty in exact mode."""

    sketch: Sketch | None
    width: int  # width of the fold; 0 in exact mode
    places: Integers  # (block,): places of the blocks in the vector that is folded
    filled: int  # number of buckets that may differ from 0
    probe_columns: Floats  # sequence of the column signs of the probes
    probe_rows: Floats  # row signs of the probes
    second_fold: tuple[Floats, int, int, int]  # arguments of `kernels.probe`
    step_signs: Floats  # signs drawn in every step
    row_signs: Floats  # the part of `step_signs` for the rows of the fold
    folds: Floats  # (part, 3, bucket): folds of gradient, displacement and weighted gradient
    blocks: tuple[int, int]  # lengths of the blocks of the two Hadamard transforms


class CPUBackend:
    """Measures steps with the loops of `trajstore.tracking.backends.cpu_kernels`."""

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        placement: Placement,
        spec: RunSpec,
        past: PastAnchors,
        device: torch.device,
    ) -> None:
        layout = placement.layout
        self._parameters, self._layout = list(parameters), layout
        self._spec, self._past = spec, past
        self._columns = _columns(spec)
        # Rows: the last gradient, the displacement and the anchor.
        rows = huge_zeros(3, placement.size, device=device)
        self._rows, self.frame = rows.numpy(), rows[1:]
        self._layout_arrays = layout.offsets, layout.sizes, layout.layer_of_block
        blocks = len(layout.layer_of_block)
        n_parts = max(1, min(torch.get_num_threads(), blocks // BLOCKS_PER_THREAD))
        self._bounds = np.linspace(0, blocks, n_parts + 1).astype(np.int64)
        if n_parts > 1:
            _start_threads()
        self._folding = (
            _no_folding(n_parts) if spec.exact else _folding(layout, spec, n_parts)
        )
        self._sketch_columns = self._folding.probe_columns
        self._weights = np.ones(len(layout.names), np.float32)
        self.block_energies = torch.zeros(blocks)
        self.window_folds = huge_zeros(
            n_parts, spec.window_folds, spec.sketch_numbers, device=CPU
        )
        self._window_signs = np.zeros(0, np.float32)
        self._checks = np.zeros((0, 0), np.int64)
        self._measure_before = _on_threads(
            n_parts, kernels.measure_before, kernels.measure_before_in_parts
        )
        self._measure_update = _on_threads(
            n_parts, kernels.measure_after, kernels.measure_after_in_parts
        )

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""
        self._parameters = list(parameters)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""
        if self._folding.sketch is not None:
            fold = replace(self._folding.sketch.fold, window=window)
            self._sketch_columns = fold.column_sequence
        self._weights = weights.numpy().copy()

    def start_sum(self, row_signs: Tensor) -> None:
        """Clear `window_folds`, and use these row signs for it, float32 (row,)."""
        self.window_folds.zero_()
        self._window_signs = row_signs.numpy()

    def measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs."""
        folding, columns = self._folding, self._columns
        gradients, _gradients = self._addresses(vectors)
        parameters, _parameters = self._addresses(self._parameters)
        if folding.sketch is not None:
            kernels.draw_signs(self._spec.seed, STEP_SIGNS, number, folding.step_signs)
        sums = np.zeros((len(folding.folds), len(parameters), columns.n_before))
        arguments = (
            gradients,
            parameters,
            *self._layout_arrays,
            self._rows,
            self._past.addresses,
            sums,
            columns.products,
            columns.basis,
            folding.width,
            folding.places,
            self._sketch_columns,
            folding.probe_columns,
            folding.probe_rows,
            folding.row_signs,
            self._weights,
            folding.folds,
            self._window_signs,
            self.window_folds.numpy(),
            self.block_energies.numpy(),
        )
        self._measure_before(self._bounds, *arguments)
        kernels.add_up(sums, columns.before, row["tables"].numpy())
        if folding.sketch is None:
            names = ("gradient", "displacement")
            for name, vector in zip(names, self._rows, strict=False):
                row[name].numpy()[:] = vector
            return
        probes = row["probes"].numpy()
        kernels.probe(folding.folds, folding.filled, *folding.second_fold, probes)
        numbers = folding.folds[0, -1]
        kernels.rotate(
            folding.folds,
            folding.filled,
            folding.step_signs[: len(numbers)],
            *folding.blocks,
        )
        code, scales = row["signs"].numpy(), row["scales"].numpy()
        if self._spec.bits_per_number == 1:
            kernels.code_signs(numbers, code, scales)
        else:
            kernels.code_levels(numbers, *_levels(self._spec), code, scales)

    def after_step(self, row: Mapping[str, Tensor], gradient_energy: Tensor) -> None:
        """Measure the update, and add |g|^2 of the row to `gradient_energy`, float64 (layer,)."""
        sums, self._checks = self._measure_after()
        tables, columns = row["tables"].numpy(), self._columns
        kernels.add_up(sums, columns.after, tables)
        kernels.add_column(tables, columns.grad_sq, gradient_energy.numpy())

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        try:
            _, checks = self._measure_after()
        except ValueError:
            # The shapes have changed.
            return False
        return bool(np.array_equal(checks, self._checks))

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore all results but rows on exit."""
        kept = self._rows[:2].copy()
        sums = self.block_energies, self.window_folds
        kept_sums = [total.clone() for total in sums]
        yield
        self._rows[:2] = kept
        for total, before in zip(sums, kept_sums, strict=True):
            total.copy_(before)

    @property
    def last_gradient(self) -> Tensor:
        """The last measured gradient, a writable float32 view (size,)."""
        return torch.from_numpy(self._rows[0])

    def read_displacement(self) -> None:
        """Set the displacement to the parameters minus the anchor."""
        parameters, _copies = self._addresses(self._parameters)
        kernels.subtract_anchor(parameters, *self._layout_arrays, self._rows)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 (probe,)."""
        folding, vector = self._folding, self._rows[1]
        if self._spec.is_packed:
            vector = vector[self._layout.packed_elements]
        folds = np.zeros((1, 1, folding.folds.shape[2]), np.float32)
        kernels.fold(
            vector,
            folding.width,
            folding.probe_columns,
            folding.probe_rows,
            folds[0, 0],
        )
        out = np.zeros((1, self._spec.probes), np.float32)
        kernels.probe(folds, folding.width, *folding.second_fold, out)
        return torch.from_numpy(out[0])

    def _measure_after(self) -> tuple[npt.NDArray[np.float64], Integers]:
        """Return products of the update, (part, layer, 2), and checksums, (part, layer)."""
        parameters, _copies = self._addresses(self._parameters)
        n_parts = len(self._folding.folds)
        sums = np.zeros((n_parts, len(parameters), self._columns.n_after))
        checks = np.zeros(sums.shape[:2], np.int64)
        arguments = (
            parameters,
            *self._layout_arrays,
            self._rows,
            sums,
            self._columns.updates,
            checks,
        )
        self._measure_update(self._bounds, *arguments)
        return sums, checks

    def _addresses(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[Integers, list[Tensor]]:
        """Return the addresses of tensors, 0 for None, and the copies that were necessary."""
        # The addresses are valid as long as the caller keeps the tensors and the copies.
        addresses, copies, devices = [], [], set()
        float32, strided = torch.float32, torch.strided
        for tensor, shape in zip(tensors, self._layout.shapes, strict=True):
            if tensor is None:
                addresses.append(0)
            elif (
                tensor.shape == shape
                and tensor.layout is strided
                and tensor.dtype is float32
                and tensor.is_cpu
                and tensor.is_contiguous()
                and not tensor.is_neg()
                and (address := tensor.data_ptr()) != 0
            ):
                addresses.append(address)
            else:
                name = self._layout.names[len(addresses)]
                copies.append(row_major(tensor, name, shape, _as_float32))
                addresses.append(copies[-1].data_ptr())
                if tensor.is_cuda:
                    devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return np.array(addresses, np.int64), copies


def _columns(spec: RunSpec) -> _Columns:
    before, after, grad_sq = measured_columns(spec)
    basis_starts = [before.starts[name] for name in kernels.BASIS_PRODUCTS]
    return _Columns(
        before=before.table_slice.start,
        n_before=before.n_columns,
        products=np.array([before.starts[name] for name in kernels.PRODUCTS]),
        basis=np.add.outer(basis_starts, np.arange(spec.basis)),
        after=after.table_slice.start,
        n_after=after.n_columns,
        updates=np.array([after.starts[name] for name in kernels.UPDATES]),
        grad_sq=grad_sq,
    )


def _no_folding(n_parts: int) -> _Folding:
    empty = np.zeros(0, np.float32)
    return _Folding(
        sketch=None,
        width=0,
        places=np.zeros(0, np.int64),
        filled=0,
        probe_columns=empty,
        probe_rows=empty,
        second_fold=(empty, 1, 1, 0),
        step_signs=empty,
        row_signs=empty,
        folds=np.zeros((n_parts, 3, 0), np.float32),
        blocks=(1, 1),
    )


def _folding(layout: Layout, spec: RunSpec, n_parts: int) -> _Folding:
    sketch, probes = sketch_of(spec, layout), probes_of(spec, layout)
    fold, numbers, n_signs = sketch.fold, sketch.numbers, sum(sketch.sign_counts)
    offsets = layout.packed_offsets if spec.is_packed else layout.offsets
    block = numbers // sketch.n_blocks
    signs = huge_zeros(-(-n_signs // WORD) * WORD, device=CPU).numpy()
    return _Folding(
        sketch=sketch,
        width=fold.width,
        places=_places(layout, offsets),
        filled=min(fold.width, sketch.size),
        probe_columns=fold.column_sequence,
        probe_rows=probes.row_signs,
        second_fold=(
            probes.bucket_signs.copy(),
            probes.bucket_fold.width,
            probes.block,
            probes.shift,
        ),
        step_signs=signs,
        row_signs=signs[numbers:n_signs],
        folds=huge_zeros(n_parts, 3, fold.buckets, device=CPU).numpy(),
        blocks=(numbers if sketch.is_mixed else block, block),
    )


def _places(layout: Layout, offsets: Integers) -> Integers:
    """Return the place of each block's first element, for these places of tensors, (block,)."""
    layers = layout.layer_of_block
    starts = BLOCK * np.arange(len(layers)) - layout.offsets[layers]
    places: Integers = offsets[layers] + starts
    return places


def _levels(spec: RunSpec) -> tuple[int, Floats, Floats, npt.NDArray[np.int32]]:
    """Return the number of bits per number, and the levels, borders and guide of the codes."""
    bits = spec.bits_per_number
    return bits, levels.levels(bits), levels.borders(bits), levels.guide(bits)


def _on_threads(n_threads: int, for_part: Any, for_parts: Any) -> Callable[..., None]:
    """Return a function that runs `for_part` on the only part, or `for_parts` in threads."""
    if n_threads == 1:
        return partial(for_part, 0)

    def run(bounds: Integers, *arguments: Any) -> None:
        with NUMBA_LOCK:
            n_before = numba.get_num_threads()
            numba.set_num_threads(min(n_threads, n_before))
            try:
                for_parts(bounds, arguments)
            finally:
                numba.set_num_threads(n_before)

    return run


def _as_float32(tensor: Tensor) -> Tensor:
    """Return a float32 copy in the memory of the CPU; the copy may still be in progress."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().resolve_neg()
    if not tensor.is_cuda:
        return tensor.to("cpu", torch.float32).contiguous()
    # The caller waits once for the copies of all tensors.
    pinned = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _start_threads() -> None:
    """Compile functions for Numba's threads, and start these, before the first step."""
    kernels.compile_for_threads()
    empty = np.zeros(0, np.int64)
    with preserve_torch_threads():
        kernels.measure_after_in_parts(
            np.zeros(3, np.int64),
            (
                *(empty, empty, empty, empty),
                np.zeros((3, 0), np.float32),
                np.zeros((2, 0, 2)),
                np.zeros(2, np.int64),
                np.zeros((2, 0), np.int64),
            ),
        )
