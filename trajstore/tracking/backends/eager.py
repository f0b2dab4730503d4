"""Backend that runs plain torch operations, for any device and for sharded parameters.

On an accelerator, measuring a step does not wait for the device. On a CPU,
`trajstore.tracking.backends.cpu` is several times as fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.sketch import probes_of, sketch_of
from trajstore.sketch_torch import waiting
from trajstore.sketch_torch.probes import ProbesOnDevice
from trajstore.sketch_torch.sketch import SketchOnDevice
from trajstore.tracking.backends.columns import Columns, measured_columns
from trajstore.tracking.backends.memory import check_tensor, huge_zeros
from trajstore.tracking.backends.protocol import GRADIENT, LastStep
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement, local_part
from trajstore.tracking.precision import no_grad_float32

# Rows of the buffer. Rows 0 and 1 swap their roles in every step: one row receives the gradient,
# while the other row holds the last gradient and, after the step, the update.
TURNS: Final = (0, 1)
DISPLACEMENT, ANCHOR = 2, 3
N_ROWS: Final = 4

LEAST_SUM: Final = 1e-35
"""A sum of products in float32 keeps its digits if the largest product of elements is larger."""


class _Turn(NamedTuple):
    """Views of the buffer for the steps in which a certain row receives the gradient."""

    gradient: Tensor  # float32 (size,)
    update: Tensor  # float32 (size,)
    gradient_views: list[Tensor]  # parts of `gradient` in the shapes of the parameters
    update_views: list[Tensor]  # parts of `update` in the shapes of the parameters
    gradient_factors: tuple[Tensor, Tensor]  # `_factors` of the gradient and all rows
    # `_factors` of the update with itself and with the displacement.
    update_factors: tuple[Tensor, Tensor]
    with_displacement: Tensor  # float32 (2, size): gradient and displacement
    products: Tensor  # int64 (column,): index of the product for each table column


class EagerBackend:
    """Measures steps with torch operations; more layers do not mean more operations."""

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
        self._parameters, self._placement = list(parameters), placement
        self._spec, self._past = spec, past
        self._columns = measured_columns(spec)
        self._rows = huge_zeros(N_ROWS, placement.size, device=device)
        self.anchor, self.pieces = self._rows[ANCHOR], (slice(0, placement.size),)
        self._turns = [self._turn(row) for row in TURNS]
        self._row_of_gradient = 0
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        # Views of the displacement, and its factors with itself and the anchor.
        self._displacement = (
            placement.views(self._rows[DISPLACEMENT]),
            _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:]),
        )
        self._layer_of_block = torch.from_numpy(placement.layer_of_block).to(device)
        self._block_weights = torch.ones(
            placement.size // BLOCK, device=device, dtype=torch.float32
        )
        self.block_energies = self._rows.new_zeros(placement.size // BLOCK)
        self.window_folds = self._rows.new_zeros(
            1, spec.window_folds, spec.sketch_numbers
        )
        shape = 1, spec.sketch_numbers if spec.displacement_sum else 0
        self.displacement_fold = self._rows.new_zeros(shape)
        self._sketch: SketchOnDevice | None = None
        if not spec.exact:
            layout = placement.layout
            self._sketch = SketchOnDevice(
                sketch_of(spec, layout),
                [_with_displacement(self._rows, row) for row in TURNS],
                placement.spans,
                layout.packed_elements,
            )
            self._probes = ProbesOnDevice(probes_of(spec, layout), 2, device)

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""
        self._parameters = list(parameters)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""
        if self._sketch is not None:
            self._sketch.start_window(window)
        torch.index_select(
            weights,
            0,
            self._layer_of_block,
            out=self._block_weights[: len(self._layer_of_block)],
        )

    def start_sums(self, row_signs: Tensor | None) -> None:
        """Clear `block_energies` and both sums of folds; use these row signs, float32 (row,)."""
        self.displacement_fold.zero_()
        self.block_energies.zero_()
        self.window_folds.zero_()
        if self._sketch is not None and row_signs is not None:
            self._sketch.start_sum(row_signs, self.window_folds[0])

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
        last: LastStep | None = None,
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs."""
        assert last is None
        with no_grad_float32(self._rows.device):
            self._measure(vectors, number, row)

    def _measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        self._row_of_gradient = 1 - self._row_of_gradient
        turn = self._turns[self._row_of_gradient]
        local = self._placement.local
        pairs = zip(local(vectors), local(self._parameters), strict=True)
        self._read(
            [local_part(vector, like) for vector, like in pairs], turn.gradient_views
        )
        self._subtract_anchor(self._rows[DISPLACEMENT], self._displacement[0])
        pair = turn.with_displacement
        gradient_products = self._in_range(turn.gradient_factors)
        self.block_energies += gradient_products[:, self._row_of_gradient]
        products = (
            gradient_products,
            self._in_range(self._displacement[1]),
            self._past_products(pair).flatten(1),
        )
        sums = self._by_layer(torch.cat(products, 1))[:, turn.products]
        tables = row["tables"][:, self._columns.before.table_slice]
        if self._sketch is None:
            tables.copy_(sums)
            row["gradient"].copy_(turn.gradient)
            row["displacement"].copy_(self._rows[DISPLACEMENT])
            return
        buckets = self._sketch(
            self._row_of_gradient,
            number,
            self._block_weights,
            fold_signs=self._probes.row_signs,
            folds=self._probes.folds,
        )
        if self._spec.displacement_sum:
            fold = self._probes.folds[1]
            self.displacement_fold[0, : len(fold)] += fold
        self._probes.write(row["probes"])
        tables.copy_(sums)
        self._placement.all_reduce(tables, buckets, row["probes"])
        self._sketch.encode(signs=row["signs"], scales=row["scales"])

    def finish(self, *, waits: bool = True) -> None:
        """Do nothing, because rows are complete when they are measured."""

    def after_step(self, last: LastStep) -> None:
        """Measure the update of a step, which leads to the parameters."""
        row, gradient_energy = last
        # As resuming finds it in the store.
        gradient_energy += row["tables"][:, self._columns.grad_sq].float()
        turn = self._turns[self._row_of_gradient]
        with no_grad_float32(self._rows.device):
            self._subtract_displacement(turn.update, turn.update_views)
            sums = self._by_layer(self._in_range(turn.update_factors))
            tables = row["tables"][:, _update_columns(self._columns.after)]
            tables.copy_(sums)
            self._placement.all_reduce(tables)

    @torch.no_grad()
    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        # The same arithmetic gives the same bits. The result overwrites the gradient, which is no
        # longer needed.
        turn = self._turns[self._row_of_gradient]
        self._subtract_displacement(turn.gradient, turn.gradient_views)
        bits = turn.gradient.view(torch.int32), turn.update.view(torch.int32)
        return self._placement.all_agree(here=torch.equal(*bits))

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore all results but rows on exit."""
        kept, row = self._rows[:ANCHOR].clone(), self._row_of_gradient
        sums = self.block_energies, self.window_folds, self.displacement_fold
        kept_sums = [total.clone() for total in sums]
        yield
        self._rows[:ANCHOR] = kept
        self._row_of_gradient = row
        for total, before in zip(sums, kept_sums, strict=True):
            total.copy_(before)

    def held(self, which: int) -> Tensor:
        """Return the last measured gradient or displacement, float32 (size,)."""
        is_gradient = which == GRADIENT
        return self._rows[self._row_of_gradient if is_gradient else DISPLACEMENT]

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last measured gradient or displacement."""
        self.held(which).copy_(vector)

    def read_displacement(self, piece: slice) -> Tensor:
        """Return the parameters minus the anchor, and the anchor, float32 (2, element)."""
        self._subtract_anchor(self._rows[DISPLACEMENT], self._displacement[0])
        return self._rows[DISPLACEMENT:, piece]

    def fold_displacement(self) -> Tensor:
        """Return the fold of the displacement on this rank, float32 (bucket,)."""
        assert self._sketch is not None
        folds = torch.zeros_like(self._probes.folds)
        self._sketch.fold(0, self._probes.row_signs, folds)
        return folds[1]

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate and code a fold, float32 (bucket,)."""
        assert self._sketch is not None
        self._sketch.encode_fold(fold, rotation_signs, signs=signs, scales=scales)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement on this rank, float32 (probe,)."""
        self._probes.folds[1] += self.fold_displacement()
        probes = torch.zeros(
            2, self._spec.probes, device=self._rows.device, dtype=torch.float32
        )
        self._probes.write(probes)
        return probes[1]

    def _turn(self, row: int) -> _Turn:
        """Prepare the views for steps in which this row receives the gradient."""
        gradient, update = self._rows[row], self._rows[1 - row]
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        return _Turn(
            gradient=gradient,
            update=update,
            gradient_views=self._placement.views(gradient),
            update_views=self._placement.views(update),
            gradient_factors=_factors(blocks[row], blocks),
            update_factors=_factors(
                blocks[1 - row], _with_displacement(blocks, 1 - row)
            ),
            with_displacement=_with_displacement(self._rows, row),
            products=torch.tensor(
                _product_of_columns(row, self._spec.basis, self._columns.before),
                device=self._rows.device,
            ),
        )

    def _subtract_displacement(self, row: Tensor, views: list[Tensor]) -> None:
        """Set a row to the update: the parameters minus the parameters before the step."""
        # Near the anchor r, x - r is exact, and so is the difference of two displacements.
        self._subtract_anchor(row, views)
        row.sub_(self._rows[DISPLACEMENT])

    def _subtract_anchor(self, row: Tensor, views: list[Tensor]) -> None:
        """Set a row, whose parts are `views`, to the parameters minus the anchor."""
        parameters = self._placement.local(self._parameters)
        self._read([local_part(parameter) for parameter in parameters], views)
        # One operation for all tensors, so that more tensors do not mean more operations.
        row.sub_(self._rows[ANCHOR])

    def _read(self, vectors: Sequence[Tensor | None], views: list[Tensor]) -> None:
        """Copy vectors into views; a view is set to zero if its vector is None."""
        sources, targets, absent = [], [], []
        names = self._placement.local(self._placement.layout.names)
        for view, vector, name in zip(views, vectors, names, strict=True):
            if vector is None:
                absent.append(view)
            else:
                # Copying would repeat a vector of fewer elements.
                check_tensor(vector, name, view.shape, may_be_meta=view.is_meta)
                dense = vector.layout is torch.strided
                sources.append(vector if dense else vector.to_dense())
                targets.append(view)
        if absent:
            torch._foreach_zero_(absent)
        if sources:
            torch._foreach_copy_(targets, sources)

    def _in_range(self, factors: tuple[Tensor, Tensor]) -> Tensor:
        """Return `_products`; on a CPU in float64 if they leave the range of float32."""
        # An accelerator would have to wait for the answer.
        products = _products(factors)
        if waiting.answers_at_once(self._rows) and leaves_float32(products, *factors):
            left, right = factors
            return _products((left.double(), right.double()))
        return products

    def _past_products(self, pair: Tensor) -> Tensor:
        """Return products with displacements from past anchors, (block, vector, displacement)."""
        products = self._past.products(pair)
        if waiting.answers_at_once(self._rows) and products.numel() > 0:
            is_small = products.abs() < LEAST_SUM
            if (is_small | ~products.isfinite()).any():
                return self._past.products(pair.double())
        return products

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Return the sums over the blocks of each layer, float64 (layer, column)."""
        sums = torch.zeros(
            len(self._placement.layout.names),
            block_sums.shape[1],
            dtype=torch.float64,
            device=block_sums.device,
        )
        return sums.index_add_(0, self._layer_of_block, block_sums.double())


def leaves_float32(products: Tensor, vector: Tensor, others: Tensor) -> bool:
    """Whether products (block, other) of `_factors` have lost digits in float32."""
    suspects = (products.abs() < LEAST_SUM) | ~products.isfinite()
    if not suspects.any():
        return False
    bounds = vector.abs().amax(2).double() * others.abs().amax(1).double()
    is_lost = (bounds > 0) & (bounds < LEAST_SUM) | ~products.isfinite()
    return bool((suspects & is_lost).any())


def _product_of_columns(row: int, basis: int, columns: Columns) -> list[int]:
    """Return the index of the product for each column if this row holds the gradient."""
    # `_measure` concatenates products in this order: of the gradient with all rows, of the
    # displacement with itself and the anchor, of the gradient with displacements from past
    # anchors, and of the displacement with displacements from past anchors.
    n_past = max(0, basis - 1)
    displacement_sq = N_ROWS
    past = displacement_sq + 2
    products = {
        "grad_dot_previous": [1 - row],
        "grad_sq": [row],
        "grad_dot_displacement": [DISPLACEMENT],
        "grad_dot_basis": [ANCHOR, *range(past, past + n_past)][:basis],
        "displacement_sq": [displacement_sq],
        "displacement_dot_basis": [
            displacement_sq + 1,
            *range(past + n_past, past + 2 * n_past),
        ][:basis],
    }
    product_of_column = {
        columns.starts[name] + i: product
        for name, indexes in products.items()
        for i, product in enumerate(indexes)
    }
    return [product_of_column[column] for column in range(columns.n_columns)]


def _update_columns(columns: Columns) -> slice:
    """Return the table columns for the products of `_Turn.update_factors`."""
    first = columns.table_slice.start + columns.starts["update_sq"]
    second = columns.table_slice.start + columns.starts["update_dot_displacement"]
    return slice(first, second + 1, second - first)


def _with_displacement(rows: Tensor, row: int) -> Tensor:
    """Return a view of row 0 or 1 together with the displacement."""
    return rows[row : ANCHOR : DISPLACEMENT - row]


def _products(factors: tuple[Tensor, Tensor]) -> Tensor:
    """Return the inner products of a row with other rows, block by block, (block, other)."""
    return torch.bmm(*factors)[:, 0]


def _factors(vector: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """View the blocks of a vector, and of other vectors, as two factors for `bmm`."""
    # Multiplying a row by a matrix is several times as fast as a matrix by a column.
    return vector[:, None, :], others.permute(1, 2, 0)
