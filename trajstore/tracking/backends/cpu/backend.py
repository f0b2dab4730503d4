"""Backend that runs compiled loops, for parameters in the memory of a CPU."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.run_spec import RunSpec
from trajstore.sketch.signs import Role
from trajstore.sketch.vector_forms import are_compact
from trajstore.tracking.backends.cpu import measuring, sketching
from trajstore.tracking.backends.cpu.addresses import Addresses
from trajstore.tracking.backends.cpu.compiling import compile_waiting
from trajstore.tracking.backends.cpu.folding import WORD, folding_of, no_folding
from trajstore.tracking.backends.cpu.kernels import (
    NO_ENERGY,
    kernel_columns,
    prepared_kernels,
)
from trajstore.tracking.backends.cpu.ranges import ranges_of
from trajstore.tracking.backends.cpu.vectors import CompactVectors, FloatVectors
from trajstore.tracking.backends.memory import huge_zeros
from trajstore.tracking.backends.protocol import GRADIENT, LastStep
from trajstore.tracking.backends.rows import Arrays, arrays_of
from trajstore.tracking.local_tensors import LocalTensors
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement
from trajstore.tracking.reduction import Reduction

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BLOCKS_PER_THREAD: Final = 128
"""Least number of blocks per thread; for fewer blocks, starting a thread costs too much."""

STEP_SIGNS: Final = int(Role.STEP)
"""`Role.STEP` as an int, because Numba needs 25 microseconds to convert an enumeration member."""

CPU: Final = torch.device("cpu")

compile_waiting()


class _Unfinished(NamedTuple):
    """A row whose sums over the ranks are not known yet."""

    reduction: Reduction
    tables: Doubles
    updates: Doubles  # (1, layer, column): products of the update of the row before
    row: Mapping[str, Tensor]
    last: LastStep | None


class CPUBackend:
    """Measures steps with the loops of `trajstore.tracking.backends.cpu.measuring`."""

    joins_updates = True
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
        self._spec, self._past, self._columns = spec, past, kernel_columns(spec)
        self._placement, self._is_whole = placement, placement.group is None
        self._is_first = placement.is_first
        self._local = LocalTensors(placement, parameters)
        self._addresses = Addresses(self._local.layout, self._local.parameters)
        blocks = len(
            layout.layer_of_block if self._is_whole else placement.layer_of_block
        )
        n_parts = max(1, min(torch.get_num_threads(), blocks // BLOCKS_PER_THREAD))
        offsets = layout.packed_offsets if spec.is_packed else layout.offsets
        self._ranges = ranges_of(placement, offsets)
        form = CompactVectors if are_compact(spec) else FloatVectors
        self._vectors = form(placement, n_parts, self._ranges, device)
        self.anchor, self.pieces = self._vectors.anchor, self._vectors.pieces
        self._folding = (
            no_folding(n_parts) if spec.exact else folding_of(layout, spec, n_parts)
        )
        self.block_energies = torch.zeros(blocks, dtype=torch.float32, device=CPU)
        self.window_folds = huge_zeros(
            n_parts, spec.window_folds, spec.sketch_numbers, device=CPU
        )
        self._sums = self.window_folds.numpy(), self.block_energies.numpy()
        shape = n_parts, spec.sketch_numbers if spec.displacement_sum else 0
        self.displacement_fold = huge_zeros(*shape, device=CPU)
        self._displacements = self.displacement_fold.numpy()
        # |g|^2 of the last step by range; NaN is out of the range of float32.
        self._squares = np.zeros(len(self._ranges), np.float32)
        self._is_lent = False  # whether a caller has written the last gradient
        self._checks = np.zeros((0, 0), np.int64)
        self._energy: tuple[Tensor | None, Doubles] = None, NO_ENERGY
        # Whether the kernel writes sums to the tables of rows, where nothing is left to add up.
        self._is_direct = self._is_whole and n_parts == 1 and spec.scaled
        self._kernels = prepared_kernels(
            spec,
            self._folding,
            n_parts,
            n_tensors=len(self._local.layout.names),
            is_direct=self._is_direct,
            ranges=self._ranges,
            vectors=self._vectors,
            past=past.addresses,
            window_folds=self._sums[0],
            energies=self._sums[1],
            squares=self._squares,
        )
        self._given: tuple[Any, ...] = (None,) * 4
        self._unfinished: _Unfinished | None = None

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""
        self._local.follow(parameters)
        self._addresses.follow(self._local.parameters)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""
        arguments, folding = self._kernels.before_arguments, self._folding
        if folding.sketch is not None:
            fold, n = folding.sketch.fold, len(folding.probe_columns)
            signs = np.empty(-(-n // WORD) * WORD, np.int8)
            sketching.draw_signs(fold.seed, int(fold.column_role), window, signs)
            arguments.set("sketch_columns", signs[:n])
        arguments.set("weights", weights.numpy().copy())

    def start_sums(self, row_signs: Tensor | None) -> None:
        """Clear `block_energies` and both sums of folds; use these row signs, float32 (row,)."""
        for total in (*self._sums, self._displacements):
            total.fill(0)
        if row_signs is not None:
            self._kernels.before_arguments.set("window_signs", row_signs.numpy())

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
        last: LastStep | None = None,
    ) -> None:
        """Measure gradients and parameters, and the last update; `number` selects the signs."""
        folding, columns = self._folding, self._columns
        arrays = getattr(row, "arrays", None) or arrays_of(row)
        tables = arrays["tables"]
        wide = tables if self._is_direct else self._wide(tables)
        if self._is_whole:
            parameters, _parameters = self._addresses.of_parameters()
            gradients, _gradients = self._addresses.of(vectors)
        else:
            parameters, _parameters = self._addresses_of_parameters()
            gradients, _gradients = self._addresses.of(self._local.of(vectors))
        if self._is_lent:
            self._is_lent = False
            gradient = self.held(GRADIENT).numpy()
            self._squares[:] = measuring.held_squares(gradient, self._ranges)
        run = self._kernels
        update_sums = run.no_sums if last is None else run.update_sums
        # What the kernel does not reach, because of Ctrl-C, is not known.
        if not self._is_direct:
            update_sums.fill(np.nan)
        elif last is not None:
            self._updates_of(last).fill(np.nan)
        try:
            if self._unfinished is not None:
                self.finish()
            if folding.sketch is not None:
                signs = folding.step_signs
                sketching.draw_signs(self._spec.seed, STEP_SIGNS, number, signs)
            if self._is_direct:
                self._run_on_rows(gradients, parameters, row, last)
            else:
                self._run_before(gradients, parameters, update_sums, NO_ENERGY)
                measuring.add_up(run.sums, columns.before, wide, 0, NO_ENERGY)
            self._write_probes(arrays)
            if not self._is_whole:
                self._add_ranks(wide, update_sums, row, last)
        except BaseException:
            if not self._is_whole:
                # What other ranks have measured is not known.
                update_sums.fill(np.nan)
            if self._is_direct and last is not None:
                self._add_energy(last)
            raise
        finally:
            # Also after Ctrl-C during the kernel, which has replaced the displacement.
            if last is not None and self._unfinished is None and not self._is_direct:
                self._add_update(update_sums, last)
        if self._unfinished is not None:
            return
        if wide is not tables:
            tables[:] = wide
        if folding.sketch is not None:
            self._write_sketch(arrays)

    def _write_probes(self, arrays: Arrays) -> None:
        """Write the probes, given the folds, or in exact mode the vectors."""
        folding = self._folding
        if folding.sketch is None:
            names = ("gradient", "displacement")
            for name, vector in zip(names, self._vectors.rows, strict=False):
                arrays[name][:] = vector
            return
        if self._spec.displacement_sum:
            # All other buckets are 0.
            n = folding.filled
            self._displacements[:, :n] += folding.folds[:, 1, :n]
        probes = arrays["probes"]
        sketching.probe(folding.folds, folding.filled, *folding.second_fold, probes)

    def _add_ranks(
        self,
        wide: Doubles,
        update_sums: Doubles,
        row: Mapping[str, Tensor],
        last: LastStep | None,
    ) -> None:
        """Begin to add up what all ranks have measured for this row and the last."""
        first, folds = self._columns.before, self._folding.folds
        # Ranks may have different numbers of parts.
        updates = update_sums.sum(0, keepdims=True)
        columns = wide[:, first : first + self._columns.n_before]
        if len(folds) > 1:
            folds[0, -1] = folds[:, -1].sum(0)
            folds[1:, -1] = 0
        arrays = arrays_of(row)
        sketched = [arrays[name] for name in ("probes", "scales") if name in arrays]
        sums = map(torch.from_numpy, (columns, updates, *sketched[:1]))
        fold = torch.from_numpy(folds[0, -1]) if sketched else None
        reduction = self._placement.start_reduction(*sums, large=fold)
        # Until the first rank has the sums, it does not know these values.
        arrays["tables"][:, first : first + self._columns.n_before] = np.nan
        for unknown in sketched:
            unknown.fill(np.nan)
        if last is not None:
            after = slice(self._columns.after, self._columns.after + updates.shape[2])
            arrays_of(last.row)["tables"][:, after] = np.nan
        self._unfinished = _Unfinished(reduction, wide, updates, row, last)

    def finish(self, *, waits: bool = True) -> None:
        """Complete the last rows with what other ranks have measured."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None:
            return
        reduction, wide, updates, row, last = unfinished
        try:
            reduction.finish(waits=waits)
        except BaseException:
            updates.fill(np.nan)
            raise
        finally:
            if last is not None:
                self._add_update(updates, last)
        arrays = arrays_of(row)
        if wide is not arrays["tables"]:
            arrays["tables"][:] = wide
        if self._is_first and self._folding.sketch is not None:
            self._write_sketch(arrays)

    def _write_sketch(self, arrays: Arrays) -> None:
        """Write signs and scales to a row, given the folds."""
        folding = self._folding
        numbers, filled = folding.folds[0, -1], folding.filled
        if len(folding.folds) > 1:
            for part in folding.folds[1:, -1]:
                numbers[:filled] += part[:filled]
        signs = folding.step_signs[: len(numbers)]
        sketching.rotate(numbers, filled, signs, *folding.blocks)
        folding.code(numbers, arrays["signs"], arrays["scales"])

    def _run_on_rows(
        self,
        gradients: Integers,
        parameters: Integers,
        row: Mapping[str, Tensor],
        last: LastStep | None,
    ) -> None:
        """Run the kernel, which writes its sums to the tables of the row and of the last row."""
        run = self._kernels
        run.tables[0] = getattr(row, "address", 0) or row["tables"].data_ptr()
        if last is None:
            self._run_before(gradients, parameters, run.no_sums, NO_ENERGY)
            return
        energy = self._energy_of(last)
        self._run_before(gradients, parameters, run.update_sums, energy, last)

    def _run_before(
        self,
        gradients: Integers,
        parameters: Integers,
        update_sums: Doubles,
        energy: Doubles,
        last: LastStep | None = None,  # whose row holds `update_sums`, if it is given
    ) -> None:
        """Run the kernel for gradients and parameters at these addresses."""
        run = self._kernels
        arguments = run.before_arguments
        # Other tensors hold the gradients of every step; the array of addresses stays the same.
        run.gradients[:] = gradients
        given = parameters, self._past.addresses, update_sums, energy
        if not all(map(is_, given, self._given)):
            # These rarely change.
            names = "parameters", "past", "update_sums", "energy"
            for name, value in zip(names, given, strict=True):
                arguments.set(name, value)
            self._given = given
        if last is not None:
            tables = getattr(last.row, "address", 0) or last.row["tables"].data_ptr()
            run.last_tables[0] = tables
        run.before(arguments.address)

    def after_step(self, last: LastStep) -> None:
        """Measure the update of a step before the next step is measured."""
        self.finish()
        sums, self._checks = self._measure_after()
        if not self._is_whole:
            # Ranks may have different numbers of parts.
            sums = sums.sum(0, keepdims=True)
            self._placement.start_reduction(torch.from_numpy(sums)).finish()
        self._add_update(sums, last)

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        try:
            _, checks = self._measure_after()
            is_same = np.array_equal(checks, self._checks)
        except ValueError:
            # The shapes have changed.
            is_same = False
        return self._placement.all_agree(here=bool(is_same))

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore all results but rows on exit."""
        results = *self._vectors.state, self._squares, *self._sums, self._displacements
        kept, is_lent = [result.copy() for result in results], self._is_lent
        yield
        self._is_lent = is_lent
        for result, before in zip(results, kept, strict=True):
            result[:] = before

    def held(self, which: int) -> Tensor:
        """Return the last measured gradient or displacement, float32 (size,)."""
        if which == GRADIENT or isinstance(self._vectors, FloatVectors):
            return self._vectors.held(which)
        parameters, _copies = self._addresses_of_parameters()
        return self._vectors.held(which, parameters)

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last measured gradient or displacement."""
        self._vectors.hold(which, vector)
        self._is_lent |= which == GRADIENT

    def read_displacement(self, piece: slice) -> Tensor:
        """Return the parameters minus the anchor, and the anchor, float32 (2, element)."""
        if isinstance(self._vectors, CompactVectors):
            parameters, _copies = self._addresses_of_parameters()
            return self._vectors.pair(piece, parameters)
        self._run_after(np.zeros((len(self._folding.folds), 0, 0)))
        return self._vectors.pair(piece)

    def fold_displacement(self) -> Tensor:
        """Return the fold of the displacement on this rank, float32 (bucket,)."""
        folding, read = self._folding, self._vectors
        signs = folding.probe_columns, folding.probe_rows
        fold, vector = np.zeros(folding.folds.shape[2], np.float32), read.displacement
        sketching.fold(vector, read.read_ranges, folding.width, *signs, fold)
        return torch.from_numpy(fold)

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate and code a fold, float32 (bucket,)."""
        folding, numbers = self._folding, fold.numpy()
        drawn = rotation_signs.numpy().astype(np.int8)
        sketching.rotate(numbers, folding.filled, drawn, *folding.blocks)
        folding.code(numbers, signs.numpy(), scales.numpy())

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement on this rank, float32 (probe,)."""
        folding, folds = self._folding, self.fold_displacement().numpy()[None, None]
        out = np.zeros((1, self._spec.probes), np.float32)
        sketching.probe(folds, folding.width, *folding.second_fold, out)
        return torch.from_numpy(out[0])

    def _addresses_of_parameters(self) -> tuple[Integers, list[Tensor]]:
        """Return the addresses of this rank's parameters, and the copies to keep."""
        if self._is_whole:
            return self._addresses.of_parameters()
        return self._addresses.of_parameters(self._local.parameters)

    def _add_update(self, sums: Doubles, last: LastStep) -> None:
        """Write products of the update to the row of its step."""
        columns, energy = self._columns, self._energy_of(last)
        tables = (getattr(last.row, "arrays", None) or arrays_of(last.row))["tables"]
        wide = self._wide(tables)
        measuring.add_up(sums, columns.after, wide, columns.grad_sq, energy)
        if wide is not tables:
            tables[:] = wide

    def _updates_of(self, last: LastStep) -> Doubles:
        """View the products of an update in the row of its step, (layer, product)."""
        tables = (getattr(last.row, "arrays", None) or arrays_of(last.row))["tables"]
        first = self._columns.after
        return tables[:, first : first + self._columns.n_after]

    def _add_energy(self, last: LastStep) -> None:
        """Add |g|^2 of the last step to the energy, unless the kernel has done so."""
        # It has also measured the update, and training has ended if that is not a number.
        if np.isnan(self._updates_of(last)).all():
            sums = np.full((1, *self._updates_of(last).shape), np.nan)
            self._add_update(sums, last)

    def _energy_of(self, last: LastStep) -> Doubles:
        """Return the energy as an array, which is the same in all steps of a tracker."""
        energy = last.gradient_energy
        if energy is not self._energy[0]:
            self._energy = energy, energy.numpy()
        return self._energy[1]

    def _wide(self, tables: npt.NDArray[Any]) -> Doubles:
        """Return tables in float64; resumed recordings of older versions have float32."""
        return tables if self._spec.scaled else tables.astype(np.float64)

    def _measure_after(self) -> tuple[Doubles, Integers]:
        """Return products of the update, (part, layer, 2), and checksums, (part, layer)."""
        shape = len(self._folding.folds), len(self._spec.names)
        sums = np.zeros((*shape, self._columns.n_after))
        return sums, self._run_after(sums)

    def _run_after(self, sums: Doubles) -> Integers:
        """Run the kernel for an update, which fills sums, and return its checksums."""
        parameters, _copies = self._addresses_of_parameters()
        checks = np.zeros((len(sums), len(self._spec.names)), np.int64)
        arguments = self._kernels.after_arguments
        arguments.set("parameters", parameters)
        arguments.set("sums", sums)
        arguments.set("checks", checks)
        self._kernels.after(arguments.address)
        return checks
