"""What one step of training is measured by, where parameters lie in a CPU's memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, ClassVar, Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.arrays import n_blocks, table_columns
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.probes import Probes
from trajstore.sketch.signs import Role
from trajstore.sketch.sketch import Sketch
from trajstore.tracking.backends import cpu_kernels as kernels
from trajstore.tracking.backends.huge_pages import huge_zeros
from trajstore.tracking.backends.row_major import row_major
from trajstore.tracking.backends.threads import number_left_to_torch
from trajstore.tracking.past_anchors import PastReferences

BLOCKS_PER_THREAD: Final = 128
"""With fewer blocks of the vector to work on, a thread is not worth its start."""

WORD: Final = 64
"""Bits in a word of random signs."""

STEP_SIGNS: Final = int(Role.STEP)
"""Numba takes 25 microseconds to find out that the member of an enumeration is a number."""

ONE_AT_A_TIME: Final = Lock()

NOTHING: Final = np.zeros(0, np.float32)

CPU: Final = torch.device("cpu")


class StepsOnCPU:
    """Measures steps by compiled loops; the twin of `trajstore.tracking.backends.eager.StepsOnDevice`.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        The tensors that are followed.
    layout : Layout
        Their places in the flat vector.
    spec : RunSpec
        What is measured.
    rows : torch.Tensor
        float32, (`N_GRADIENTS` + 2, at least size): room for gradients; for the
        displacement; and the reference.
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
        self._parameters = list(parameters)
        self._spec, self._size = spec, layout.size
        self._past = past
        self._grad_sq = table_columns(spec)["grad_sq"].start
        self._names, self._shapes = layout.names, layout.shapes
        self._rows = rows.numpy()
        self._places = layout.offsets, layout.sizes, layout.layer_of_block
        self._weights = np.ones(len(layout.names), np.float32)
        self._checks = np.zeros((0, 0), np.int64)
        n_blocks = len(layout.layer_of_block)
        n_parts = max(1, min(torch.get_num_threads(), n_blocks // BLOCKS_PER_THREAD))
        self._bounds = np.linspace(0, n_blocks, n_parts + 1).astype(np.int64)
        if n_parts > 1:
            _start_threads()
        self._sketch: Sketch | None = None
        self._signs = self._row_signs = NOTHING
        self._columns = self._probe_columns = self._probe_rows = NOTHING
        self._width = self._filled = 0
        self._folds = np.zeros((n_parts, 3, 0), np.float32)
        if not spec.exact:
            self._prepare_folds()

    def _prepare_folds(self) -> None:
        sketch = Sketch(
            size=self._size, bits=self._spec.sketch_bits, seed=self._spec.seed
        )
        fold, probes = (
            sketch.fold,
            Probes(fold=sketch.fold, count=self._spec.probes),
        )
        self._sketch, self._width = sketch, fold.width
        self._filled = min(fold.width, self._size)
        self._columns = self._probe_columns = fold.column_sequence
        self._probe_rows = probes.row_signs
        self._probe_signs = probes.bucket_fold.column_signs.copy()
        self._folds = _zeros(len(self._folds), 3, fold.buckets)
        n_signs = sum(sketch.sign_counts)
        self._signs = _zeros(-(-n_signs // WORD) * WORD)
        self._row_signs = self._signs[sketch.bits : n_signs]

    def start_window(self, window: int, weights: Tensor) -> None:
        """Take the weights of the sketch in a window, float32 of shape (layer,)."""
        if self._sketch is not None:
            fold = replace(self._sketch.fold, window=window)
            self._columns = fold.column_sequence
        self._weights = weights.numpy().copy()

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
    ) -> None:
        """Measure vectors in the place of the gradient; they become the last one.

        Parameters
        ----------
        vectors : sequence of torch.Tensor or None
            One for each parameter, in its shape; None reads as zeros.
        number : int
            Selects the random signs.
        row : mapping from str to torch.Tensor
            As `trajstore.tracking.tracker.Tracker.before_step` takes it.
        """
        gradients, _gradients = self._addresses(vectors)
        parameters, _parameters = self._addresses(self._parameters)
        if self._sketch is not None:
            kernels.draw_signs(self._spec.seed, STEP_SIGNS, number, self._signs)
        n_columns = 4 + 2 * self._spec.basis
        sums = np.zeros((len(self._folds), len(parameters), n_columns))
        self._run(
            kernels.measure_before,
            kernels.measure_before_in_parts,
            gradients,
            parameters,
            *self._places,
            self._rows,
            self._past.addresses,
            sums,
            self._width,
            self._columns,
            self._probe_columns,
            self._probe_rows,
            self._row_signs,
            self._weights,
            self._folds,
        )
        kernels.add_up(sums, 0, row["tables"].numpy())
        if self._sketch is None:
            for name, vector in zip(
                ("gradient", "displacement"), self._rows, strict=False
            ):
                row[name].numpy()[:] = vector[: self._size]
        else:
            self._write_sketch(self._sketch, row)

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """See `trajstore.tracking.tracker.Tracker.after_step`."""
        sums, self._checks = self._measure_after()
        kernels.add_up(sums, 4 + 2 * self._spec.basis, row["tables"].numpy())

    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        try:
            _, checks = self._measure_after()
        except ValueError:
            # They have not even their shapes any more.
            return False
        return bool(np.array_equal(checks, self._checks))

    def add_gradient_energy(self, row: Mapping[str, Tensor], total: Tensor) -> None:
        """Add |g|^2 by layer, as `measure` has filled it in, to a float64 tensor."""
        kernels.add_column(row["tables"].numpy(), self._grad_sq, total.numpy())

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leave the last gradient and the displacement as they were."""
        kept = self._rows[: 1 + self.N_GRADIENTS].copy()
        yield
        self._rows[: 1 + self.N_GRADIENTS] = kept

    @property
    def last_gradient(self) -> Tensor:
        """The gradient of the last step, a view of shape (size,)."""
        return torch.from_numpy(self._rows[0, : self._size])

    def read_displacement(self) -> None:
        """Fill the row of the displacement with the parameters less the reference."""
        parameters, _kept = self._addresses(self._parameters)
        kernels.subtract_reference(parameters, *self._places, self._rows)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 of shape (probe,)."""
        folds = np.zeros((1, 1, self._folds.shape[2]), np.float32)
        vector = self._rows[1, : self._size]
        kernels.fold(
            vector, self._width, self._probe_columns, self._probe_rows, folds[0, 0]
        )
        out = np.zeros((1, self._spec.probes), np.float32)
        kernels.probe(folds, self._width, self._probe_signs, out)
        return torch.from_numpy(out[0])

    def _measure_after(self) -> tuple[Any, Any]:
        """Return products of the update, (part, layer, 2), and checks, (part, layer)."""
        parameters, _kept = self._addresses(self._parameters)
        sums = np.zeros((len(self._folds), len(parameters), 2))
        checks = np.zeros(sums.shape[:2], np.int64)
        self._run(
            kernels.measure_after,
            kernels.measure_after_in_parts,
            parameters,
            *self._places,
            self._rows,
            sums,
            checks,
        )
        return sums, checks

    def _addresses(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[npt.NDArray[np.int64], list[Tensor]]:
        """Return where elements lie, 0 for None, and the copies that were needed."""
        # Addresses are valid while the tensors, and the copies, are kept.
        addresses, copies, devices = [], [], set()
        float32, strided = torch.float32, torch.strided
        for tensor, shape in zip(tensors, self._shapes, strict=True):
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
                name = self._names[len(addresses)]
                copies.append(row_major(tensor, name, shape, _as_float32))
                addresses.append(copies[-1].data_ptr())
                if tensor.is_cuda:
                    devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return np.array(addresses, np.int64), copies

    def _run(self, alone: Any, in_parts: Any, *arguments: Any) -> None:
        """Call one of two kernels that do the same, in one thread or in several."""
        n_parts = len(self._bounds) - 1
        if n_parts == 1:
            alone(self._bounds, *arguments)
            return
        # Not every library that Numba takes its threads from can be entered twice.
        with ONE_AT_A_TIME:
            n_threads = numba.get_num_threads()
            numba.set_num_threads(min(n_parts, n_threads))
            try:
                in_parts(self._bounds, *arguments)
            finally:
                numba.set_num_threads(n_threads)

    def _write_sketch(self, sketch: Sketch, row: Mapping[str, Tensor]) -> None:
        probes = row["probes"].numpy()
        kernels.probe(self._folds, self._filled, self._probe_signs, probes)
        kernels.sketch(
            self._folds,
            self._filled,
            self._signs[: sketch.bits],
            sketch.bits // n_blocks(sketch.bits),
            row["signs"].numpy(),
            row["scales"].numpy(),
        )


def _zeros(*shape: int) -> npt.NDArray[np.float32]:
    """Return zeros where kernels read them fastest."""
    zeros: npt.NDArray[np.float32] = huge_zeros(*shape, device=CPU).numpy()
    return zeros


def _as_float32(tensor: Tensor) -> Tensor:
    """Return a tensor's elements as float32 in a CPU's memory, maybe still on their way."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().resolve_neg()
    if not tensor.is_cuda:
        return tensor.to("cpu", torch.float32).contiguous()
    # One wait for all tensors instead of one for each.
    pinned = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _start_threads() -> None:
    """Start Numba's threads ahead of the first step."""
    none = np.zeros(0, np.int64)
    with number_left_to_torch():
        kernels.measure_after_in_parts(
            np.zeros(3, np.int64),
            *(none, none, none, none),
            np.zeros((3, 0), np.float32),
            np.zeros((2, 0, 2)),
            np.zeros((2, 0), np.int64),
        )
