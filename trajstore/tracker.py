"""What one step of training is measured by, on the device that trains.

Nothing here waits for the device: results go to tensors that are converted later, in
another thread. The buffers are ``3 + basis`` float32 vectors of the length of the
parameters, besides past references as int8.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from trajstore import deltas_torch
from trajstore.fold_torch import CHUNK, padded_size
from trajstore.layout import BLOCK, Layout
from trajstore.probes import Probes
from trajstore.probes_torch import ProbesOnDevice
from trajstore.rotation import n_blocks
from trajstore.schema import RunSpec, table_columns
from trajstore.sketch import Sketch
from trajstore.sketch_torch import SketchOnDevice
from trajstore.weights_torch import tensor_weights

# Rows of the buffer; past displacements follow. The first two take turns: one holds the
# gradient, the other the gradient before, and once that is used up the update.
TURNS = (0, 1)
DISPLACEMENT, REFERENCE = 2, 3


class Reference(NamedTuple):
    """A new window: its reference, coded, and what is known when it begins.

    Attributes
    ----------
    codes, scales : torch.Tensor
        Difference to the reference before; see `trajstore.deltas`.
    weights : torch.Tensor
        float32, (layer,): weights of the sketch in this window.
    arrival : torch.Tensor
        float32, (layer, 1 + basis): the window's first iterate relative to the old
        reference, its products with itself and with the old basis.
    probes : torch.Tensor
        float64, (probe,): probes of the reference; empty if the recording is exact.
    """

    codes: Tensor
    scales: Tensor
    weights: Tensor
    arrival: Tensor
    probes: Tensor


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
    columns : torch.Tensor
        Where the products of the gradient belong in the table.
    """

    gradient: Tensor
    update: Tensor
    gradient_views: list[Tensor]
    update_views: list[Tensor]
    gradient_factors: tuple[Tensor, Tensor]
    update_factors: tuple[Tensor, Tensor]
    columns: Tensor


class Tracker:
    """Follows the parameters of a model from reference to reference.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        The tensors that are followed, all on one device.
    layout : Layout
        Their places in the flat vector.
    spec : RunSpec
        What is measured.
    """

    def __init__(
        self, parameters: Sequence[Tensor], layout: Layout, spec: RunSpec
    ) -> None:
        self._parameters = list(parameters)
        self._layout, self._spec = layout, spec
        self.device = parameters[0].device
        sketch = Sketch(size=layout.size, bits=spec.sketch_bits, seed=spec.seed)
        size = layout.size if spec.exact else padded_size(sketch.fold)
        buffer = self._zeros(3 + spec.basis, size)
        self._rows = buffer[:, : layout.size]
        self._displacement_views = self._views(self._rows[DISPLACEMENT])
        self._reference_views = self._views(self._rows[REFERENCE])
        self._turns = [self._turn(row) for row in TURNS]
        self._row_of_gradient = 0
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        self._factors = {
            "displacement": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:]),
            "move": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:REFERENCE]),
            "reference": _factors(blocks[REFERENCE], blocks[REFERENCE : REFERENCE + 1]),
        }
        self._layer_of_block = torch.from_numpy(layout.layer_of_block).to(self.device)
        # Of tensors without elements the rms is 0, not 0 / 0.
        sizes = torch.from_numpy(layout.sizes).clamp(min=1)
        self._sizes = sizes.to(self.device, torch.float64)
        # Codes of past windows, the latest first: with the next one all of the basis.
        self._past: deque[tuple[Tensor, Tensor]] = deque(
            maxlen=max(0, (1 << max(0, spec.basis - 2)) - 1)
        )
        self._block_weights = self._zeros(size // BLOCK).fill_(1.0)
        self._gradient_energy = self._sizes.new_zeros(len(layout.names))
        self._n_gradients = 0
        self._sketch: SketchOnDevice | None = None
        if not spec.exact:
            probes = Probes(fold=sketch.fold, count=spec.probes)
            pairs = [_with_displacement(buffer, row) for row in TURNS]
            self._sketch = SketchOnDevice(sketch, pairs)
            self._probes = ProbesOnDevice(probes, 2, self.device)
        self._reference_probes = self._sizes.new_zeros(0 if spec.exact else spec.probes)

    @property
    def reference(self) -> Tensor:
        """The decoded reference, float32 of shape ``(size,)``; changes with `move`."""
        return self._rows[REFERENCE]

    def allocate(self, n_rows: int) -> dict[str, Tensor]:
        """Room for the measurements of some steps.

        Parameters
        ----------
        n_rows : int
            How many steps.

        Returns
        -------
        dict from str to torch.Tensor
            With the step as first dimension: ``tables`` (step, layer, quantity) and
            either ``signs``, ``scales`` and ``probes`` (step, 2, probe) or, exact,
            ``gradient`` and ``displacement`` (step, param).
        """
        spec = self._spec
        n_layers, n_measured = len(spec.names), table_columns(spec)["param_sq"].start
        rows = {"tables": self._empty(n_rows, n_layers, n_measured)}
        if self._sketch is None:
            rows["gradient"] = self._empty(n_rows, self._layout.size)
            rows["displacement"] = self._empty(n_rows, self._layout.size)
        else:
            signs = (n_rows, spec.sketch_bits // 8)
            rows["signs"] = torch.empty(signs, dtype=torch.uint8, device=self.device)
            rows["scales"] = self._empty(n_rows, n_blocks(spec.sketch_bits))
            # The second fold leaves the last few unwritten.
            rows["probes"] = self._zeros(n_rows, 2, spec.probes)
        return rows

    def start(self) -> Reference:
        """Take the parameters as they are for the first reference, without a code."""
        torch._foreach_copy_(self._displacement_views, self._parameters)
        self.reference.copy_(self._rows[DISPLACEMENT])
        self._add_reference_probes()
        n_layers = len(self._layout.names)
        return Reference(
            codes=torch.zeros_like(self.reference, dtype=torch.int8),
            scales=self._zeros(self._layout.size // BLOCK),
            weights=self._zeros(n_layers).fill_(1.0),
            arrival=self._zeros(n_layers, 1 + self._spec.basis).fill_(torch.nan),
            probes=self._reference_probes.clone(),
        )

    def move(self) -> Reference:
        """Begin a window: move the reference to the parameters, as its code gets there.

        Returns
        -------
        Reference
            New tensors, which later calls leave alone.
        """
        self._read_displacement()
        arrival = self._by_layer(self._products("displacement"))
        codes, scales = self._code_displacement()
        self._shift_basis(codes, scales)
        weights = tensor_weights(
            (self._by_layer(self._products("move"))[:, 0] / self._sizes).sqrt(),
            (self._gradient_energy / self._sizes / max(self._n_gradients, 1)).sqrt(),
            self._sizes,
        )
        torch.index_select(
            weights,
            0,
            self._layer_of_block,
            out=self._block_weights[: len(self._layer_of_block)],
        )
        self._gradient_energy.zero_()
        self._n_gradients = 0
        self._add_reference_probes()
        return Reference(
            codes, scales, weights, arrival.float(), self._reference_probes.clone()
        )

    def before_step(self, step: int, row: Mapping[str, Tensor]) -> None:
        """Measure the gradient and the parameters that a step begins with.

        Parameters
        ----------
        step : int
            Optimizer step; selects the random signs.
        row : mapping from str to torch.Tensor
            One step of what `allocate` returned; overwritten.
        """
        self._row_of_gradient = 1 - self._row_of_gradient
        views = self._turns[self._row_of_gradient]
        self._read_gradient(views.gradient_views)
        self._read_displacement()
        products = (_products(views.gradient_factors), self._products("displacement"))
        sums = self._by_layer(torch.cat(products, 1))[:, views.columns]
        row["tables"][:, : sums.shape[1]].copy_(sums)
        self._gradient_energy += sums[:, 1]
        self._n_gradients += 1
        if self._sketch is None:
            row["gradient"].copy_(views.gradient)
            row["displacement"].copy_(self._rows[DISPLACEMENT])
            return
        self._sketch(
            self._row_of_gradient,
            step,
            self._block_weights,
            signs=row["signs"],
            scales=row["scales"],
            fold_signs=self._probes.row_signs,
            folds=self._probes.folds,
        )
        self._probes.write(row["probes"])

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """Measure what the step did to the parameters.

        Parameters
        ----------
        row : mapping from str to torch.Tensor
            As given to `before_step`.
        """
        views = self._turns[self._row_of_gradient]
        self._subtract_displacement(views.update, views.update_views)
        sums = self._by_layer(_products(views.update_factors))
        row["tables"][:, -sums.shape[1] :].copy_(sums)

    def reference_sq(self) -> Tensor:
        """Squared norms of the reference by layer, float64 of shape (layer,)."""
        return self._by_layer(self._products("reference"))[:, 0]

    @torch.no_grad()
    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        # The same arithmetic gives the same bits; the gradient is not needed any more.
        views = self._turns[self._row_of_gradient]
        self._subtract_displacement(views.gradient, views.gradient_views)
        return torch.equal(
            views.gradient.view(torch.int32), views.update.view(torch.int32)
        )

    @torch.no_grad()
    def parameters(self, elements: slice) -> Tensor:
        """Return a part of the parameters, a new float32 tensor of shape ``(part,)``."""
        part = self._zeros(elements.stop - elements.start)
        for offset, parameter in zip(
            self._layout.offsets.tolist(), self._parameters, strict=True
        ):
            first = max(elements.start, offset)
            last = min(elements.stop, offset + parameter.numel())
            if first < last:
                values = parameter.reshape(-1)[first - offset : last - offset]
                part[first - elements.start : last - elements.start] = values
        return part

    def _turn(self, row: int) -> _Turn:
        """Prepare the turn in which a row holds the gradient."""
        gradient, update = self._rows[row], self._rows[1 - row]
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        # The store wants the product with the gradient before first.
        columns = [1 - row, row, *range(2, len(blocks) + len(blocks) - DISPLACEMENT)]
        return _Turn(
            gradient=gradient,
            update=update,
            gradient_views=self._views(gradient),
            update_views=self._views(update),
            gradient_factors=_factors(blocks[row], blocks),
            update_factors=_factors(
                blocks[1 - row], _with_displacement(blocks, 1 - row)
            ),
            columns=torch.tensor(columns, device=self.device),
        )

    def _read_gradient(self, views: list[Tensor]) -> None:
        gradients, targets, absent = [], [], []
        for view, parameter in zip(views, self._parameters, strict=True):
            gradient = parameter.grad
            if gradient is None:
                absent.append(view)
            else:
                dense = gradient.layout is torch.strided
                gradients.append(gradient if dense else gradient.to_dense())
                targets.append(view)
        if absent:
            torch._foreach_zero_(absent)
        if gradients:
            torch._foreach_copy_(targets, gradients)

    def _read_displacement(self) -> None:
        self._subtract_reference(self._displacement_views)

    def _subtract_displacement(self, row: Tensor, views: list[Tensor]) -> None:
        """Fill a row with the parameters less what they were before the step."""
        # Near the reference x - r is exact, and so is the difference of two of them.
        self._subtract_reference(views)
        row.sub_(self._rows[DISPLACEMENT])

    def _subtract_reference(self, views: list[Tensor]) -> None:
        """Fill views of a row with the parameters less the reference."""
        for view, parameter, reference in zip(
            views, self._parameters, self._reference_views, strict=True
        ):
            torch.sub(parameter, reference, out=view)

    def _code_displacement(self) -> tuple[Tensor, Tensor]:
        """Replace the displacement by its code, a chunk at a time; return the code."""
        vector = self._rows[DISPLACEMENT]
        codes = torch.empty_like(vector, dtype=torch.int8)
        scales = self._empty(len(vector) // BLOCK)
        for elements, blocks in self._chunks():
            codes[elements], scales[blocks] = deltas_torch.encode(vector[elements])
            vector[elements] = deltas_torch.decode(codes[elements], scales[blocks])
        return codes, scales

    def _shift_basis(self, codes: Tensor, scales: Tensor) -> None:
        """Move the reference and make the displacements from past references anew."""
        step = self._rows[DISPLACEMENT]
        self.reference.add_(step)
        displacement, n_added = step, 1
        for j, row in enumerate(self._rows[REFERENCE + 1 :]):
            row.copy_(displacement)
            for past in islice(self._past, n_added - 1, (1 << j) - 1):
                self._add(row, *past)
            displacement, n_added = row, 1 << j
        self._past.appendleft((codes, scales))

    def _add(self, vector: Tensor, codes: Tensor, scales: Tensor) -> None:
        for elements, blocks in self._chunks():
            vector[elements] += deltas_torch.decode(codes[elements], scales[blocks])

    def _add_reference_probes(self) -> None:
        """Add the probes of the displacement's row to those of the reference."""
        if self._sketch is None:
            return
        self._sketch.fold(0, self._probes.row_signs, self._probes.folds)
        both = self._zeros(2, self._spec.probes)
        self._probes.write(both)
        self._reference_probes += both[1]

    def _products(self, name: str) -> Tensor:
        """Inner products of rows of the buffer; see `_products`."""
        return _products(self._factors[name])

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Add up blocks tensor by tensor, float64 of shape (layer, column)."""
        sums = self._sizes.new_zeros(len(self._sizes), block_sums.shape[1])
        return sums.index_add_(0, self._layer_of_block, block_sums.double())

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        """Cut the vector into chunks, as elements and as blocks."""
        blocks = CHUNK.get(self.device.type, CHUNK["cuda"]) // BLOCK
        n_blocks = self._layout.size // BLOCK
        for first in range(0, n_blocks, blocks):
            last = min(first + blocks, n_blocks)
            yield slice(first * BLOCK, last * BLOCK), slice(first, last)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat vector in the shapes of the parameters."""
        return [
            flat[offset : offset + parameter.numel()].view(parameter.shape)
            for offset, parameter in zip(
                self._layout.offsets.tolist(), self._parameters, strict=True
            )
        ]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)


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
