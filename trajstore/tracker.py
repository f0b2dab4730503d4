"""What one step of training is measured by, on the device that trains.

Nothing here waits for the device: results go to tensors that are converted later, in
another thread. The buffers are ``3 + basis`` float32 vectors of the length of the
parameters, besides past references as int8.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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

# Rows of the buffer; past displacements follow. Between the hooks of a step the row of
# the previous gradient, then used up, holds the update.
PREVIOUS, GRADIENT, DISPLACEMENT, REFERENCE = range(4)
UPDATE = PREVIOUS


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
        self._gradient_views = self._views(self._rows[GRADIENT])
        self._displacement_views = self._views(self._rows[DISPLACEMENT])
        self._update_views = self._views(self._rows[UPDATE])
        blocks = self._rows.unflatten(1, (-1, BLOCK))
        self._factors = {
            "gradient": _factors(blocks[GRADIENT], blocks),
            "displacement": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:]),
            "update": _factors(blocks[UPDATE], blocks[UPDATE:REFERENCE:DISPLACEMENT]),
            "move": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:REFERENCE]),
            "reference": _factors(blocks[REFERENCE], blocks[REFERENCE : REFERENCE + 1]),
        }
        self._layer_of_block = torch.from_numpy(layout.layer_of_block).to(self.device)
        self._sizes = torch.from_numpy(layout.sizes).to(self.device, torch.float64)
        # Codes of the windows whose displacements leave the basis one after the other.
        self._past: deque[tuple[Tensor, Tensor]] = deque(
            maxlen=1 << (spec.basis - 2) if spec.basis > 2 else 0
        )
        self._block_weights = self._zeros(size // BLOCK).fill_(1.0)
        self._gradient_energy = self._sizes.new_zeros(len(layout.names))
        self._n_gradients = 0
        self._sketch: SketchOnDevice | None = None
        if not spec.exact:
            probes = Probes(fold=sketch.fold, count=spec.probes)
            pair = buffer[GRADIENT : DISPLACEMENT + 1]
            self._sketch = SketchOnDevice(sketch, pair)
            self._probes = ProbesOnDevice(probes, len(pair), self.device)
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
        self._rows[PREVIOUS].copy_(self._rows[GRADIENT])
        self._read_gradient()
        self._read_displacement()
        products = (self._products("gradient"), self._products("displacement"))
        sums = self._by_layer(torch.cat(products, 1))
        row["tables"][:, : sums.shape[1]].copy_(sums)
        self._gradient_energy += sums[:, GRADIENT]
        self._n_gradients += 1
        if self._sketch is None:
            row["gradient"].copy_(self._rows[GRADIENT])
            row["displacement"].copy_(self._rows[DISPLACEMENT])
            return
        self._sketch(
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
        # Near the reference x - r is exact, and so is the difference of two of them.
        torch._foreach_copy_(self._update_views, self._parameters)
        update = self._rows[UPDATE]
        update.sub_(self.reference).sub_(self._rows[DISPLACEMENT])
        sums = self._by_layer(self._products("update"))
        row["tables"][:, -sums.shape[1] :].copy_(sums)

    def reference_sq(self) -> Tensor:
        """Squared norms of the reference by layer, float64 of shape (layer,)."""
        return self._by_layer(self._products("reference"))[:, 0]

    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        # The same arithmetic gives the same bits; the gradient is not needed any more.
        torch._foreach_copy_(self._gradient_views, self._parameters)
        update = self._rows[GRADIENT]
        update.sub_(self.reference).sub_(self._rows[DISPLACEMENT])
        return torch.equal(update, self._rows[UPDATE])

    def parameters(self) -> Tensor:
        """Return a copy of the parameters, float32 of shape ``(size,)``."""
        flat = self._zeros(self._layout.size)
        torch._foreach_copy_(self._views(flat), self._parameters)
        return flat

    def _read_gradient(self) -> None:
        gradients, targets, absent = [], [], []
        for view, parameter in zip(self._gradient_views, self._parameters, strict=True):
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
        torch._foreach_copy_(self._displacement_views, self._parameters)
        self._rows[DISPLACEMENT].sub_(self.reference)

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
        """Add the coded displacement to the reference and to past displacements."""
        step = self._rows[DISPLACEMENT]
        self.reference.add_(step)
        for j, displacement in enumerate(self._rows[REFERENCE + 1 :]):
            if j == 0:
                displacement.copy_(step)
                continue
            displacement.add_(step)
            if len(self._past) >= 1 << j:
                self._subtract(displacement, *self._past[-(1 << j)])
        self._past.append((codes, scales))

    def _subtract(self, vector: Tensor, codes: Tensor, scales: Tensor) -> None:
        for elements, blocks in self._chunks():
            vector[elements] -= deltas_torch.decode(codes[elements], scales[blocks])

    def _add_reference_probes(self) -> None:
        """Add the probes of the displacement's row to those of the reference."""
        if self._sketch is None:
            return
        self._sketch.fold(self._probes.row_signs, self._probes.folds)
        both = self._zeros(2, self._spec.probes)
        self._probes.write(both)
        self._reference_probes += both[1]

    def _products(self, name: str) -> Tensor:
        """Inner products of rows of the buffer block by block, (block, other row)."""
        return torch.bmm(*self._factors[name])[:, 0]

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


def _factors(vector: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Prepare inner products of blocks, (block, element), with those of other rows."""
    # A product of a row with a matrix is several times as fast as one with a column.
    return vector[:, None, :], others.permute(1, 2, 0)
