"""Backend of plain torch operations, for any device and for sharded parameters.

On an accelerator no operation waits for the device. On a CPU
`trajstore.tracking.backends.cpu` is several times as fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.probes import Probes
from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch.probes import ProbesOnDevice
from trajstore.sketch_torch.sketch import SketchOnDevice
from trajstore.tracking.backends.columns import Columns, measured_columns
from trajstore.tracking.backends.memory import huge_zeros
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement, local_part
from trajstore.tracking.precision import no_grad_float32

# Rows of the buffer. The first two take turns: one holds the gradient, the other the last
# gradient, and once that is used the update.
TURNS: Final = (0, 1)
DISPLACEMENT, ANCHOR = 2, 3
N_ROWS: Final = 4


class _Turn(NamedTuple):
    """Views of the buffer, prepared for one of the two turns."""

    gradient: Tensor  # float32 (size,)
    update: Tensor  # float32 (size,)
    gradient_views: list[Tensor]  # the same in the shapes of the parameters
    update_views: list[Tensor]
    gradient_factors: tuple[Tensor, Tensor]  # gradient with all rows, see `_factors`
    update_factors: tuple[Tensor, Tensor]  # update with itself and the displacement
    with_displacement: Tensor  # float32 (2, size): gradient and displacement
    products: Tensor  # int64 (column,): the product that each column of the table takes


class EagerBackend:
    """Measures steps with torch operations; their number does not grow with the layers."""

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
        self._displacement_views = placement.views(self._rows[DISPLACEMENT])
        self._turns = [self._turn(row) for row in TURNS]
        self._row_of_gradient = 0
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        self._displacement_factors = _factors(
            blocks[DISPLACEMENT], blocks[DISPLACEMENT:]
        )
        self._layer_of_block = torch.from_numpy(placement.layer_of_block).to(device)
        self._block_weights = torch.ones(placement.size // BLOCK, device=device)
        self._sketch: SketchOnDevice | None = None
        if not spec.exact:
            sketch = Sketch(
                size=placement.layout.size, bits=spec.sketch_bits, seed=spec.seed
            )
            probes = Probes(fold=sketch.fold, count=spec.probes)
            pairs = [_with_displacement(self._rows, row) for row in TURNS]
            self._sketch = SketchOnDevice(sketch, pairs, placement.spans)
            self._probes = ProbesOnDevice(probes, 2, device)

    @property
    def frame(self) -> Tensor:
        """Displacement and anchor, float32 (2, size)."""
        return self._rows[DISPLACEMENT:]

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of a window, and weights, float32 (layer,)."""
        if self._sketch is not None:
            self._sketch.start_window(window)
        torch.index_select(
            weights,
            0,
            self._layer_of_block,
            out=self._block_weights[: len(self._layer_of_block)],
        )

    def measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs."""
        with no_grad_float32(self._rows.device):
            self._measure(vectors, number, row)

    def _measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        self._row_of_gradient = 1 - self._row_of_gradient
        turn = self._turns[self._row_of_gradient]
        local = self._placement.local
        pairs = zip(local(vectors), local(self._parameters), strict=True)
        _read([local_part(vector, like) for vector, like in pairs], turn.gradient_views)
        self.read_displacement()
        of_past = self._past.products(turn.with_displacement)
        products = (
            _products(turn.gradient_factors),
            _products(self._displacement_factors),
            of_past.flatten(1),
        )
        sums = self._by_layer(torch.cat(products, 1))[:, turn.products]
        tables = row["tables"][:, self._columns.before.place]
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
        self._probes.write(row["probes"])
        tables.copy_(sums)
        self._placement.all_reduce(tables, buckets, row["probes"])
        self._sketch.encode(signs=row["signs"], scales=row["scales"])

    def after_step(self, row: Mapping[str, Tensor], gradient_energy: Tensor) -> None:
        """Measure the update, and add |g|^2 of the row to a total, float64 (layer,)."""
        gradient_energy += row["tables"][:, self._columns.grad_sq]
        turn = self._turns[self._row_of_gradient]
        with no_grad_float32(self._rows.device):
            self._subtract_displacement(turn.update, turn.update_views)
            sums = self._by_layer(_products(turn.update_factors))
            tables = row["tables"][:, _two_columns(self._columns.after)]
            tables.copy_(sums)
            self._placement.all_reduce(tables)

    @torch.no_grad()
    def parameters_unchanged_since_step(self) -> bool:
        """Whether the parameters have the bits that `after_step` saw."""
        # The same arithmetic gives the same bits; the gradient is no longer needed.
        turn = self._turns[self._row_of_gradient]
        self._subtract_displacement(turn.gradient, turn.gradient_views)
        bits = turn.gradient.view(torch.int32), turn.update.view(torch.int32)
        return self._placement.all_agree(here=torch.equal(*bits))

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore the last gradient and the displacement on exit."""
        kept, row = self._rows[:ANCHOR].clone(), self._row_of_gradient
        yield
        self._rows[:ANCHOR] = kept
        self._row_of_gradient = row

    @property
    def last_gradient(self) -> Tensor:
        """Last measured gradient, a writable float32 view (size,)."""
        return self._rows[self._row_of_gradient]

    def read_displacement(self) -> None:
        """Set the displacement to the parameters minus the anchor."""
        self._subtract_anchor(self._rows[DISPLACEMENT], self._displacement_views)

    def probe_displacement(self) -> Tensor:
        """Return probes of the displacement, float32 (probe,)."""
        assert self._sketch is not None
        self._sketch.fold(0, self._probes.row_signs, self._probes.folds)
        both = torch.zeros(2, self._spec.probes, device=self._rows.device)
        self._probes.write(both)
        self._placement.all_reduce(both)
        return both[1]

    def _turn(self, row: int) -> _Turn:
        """Prepare the turn in which this row holds the gradient."""
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
        """Set a row to the update: the parameters less those before the step."""
        # Near the anchor x - r is exact, and so is the difference of two of them.
        self._subtract_anchor(row, views)
        row.sub_(self._rows[DISPLACEMENT])

    def _subtract_anchor(self, row: Tensor, views: list[Tensor]) -> None:
        """Set a row, of which `views` are parts, to the parameters minus the anchor."""
        parameters = self._placement.local(self._parameters)
        _read([local_part(parameter) for parameter in parameters], views)
        # All at once: the number of operations does not grow with the number of tensors.
        row.sub_(self._rows[ANCHOR])

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Add blocks layer by layer, float64 (layer, column)."""
        sums = torch.zeros(
            len(self._placement.layout.names),
            block_sums.shape[1],
            dtype=torch.float64,
            device=block_sums.device,
        )
        return sums.index_add_(0, self._layer_of_block, block_sums.double())


def _read(vectors: Sequence[Tensor | None], views: list[Tensor]) -> None:
    """Copy vectors into views; None as zeros."""
    found, targets, absent = [], [], []
    for view, vector in zip(views, vectors, strict=True):
        if vector is None:
            absent.append(view)
        else:
            dense = vector.layout is torch.strided
            found.append(vector if dense else vector.to_dense())
            targets.append(view)
    if absent:
        torch._foreach_zero_(absent)
    if found:
        torch._foreach_copy_(targets, found)


def _product_of_columns(row: int, basis: int, columns: Columns) -> list[int]:
    """Return the product that each column takes, where this row holds the gradient."""
    # The gradient with all rows, the displacement with itself and the anchor, and both with
    # the past: this is the order in which `_measure` joins the products.
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
        for name, found in products.items()
        for i, product in enumerate(found)
    }
    return [product_of_column[column] for column in range(columns.n_columns)]


def _two_columns(columns: Columns) -> slice:
    """Return the columns of a table for the products with `_Turn.update_factors`."""
    first = columns.place.start + columns.starts["update_sq"]
    second = columns.place.start + columns.starts["update_dot_displacement"]
    return slice(first, second + 1, second - first)


def _with_displacement(rows: Tensor, row: int) -> Tensor:
    """Return one of the first two rows together with the displacement."""
    return rows[row : ANCHOR : DISPLACEMENT - row]


def _products(factors: tuple[Tensor, Tensor]) -> Tensor:
    """Return inner products of a row with other rows block by block, (block, other)."""
    return torch.bmm(*factors)[:, 0]


def _factors(vector: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Prepare inner products of blocks, (block, element), with blocks of other rows."""
    # A product of a row with a matrix is several times as fast as one with a column.
    return vector[:, None, :], others.permute(1, 2, 0)
