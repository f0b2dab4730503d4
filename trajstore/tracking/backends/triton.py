"""Backend that runs compiled loops on CUDA devices, and reads every element only once.

Plain torch operations (`trajstore.tracking.backends.eager`) read or write vectors as long as the
parameters more than a dozen times, which moves about 160 bytes per element and step. This
backend reads every element once before the step and once after it. The traffic for float32
parameters and a basis of r vectors, in bytes per element:

=====================================================  ============  =====
traffic                                                bytes         r = 3
=====================================================  ============  =====
before: gradient, parameter, last gradient             12
before: anchor, and codes of past anchors              4 + 2^(r - 2)
before: gradient and displacement, written             8
after: parameter, anchor, displacement                 12
total                                                  36 + 2^(r - 2)  38
sums of products, written and read                     (4 + 2r) / 32  0.3
tables of segments and blocks                          0.1           0.1
=====================================================  ============  =====

The total is 6 bytes less if gradients and parameters have two bytes per element. The column signs
are parts of one sequence of p + 2 B bytes, where p is the width of the fold and B = d / p is its
number of rows for d parameters; the sequence stays in the cache. The random signs of a step are
drawn on the device.

**Division of the work.** A program owns `SEGMENT` neighbouring columns of the fold, and processes
them row by row: its three folds stay in registers, and no two programs add to the same place. A
program has only one warp, so a sum needs no barrier. If there are too few columns to fill the
device, the rows are divided into parts, for as many programs as can run simultaneously. The folds
of these parts, 12 bytes per bucket and part, are then added in a fixed order. The width is
prime, so a segment can contain elements of two tensors. It never contains elements of three,
because it is shorter than a block, and every tensor begins at the start of a block. Products
are summed within a segment, separately for the two tensors, and then in float64 layer by layer in
a fixed order. There are no atomic operations: on one kind of device, the same step gives the same
bits.

**Work of the host.** The number of operations that the host starts does not grow with the number
of tensors. In every step the host reads the addresses of the tensors, and uploads them from pinned
memory if an address has changed. Tensors that are not dense, not row-major, or of a type that
the kernels cannot read are copied.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.fold import SHIFT
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch.sketch import sketch_of
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking.backends import triton_kernels
from trajstore.tracking.backends.columns import MeasuredColumns, measured_columns
from trajstore.tracking.backends.memory import huge_zeros
from trajstore.tracking.backends.protocol import LastStep
from trajstore.tracking.backends.triton_folding import Folding
from trajstore.tracking.backends.triton_tables import (
    FOUR_WARPS,
    ONE_WARP,
    SEGMENT,
    AddressTable,
    SumsByBlock,
    SumsByLayer,
    column_constants,
    segments_of,
)
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement
from trajstore.tracking.precision import no_grad_float32

PROGRAMS_PER_PROCESSOR: Final = 10
"""Programs that run simultaneously on a multiprocessor, which has 65,536 registers. With a basis of
3, a thread needs up to 168 registers on compute capability 9.0, and up to 146 on 8.0."""

EXACT_WIDTH: Final = 1 << 16
"""Width of rows in exact mode, which folds nothing."""


class _Grid(NamedTuple):
    """Division of the rows and columns of the fold among programs."""

    width: int  # length of a row
    n_rows: int
    rows_each: int  # maximum number of rows per program
    programs: tuple[int, int]  # numbers of tiles (of columns) and parts (of rows)


class _Tables(NamedTuple):
    """Tables that kernels need; see `trajstore.tracking.backends.triton_tables`."""

    gradients: AddressTable
    parameters: AddressTable
    ends: Tensor  # int64 (layer,): index after the last element of each tensor
    layer_of_block: Tensor  # int32 (block,)
    segments: Tensor  # int32 (segment, 4): see `measure_before` in `triton_kernels`
    before: SumsByLayer  # one row per segment and tensor
    after: SumsByLayer  # one row per block


class TritonBackend:
    """Measures steps with the kernels of `trajstore.tracking.backends.triton_kernels`."""

    joins_updates = False
    """Whether `measure` can also measure the last update."""

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        placement: Placement,
        spec: RunSpec,
        past: PastAnchors,
        device: torch.device,
    ) -> None:
        layout = placement.layout
        self._parameters, self._spec, self._past = list(parameters), spec, past
        self._columns = measured_columns(spec)
        # Rows: the last gradient, the displacement and the anchor.
        self._rows = huge_zeros(3, placement.size, device=device)
        self.anchor, self.pieces = self._rows[2], (slice(0, placement.size),)
        self._grid = _grid(layout, spec, device)
        self._tables = _tables(layout, self._grid.width, self._columns, device)
        n_blocks = len(layout.layer_of_block)
        self._checks = torch.zeros((2, n_blocks), dtype=torch.int64, device=device)
        self._folding: Folding | None = None
        # Kernels need some tensor as an argument for signs and folds, even if they do not read it.
        self._sketch_columns = self._tables.ends
        if not spec.exact:
            self._folding = Folding(layout, spec, self._grid.programs, device)
            self._sketch_columns = self._folding.probe_columns
        self._weights = torch.ones(
            len(layout.names), device=device, dtype=torch.float32
        )
        n_tiles, n_parts = self._grid.programs
        self._energies = SumsByBlock(layout, self._grid.width, n_tiles, device)
        # The last buckets of a tile lie outside of the fold, and stay 0.
        self._window_folds = torch.zeros(
            (n_parts, spec.window_folds, n_tiles * SEGMENT),
            device=device,
            dtype=torch.float32,
        )
        self._window_signs = self._weights
        n = spec.sketch_numbers if spec.displacement_sum else 0
        self.displacement_fold = torch.zeros((1, n), device=device, dtype=torch.float32)
        self._past_addresses = upload(past.addresses, device)

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""
        self._parameters = list(parameters)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""
        if self._folding is not None:
            fold = replace(self._folding.sketch.fold, window=window)
            self._sketch_columns = self._folding.columns(fold)
        self._weights.copy_(weights)
        self._past_addresses = upload(self._past.addresses, self._rows.device)

    @property
    def block_energies(self) -> Tensor:
        """Sums of |g|^2 in each block, float32 (block,)."""
        return self._energies.totals

    @property
    def window_folds(self) -> Tensor:
        """Folds of the sum of the window's gradients, float32 (part, fold, bucket)."""
        return self._window_folds[..., : self._spec.sketch_numbers]

    def start_sums(self, row_signs: Tensor | None) -> None:
        """Clear `block_energies` and both sums of folds; use these row signs, float32 (row,)."""
        for total in self._totals:
            total.zero_()
        if row_signs is not None:
            self._window_signs = row_signs

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
        last: LastStep | None = None,
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs."""
        assert last is None
        with no_grad_float32(self._rows.device), _on(self._rows.device):
            if self._folding is not None:
                draw_signs(self._folding.step_signs, self._spec.seed, number)
            self._measure_before(vectors)
            self._energies.add_up()
            self._tables.before.write(
                row["tables"][:, self._columns.before.table_slice]
            )
            if self._folding is None:
                row["gradient"].copy_(self._rows[0])
                row["displacement"].copy_(self._rows[1])
            else:
                self._folding.write(row, self.displacement_fold)

    def _measure_before(self, vectors: Sequence[Tensor | None]) -> None:
        tables, grid, folding = self._tables, self._grid, self._folding
        probe_columns = row_signs = probe_rows = folds = tables.ends
        if folding is not None:
            probe_columns, row_signs = folding.probe_columns, folding.row_signs
            probe_rows, folds = folding.probes.row_signs, folding.folds
        gradients = tables.gradients.update(vectors)
        parameters = tables.parameters.update(self._parameters)
        triton_kernels.measure_before[grid.programs](
            tables.gradients.table,
            tables.parameters.table,
            len(self._parameters),
            tables.ends,
            tables.segments,
            self._rows,
            self._rows.shape[1],
            self._past_addresses,
            self._past_addresses.shape[1],
            tables.before.values,
            self._weights,
            self._sketch_columns,
            probe_columns,
            row_signs,
            probe_rows,
            folds,
            self._window_signs,
            self._window_folds,
            self._energies.parts,
            grid.n_rows,
            grid.rows_each,
            grid.width,
            N_WINDOW_FOLDS=self._spec.window_folds,
            N_BASIS=self._spec.basis,
            **column_constants(self._columns.before),
            HAS_GRADIENTS=gradients,
            HAS_PARAMETERS=parameters,
            WITH_FOLDS=folding is not None,
            SHIFT=SHIFT,
            BLOCK=BLOCK,
            SEGMENT=SEGMENT,
            **ONE_WARP,
        )

    def finish(self, *, waits: bool = True) -> None:
        """Do nothing, because rows are complete when they are measured."""

    def after_step(self, last: LastStep) -> None:
        """Measure the update of a step, which leads to the parameters."""
        row, gradient_energy = last
        gradient_energy += row["tables"][:, self._columns.grad_sq].float()
        with no_grad_float32(self._rows.device), _on(self._rows.device):
            self._measure_after(self._checks[0])
            self._tables.after.write(row["tables"][:, self._columns.after.table_slice])

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        try:
            with no_grad_float32(self._rows.device), _on(self._rows.device):
                self._measure_after(self._checks[1])
        except ValueError:
            # The shapes have changed.
            return False
        return torch.equal(self._checks[0], self._checks[1])

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore all results but rows on exit."""
        totals = self._rows[:2], *self._totals
        kept = [total.clone() for total in totals]
        yield
        for total, before in zip(totals, kept, strict=True):
            total.copy_(before)

    @property
    def _totals(self) -> tuple[Tensor, ...]:
        """Sums over the steps of the window."""
        return self._energies.totals, self._window_folds, self.displacement_fold

    def held(self, which: int) -> Tensor:
        """Return the last measured gradient or displacement, float32 (size,)."""
        return self._rows[which]

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last measured gradient or displacement."""
        self._rows[which].copy_(vector)

    def read_displacement(self, piece: slice) -> Tensor:
        """Return the parameters minus the anchor, and the anchor, float32 (2, element)."""
        tables = self._tables
        with torch.no_grad(), _on(self._rows.device):
            parameters = tables.parameters.update(self._parameters)
            triton_kernels.subtract_anchor[(len(tables.layer_of_block),)](
                tables.parameters.table,
                len(self._parameters),
                tables.ends,
                tables.layer_of_block,
                self._rows,
                self._rows.shape[1],
                HAS_PARAMETERS=parameters,
                BLOCK=BLOCK,
                **FOUR_WARPS,
            )
        return self._rows[1:, piece]

    def fold_displacement(self) -> Tensor:
        """Return the fold of the displacement, float32 (bucket,)."""
        folding, grid = self._folding, self._grid
        assert folding is not None
        n_tiles, n_parts = grid.programs
        folds = torch.empty(
            (n_parts, n_tiles * SEGMENT), device=self._rows.device, dtype=torch.float32
        )
        with torch.no_grad(), _on(self._rows.device):
            triton_kernels.fold[grid.programs](
                self._rows[1],
                self._rows.shape[1],
                folding.probe_columns,
                folding.probes.row_signs,
                folds,
                grid.n_rows,
                grid.rows_each,
                grid.width,
                SHIFT=SHIFT,
                SEGMENT=SEGMENT,
                **ONE_WARP,
            )
            fold = torch.empty_like(folding.probes.folds[1])
            folding.add_up(folds, fold)
        return fold

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate and code a fold, float32 (bucket,)."""
        assert self._folding is not None
        with _on(self._rows.device):
            self._folding.encode(fold, rotation_signs, signs=signs, scales=scales)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 (probe,)."""
        folding, fold = self._folding, self.fold_displacement()
        assert folding is not None
        with torch.no_grad(), _on(self._rows.device):
            folding.probes.folds[1] += fold
            probes = torch.zeros(
                2, self._spec.probes, device=self._rows.device, dtype=torch.float32
            )
            folding.probes.write(probes)
        return probes[1]

    def _measure_after(self, checks: Tensor) -> None:
        tables = self._tables
        parameters = tables.parameters.update(self._parameters)
        triton_kernels.measure_after[(len(tables.layer_of_block),)](
            tables.parameters.table,
            len(self._parameters),
            tables.ends,
            tables.layer_of_block,
            self._rows,
            self._rows.shape[1],
            tables.after.values,
            checks,
            **column_constants(self._columns.after),
            HAS_PARAMETERS=parameters,
            BLOCK=BLOCK,
            **FOUR_WARPS,
        )


def _grid(layout: Layout, spec: RunSpec, device: torch.device) -> _Grid:
    width = min(EXACT_WIDTH, layout.size)
    if not spec.exact:
        width = layout.size if spec.is_packed else sketch_of(spec, layout).fold.width
    n_rows, n_tiles = -(-layout.size // width), -(-width // SEGMENT)
    n_parts = max(1, min(n_rows, _max_programs(device) // n_tiles))
    rows_each = -(-n_rows // n_parts)
    return _Grid(width, n_rows, rows_each, (n_tiles, -(-n_rows // rows_each)))


def _tables(
    layout: Layout, width: int, columns: MeasuredColumns, device: torch.device
) -> _Tables:
    n_layers, blocks = len(layout.names), layout.layer_of_block
    segments, layer_of_sum = segments_of(layout, width)
    return _Tables(
        gradients=AddressTable(layout, device),
        parameters=AddressTable(layout, device),
        ends=upload(layout.offsets + layout.sizes, device),
        layer_of_block=upload(blocks.astype(np.int32), device),
        segments=upload(segments, device),
        before=SumsByLayer(layer_of_sum, n_layers, columns.before.n_columns, device),
        after=SumsByLayer(blocks, n_layers, columns.after.n_columns, device),
    )


def try_out(device: torch.device) -> None:
    """Compile and run the smallest kernel; raise an error, of any type, if that fails."""
    n, seed, step = 2 * BLOCK, (1 << 63) + 1, 1 << 40
    signs = torch.empty(n, device=device, dtype=torch.float32)
    with _on(device):
        draw_signs(signs, seed, step)
    expected = random_signs(n, seed=seed, role=Role.STEP, step=step)
    if not np.array_equal(signs.cpu().numpy(), expected):
        raise RuntimeError("random signs are not the signs of trajstore.sketch.signs")


def draw_signs(out: Tensor, seed: int, step: int) -> None:
    """Write the random signs of a step, float32 (sign,); see `trajstore.sketch.signs`."""
    triton_kernels.draw_signs[(-(-len(out) // BLOCK),)](
        out, len(out), seed, step, ROLE=int(Role.STEP), BLOCK=BLOCK, **FOUR_WARPS
    )


def _max_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS_PER_PROCESSOR * int(properties.multi_processor_count)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which kernels start on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
