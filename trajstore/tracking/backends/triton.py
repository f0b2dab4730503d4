"""What one step of training is measured by on a CUDA device, read in one pass.

torch alone passes over vectors of the length d of the parameters more than a dozen times,
some 160 bytes per element and step, `trajstore.tracking.backends.eager`. Here every element is read once
before the step and once after it. With float32 parameters and a basis of r vectors, in bytes
per element:

=====================================================  ============  =====
what                                                   bytes         r = 3
=====================================================  ============  =====
before: gradient, parameter, gradient before           12
before: reference, and codes of past ones              4 + 2^(r - 2)
before: new gradient before, displacement, written     8
after: parameter, reference, displacement              12
together                                               36 + 2^(r - 2)  38
sums of products, written and read                     (4 + 2r) / 32  0.3
tables of segments and blocks                          0.1           0.1
=====================================================  ============  =====

less 6 where gradients and parameters are of two bytes. Column signs are parts of one
sequence of p + 2 B bytes, p the width of the fold and B = d / p its rows, which stays in the
cache; random signs of a step are drawn on the device.

**Who adds what.** A program owns `SEGMENT` neighbouring columns of the fold, and walks down
the rows: its three folds stay in registers, and no two programs add to the same place. With
one warp to a program a sum needs no barrier. So that a device is filled where columns are
few, the rows are divided among as many programs as run at once, and their folds, 12 bytes a
bucket and division, are added up in a fixed order. The width is prime, so that a segment may
reach into two tensors, never into three: products are summed within a segment, of two tensors
apart, and then in float64 tensor by tensor in a fixed order. There are no atomic operations:
on one kind of device the same step gives the same bits.

**What the host does.** The number of operations it starts does not grow with the number of
tensors. It looks at their addresses in every step, and uploads them, from pinned memory,
where one has changed. Only tensors that are not row-major, of another type or not dense cost
a copy each.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import table_columns
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.fold import SHIFT
from trajstore.sketch.probes import Probes
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch import onebit as onebit_torch
from trajstore.sketch_torch.probes import ProbesOnDevice
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking.backends import triton_kernels
from trajstore.tracking.backends.triton_tables import (
    FOUR_WARPS,
    ONE_WARP,
    SEGMENT,
    AddressTable,
    SumsByLayer,
    segments_of,
)
from trajstore.tracking.past_anchors import PastReferences
from trajstore.tracking.precision import quiet

PROGRAMS_PER_PROCESSOR: Final = 10
"""Programs that run at once on a multiprocessor, which has 65,536 registers: compiled for
compute capability 9.0 and a basis of 3 a thread needs up to 168, for 8.0 up to 146."""

EXACT_WIDTH: Final = 1 << 16
"""Width of rows where nothing is folded."""


class StepsOnTriton:
    """Measures steps on a CUDA device; the twin of `trajstore.tracking.backends.cpu.StepsOnCPU`.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        The tensors that are followed.
    layout : Layout
        Their places in the flat vector.
    spec : RunSpec
        What is measured.
    rows : torch.Tensor
        float32, (`N_GRADIENTS` + 2, size): room for gradients; for the displacement; and
        the reference. Zero in the gaps.
    past : PastReferences
        The vectors of the basis that follow the reference.
    """

    N_GRADIENTS: ClassVar = 1

    def __init__(
        self,
        parameters: Sequence[Tensor],
        layout: Layout,
        spec: RunSpec,
        rows: Tensor,
        past: PastReferences,
    ) -> None:
        device = rows.device
        self._parameters = list(parameters)
        self._past = past
        self._spec, self._rows = spec, rows
        self._device = device
        n_layers = len(layout.names)
        self._ends = upload(layout.offsets + layout.sizes, device)
        self._weights = torch.ones(n_layers, device=device)
        self._gradient_table = AddressTable(layout, device)
        self._parameter_table = AddressTable(layout, device)
        blocks = layout.layer_of_block
        self._layer_of_block = upload(blocks.astype(np.int32), device)
        self._after_sums = SumsByLayer(blocks, n_layers, 2, device)
        self._checks = torch.zeros((2, len(blocks)), dtype=torch.int64, device=device)
        self._sketch: Sketch | None = None
        self._width = min(EXACT_WIDTH, layout.size)
        if not spec.exact:
            self._sketch = Sketch(
                size=layout.size, bits=spec.sketch_bits, seed=spec.seed
            )
            self._width = self._sketch.fold.width
        self._n_rows = -(-layout.size // self._width)
        segments, layer_of_sum = segments_of(layout, self._width)
        self._segments = upload(segments, device)
        self._before_sums = SumsByLayer(
            layer_of_sum, n_layers, 4 + 2 * spec.basis, device
        )
        n_tiles = -(-self._width // SEGMENT)
        n_parts = max(1, min(self._n_rows, _programs_at_once(device) // n_tiles))
        self._rows_each = -(-self._n_rows // n_parts)
        self._grid = n_tiles, -(-self._n_rows // self._rows_each)
        self._past_addresses = upload(past.addresses, device)
        self._prepare_folds()

    def _prepare_folds(self) -> None:
        device, sketch = self._device, self._sketch
        self._folds = self._step_signs = self._row_signs = self._ends
        self._columns = self._probe_columns = self._probe_rows = self._ends
        if sketch is None:
            return
        probes = Probes(fold=sketch.fold, count=self._spec.probes)
        self._probes = ProbesOnDevice(probes, 2, device)
        self._probe_rows = self._probes.row_signs
        sequence = sketch.fold.column_sequence.astype(np.int8)
        self._columns = self._probe_columns = upload(sequence, device)
        n_tiles, n_parts = self._grid
        self._folds = torch.zeros((n_parts, 3, n_tiles * SEGMENT), device=device)
        self._buckets = torch.zeros(sketch.bits, device=device)
        self._step_signs = torch.empty(sum(sketch.sign_counts), device=device)
        self._rotation_signs, self._row_signs = self._step_signs.split(
            sketch.sign_counts
        )
        self._rotation = Rotation(sketch.bits, device)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Take the weights of the sketch in a window, float32 of shape (layer,)."""
        if self._sketch is not None:
            fold = replace(self._sketch.fold, window=window)
            self._columns = upload(fold.column_sequence.astype(np.int8), self._device)
        self._weights.copy_(weights)
        self._past_addresses = upload(self._past.addresses, self._device)

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
    ) -> None:
        """See `trajstore.tracking.backends.cpu.StepsOnCPU.measure`."""
        with quiet(self._device), _on(self._device):
            if self._sketch is not None:
                draw_signs(self._step_signs, self._spec.seed, number)
            gradients = self._gradient_table.update(vectors)
            parameters = self._parameter_table.update(self._parameters)
            triton_kernels.measure_before[self._grid](
                self._gradient_table.table,
                self._parameter_table.table,
                len(self._parameters),
                self._ends,
                self._segments,
                self._rows,
                self._rows.shape[1],
                self._past_addresses,
                self._past_addresses.shape[1],
                self._before_sums.values,
                self._weights,
                self._columns,
                self._probe_columns,
                self._row_signs,
                self._probe_rows,
                self._folds,
                self._n_rows,
                self._rows_each,
                self._width,
                N_BASIS=self._spec.basis,
                HAS_GRADIENTS=gradients,
                HAS_PARAMETERS=parameters,
                WITH_FOLDS=self._sketch is not None,
                SHIFT=SHIFT,
                BLOCK=BLOCK,
                SEGMENT=SEGMENT,
                **ONE_WARP,
            )
            self._before_sums.write(row["tables"])
            if self._sketch is None:
                row["gradient"].copy_(self._rows[0])
                row["displacement"].copy_(self._rows[1])
            else:
                self._write_sketch(row)

    def add_gradient_energy(self, row: Mapping[str, Tensor], total: Tensor) -> None:
        """See `trajstore.tracking.backends.cpu.StepsOnCPU.add_gradient_energy`."""
        total += row["tables"][:, table_columns(self._spec)["grad_sq"].start]

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """See `trajstore.tracking.tracker.Tracker.after_step`."""
        with quiet(self._device), _on(self._device):
            self._measure_after(self._checks[0])
            self._after_sums.write(row["tables"][:, -2:])

    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        try:
            with quiet(self._device), _on(self._device):
                self._measure_after(self._checks[1])
        except ValueError:
            # They have not even their shapes any more.
            return False
        return torch.equal(self._checks[0], self._checks[1])

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leave the last gradient and the displacement as they were."""
        kept = self._rows[: 1 + self.N_GRADIENTS].clone()
        yield
        self._rows[: 1 + self.N_GRADIENTS] = kept

    @property
    def last_gradient(self) -> Tensor:
        """The gradient of the last step, a view of shape (size,)."""
        return self._rows[0]

    def read_displacement(self) -> None:
        """Fill the row of the displacement with the parameters less the reference."""
        with torch.no_grad(), _on(self._device):
            parameters = self._parameter_table.update(self._parameters)
            triton_kernels.subtract_reference[(len(self._layer_of_block),)](
                self._parameter_table.table,
                len(self._parameters),
                self._ends,
                self._layer_of_block,
                self._rows,
                self._rows.shape[1],
                HAS_PARAMETERS=parameters,
                BLOCK=BLOCK,
                **FOUR_WARPS,
            )

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 of shape (probe,)."""
        n_tiles, n_parts = self._grid
        folds = torch.empty((n_parts, n_tiles * SEGMENT), device=self._device)
        with torch.no_grad(), _on(self._device):
            triton_kernels.fold[self._grid](
                self._rows[1],
                self._rows.shape[1],
                self._probe_columns,
                self._probe_rows,
                folds,
                self._n_rows,
                self._rows_each,
                self._width,
                SHIFT=SHIFT,
                SEGMENT=SEGMENT,
                **ONE_WARP,
            )
            width = self._width
            torch.sum(folds[:, :width], 0, out=self._probes.folds[1, :width])
            both = torch.zeros(2, self._spec.probes, device=self._device)
            self._probes.write(both)
        return both[1]

    def _measure_after(self, checks: Tensor) -> None:
        parameters = self._parameter_table.update(self._parameters)
        triton_kernels.measure_after[(len(self._layer_of_block),)](
            self._parameter_table.table,
            len(self._parameters),
            self._ends,
            self._layer_of_block,
            self._rows,
            self._rows.shape[1],
            self._after_sums.values,
            checks,
            HAS_PARAMETERS=parameters,
            BLOCK=BLOCK,
            **FOUR_WARPS,
        )

    def _write_sketch(self, row: Mapping[str, Tensor]) -> None:
        width = self._width
        torch.sum(self._folds[:, :2, :width], 0, out=self._probes.folds[:, :width])
        self._probes.write(row["probes"])
        self._buckets[width:] = 0
        torch.sum(self._folds[:, 2, :width], 0, out=self._buckets[:width])
        self._rotation(self._buckets, self._rotation_signs)
        onebit_torch.encode(self._buckets, signs=row["signs"], scales=row["scales"])


def try_out(device: torch.device) -> None:
    """Compile and run the smallest of the kernels.

    Parameters
    ----------
    device : torch.device
        Where.

    Raises
    ------
    RuntimeError
        If it computes something else than `trajstore.sketch.signs.random_signs`. If it cannot be
        compiled or run, an error of the compiler or the driver, of any type.
    """
    n, seed, step = 2 * BLOCK, (1 << 63) + 1, 1 << 40
    signs = torch.empty(n, device=device)
    with _on(device):
        draw_signs(signs, seed, step)
    expected = random_signs(n, seed=seed, role=Role.STEP, step=step)
    if not np.array_equal(signs.cpu().numpy(), expected):
        raise RuntimeError("random signs are not those of the reference")


def draw_signs(out: Tensor, seed: int, step: int) -> None:
    """Draw the `trajstore.sketch.signs.random_signs` of a step, float32 of shape (sign,)."""
    triton_kernels.draw_signs[(-(-len(out) // BLOCK),)](
        out, len(out), seed, step, ROLE=int(Role.STEP), BLOCK=BLOCK, **FOUR_WARPS
    )


def _programs_at_once(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS_PER_PROCESSOR * int(properties.multi_processor_count)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Start kernels on a device, whichever is current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
