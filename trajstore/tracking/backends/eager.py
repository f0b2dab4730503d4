"""What one step of training is measured by, in torch, on any device.

On an accelerator nothing here waits for it. On a CPU `trajstore.tracking.backends.cpu` does the same
several times as fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from trajstore.format.arrays import table_columns
from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.probes import Probes
from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch.probes import ProbesOnDevice
from trajstore.sketch_torch.sketch import SketchOnDevice
from trajstore.tracking.past_anchors import PastReferences
from trajstore.tracking.placement import Placement, local_part
from trajstore.tracking.precision import quiet

# Rows of the buffer. The first two take turns: one holds the
# gradient, the other the gradient before, and once that is used up the update.
TURNS = (0, 1)
DISPLACEMENT, REFERENCE = 2, 3


class _Turn(NamedTuple):
    """Views of the buffer, prepared for one of the two turns.

    Attributes
    ----------
    gradient, update : torch.Tensor
        float32, (size,): the two rows.
    gradient_views, update_views : list of torch.Tensor
        The same in the shapes of the parameters.
    gradient_factors, update_factors : tuple of torch.Tensor
        See `_factors`: gradient with all rows; update with itself and the displacement.
    with_displacement : torch.Tensor
        float32, (2, size): the row of the gradient, and the displacement.
    columns : torch.Tensor
        Where in the table products belong.
    """

    gradient: Tensor
    update: Tensor
    gradient_views: list[Tensor]
    update_views: list[Tensor]
    gradient_factors: tuple[Tensor, Tensor]
    update_factors: tuple[Tensor, Tensor]
    with_displacement: Tensor
    columns: Tensor


class StepsOnDevice:
    """Measures steps; the twin of `trajstore.tracking.backends.cpu.StepsOnCPU`.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        The tensors that are followed.
    placement : Placement
        Which parts of the flat vector lie here.
    spec : RunSpec
        What is measured.
    rows : torch.Tensor
        float32, (`N_GRADIENTS` + 2, size): room for gradients; for the displacement; and
        the reference. Zero in the gaps.
    past : PastReferences
        The vectors of the basis that follow the reference.
    """

    N_GRADIENTS: ClassVar = len(TURNS)

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        placement: Placement,
        spec: RunSpec,
        rows: Tensor,
        past: PastReferences,
    ) -> None:
        self._parameters, self._placement = list(parameters), placement
        self._spec, self._past = spec, past
        self._grad_sq = table_columns(spec)["grad_sq"].start
        device = rows.device
        self._rows = rows
        self._displacement_views = placement.views(rows[DISPLACEMENT])
        self._turns = [self._turn(row) for row in TURNS]
        self._row_of_gradient = 0
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        self._displacement_factors = _factors(
            blocks[DISPLACEMENT], blocks[DISPLACEMENT:]
        )
        self._layer_of_block = torch.from_numpy(placement.layer_of_block).to(device)
        self._block_weights = torch.ones(rows.shape[1] // BLOCK, device=device)
        self._sketch: SketchOnDevice | None = None
        if not spec.exact:
            sketch = Sketch(
                size=placement.layout.size, bits=spec.sketch_bits, seed=spec.seed
            )
            probes = Probes(fold=sketch.fold, count=spec.probes)
            pairs = [_with_displacement(rows, row) for row in TURNS]
            self._sketch = SketchOnDevice(sketch, pairs, placement.spans)
            self._probes = ProbesOnDevice(probes, 2, device)

    def start_window(self, window: int, weights: Tensor) -> None:
        """Take the weights of the sketch in a window, float32 of shape (layer,)."""
        if self._sketch is not None:
            self._sketch.start_window(window)
        torch.index_select(
            weights,
            0,
            self._layer_of_block,
            out=self._block_weights[: len(self._layer_of_block)],
        )

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
    ) -> None:
        """See `trajstore.tracking.backends.cpu.StepsOnCPU.measure`."""
        with quiet(self._rows.device):
            self._measure(vectors, number, row)

    def _measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
    ) -> None:
        self._row_of_gradient = 1 - self._row_of_gradient
        views = self._turns[self._row_of_gradient]
        held = self._placement.held
        found = zip(held(vectors), held(self._parameters), strict=True)
        _read(
            [local_part(vector, like) for vector, like in found], views.gradient_views
        )
        self.read_displacement()
        of_past = self._past.products(views.with_displacement)
        products = (
            _products(views.gradient_factors),
            _products(self._displacement_factors),
            of_past.flatten(1),
        )
        sums = self._by_layer(torch.cat(products, 1))[:, views.columns]
        tables = row["tables"][:, : sums.shape[1]]
        if self._sketch is None:
            tables.copy_(sums)
            row["gradient"].copy_(views.gradient)
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
        self._placement.add_up(tables, buckets, row["probes"])
        self._sketch.encode(signs=row["signs"], scales=row["scales"])

    def add_gradient_energy(self, row: Mapping[str, Tensor], total: Tensor) -> None:
        """See `trajstore.tracking.backends.cpu.StepsOnCPU.add_gradient_energy`."""
        total += row["tables"][:, self._grad_sq]

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """See `trajstore.tracking.tracker.Tracker.after_step`."""
        views = self._turns[self._row_of_gradient]
        with quiet(self._rows.device):
            self._subtract_displacement(views.update, views.update_views)
            sums = self._by_layer(_products(views.update_factors))
            tables = row["tables"][:, -sums.shape[1] :].copy_(sums)
            self._placement.add_up(tables)

    @torch.no_grad()
    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        # The same arithmetic gives the same bits; the gradient is not needed any more.
        views = self._turns[self._row_of_gradient]
        self._subtract_displacement(views.gradient, views.gradient_views)
        bits = views.gradient.view(torch.int32), views.update.view(torch.int32)
        return self._placement.agree(here=torch.equal(*bits))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leave the last gradient and the displacement as they were."""
        kept, row = self._rows[:REFERENCE].clone(), self._row_of_gradient
        yield
        self._rows[:REFERENCE] = kept
        self._row_of_gradient = row

    @property
    def last_gradient(self) -> Tensor:
        """The gradient of the last step, a view of shape (size,)."""
        return self._rows[self._row_of_gradient]

    def read_displacement(self) -> None:
        """Fill the row of the displacement with the parameters less the reference."""
        self._subtract_reference(self._rows[DISPLACEMENT], self._displacement_views)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 of shape (probe,)."""
        assert self._sketch is not None
        self._sketch.fold(0, self._probes.row_signs, self._probes.folds)
        both = torch.zeros(2, self._spec.probes, device=self._rows.device)
        self._probes.write(both)
        self._placement.add_up(both)
        return both[1]

    def _turn(self, row: int) -> _Turn:
        """Prepare the turn in which a row holds the gradient."""
        gradient, update = self._rows[row], self._rows[1 - row]
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        columns = _columns(row, self._spec.basis)
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
            columns=torch.tensor(columns, device=self._rows.device),
        )

    def _subtract_displacement(self, row: Tensor, views: list[Tensor]) -> None:
        """Fill a row with the parameters less what they were before the step."""
        # Near the reference x - r is exact, and so is the difference of two of them.
        self._subtract_reference(row, views)
        row.sub_(self._rows[DISPLACEMENT])

    def _subtract_reference(self, row: Tensor, views: list[Tensor]) -> None:
        """Fill a row, of which there are views, with the parameters less the reference."""
        parameters = self._placement.held(self._parameters)
        _read([local_part(parameter) for parameter in parameters], views)
        # All at once: the number of operations does not grow with that of the tensors.
        row.sub_(self._rows[REFERENCE])

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Add up blocks tensor by tensor, float64 of shape (layer, column)."""
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


def _columns(row: int, basis: int) -> list[int]:
    """List the products that a table takes, in its order.

    The first four products are those of the gradient with all rows, then come those of
    the displacement with itself and the reference, then both with the past.

    Parameters
    ----------
    row : int
        Where the gradient is.
    basis : int
        Number of vectors in the basis.

    Returns
    -------
    list of int
        Which product each column is.
    """
    n_past = max(0, basis - 1)
    of_gradient = [REFERENCE, *range(6, 6 + n_past)][:basis]
    of_displacement = [5, *range(6 + n_past, 6 + 2 * n_past)][:basis]
    # The store wants the product with the gradient before first.
    return [1 - row, row, DISPLACEMENT, *of_gradient, 4, *of_displacement]


def _with_displacement(rows: Tensor, row: int) -> Tensor:
    """Return one of the first two rows together with the displacement."""
    return rows[row : REFERENCE : DISPLACEMENT - row]


def _products(factors: tuple[Tensor, Tensor]) -> Tensor:
    """Inner products of a row with other rows block by block, (block, other row)."""
    return torch.bmm(*factors)[:, 0]


def _factors(vector: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Prepare inner products of blocks, (block, element), with those of other rows."""
    # A product of a row with a matrix is several times as fast as one with a column.
    return vector[:, None, :], others.permute(1, 2, 0)
