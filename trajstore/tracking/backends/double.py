"""Backend for parameters of float64: products in float64, sketches by a float32 backend.

Sketch and probes are those of float32 copies of gradient and displacement. Each copy is divided by
a power of two before, so that no number leaves the range of float32, and the results are multiplied
by it: what rounding changes is far below the error of a sketch, however near the iterate is to the
anchor, and however small or large the gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.format.rows import measured_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.tracking.backends import protocol
from trajstore.tracking.backends.choose import choose_backend
from trajstore.tracking.backends.columns import Columns, measured_columns
from trajstore.tracking.backends.memory import row_major
from trajstore.tracking.backends.protocol import LastStep
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement
from trajstore.tracking.precision import no_grad_float32

# Rows of the buffer.
PREVIOUS, GRADIENT, DISPLACEMENT, ANCHOR = range(4)


FLOATS: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types of elements that a vector of float64 holds."""


class DoubleBackend:
    """Measures steps in float64, for parameters that are not sharded."""

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
        self._parameters, self._layout = list(parameters), placement.layout
        self._exact, self._past = spec.exact, past
        self._columns = measured_columns(spec)
        self._rows = torch.zeros(4, placement.size, dtype=torch.float64, device=device)
        self.anchor, self.pieces = self._rows[ANCHOR], (slice(0, placement.size),)
        self._views = [placement.views(row) for row in self._rows]
        self._is_lent = False  # whether a caller has written the last gradient
        self._update = self._rows.new_zeros(placement.size)
        self._update_views = placement.views(self._update)
        self._layer_of_block = torch.from_numpy(placement.layer_of_block).to(device)
        self._products = _products_of_columns(spec.basis, self._columns.before)
        # What the float32 backend takes for the gradients and the parameters, with an anchor of 0.
        self._scaled = torch.zeros(
            2, placement.size, device=device, dtype=torch.float32
        )
        self._scaled_views = [_of_layers(placement, row) for row in self._scaled]
        narrow = replace(spec, float64=False, scaled=True, basis=0)
        self._sketching = choose_backend(device, is_whole=True)(
            self._scaled_views[1], placement, narrow, PastAnchors(0), device
        )
        self._sketched = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            for name, (dtype, shape) in measured_arrays(narrow, placement.size).items()
        }

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""
        self._parameters = list(parameters)

    def held(self, which: int) -> Tensor:
        """Return the last measured gradient or displacement, float64 (size,)."""
        is_gradient = which == protocol.GRADIENT
        return self._rows[GRADIENT if is_gradient else DISPLACEMENT]

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last measured gradient or displacement."""
        self.held(which).copy_(vector)
        self._is_lent |= which == protocol.GRADIENT

    @property
    def block_energies(self) -> Tensor:
        """Not kept."""
        return self._sketching.block_energies

    @property
    def window_folds(self) -> Tensor:
        """Not kept: there are no folds."""
        return self._sketching.window_folds

    @property
    def displacement_fold(self) -> Tensor:
        """Not kept: displacements are not added up."""
        return self._sketching.displacement_fold

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""
        self._sketching.start_window(window, weights)

    def start_sums(self, row_signs: Tensor | None) -> None:
        """Clear the sums of the float32 backend, which are not stored."""
        self._sketching.start_sums(row_signs)

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
            self._rows[PREVIOUS].copy_(self._rows[GRADIENT])
            if self._is_lent:
                # A caller may have set any values in the gaps between tensors.
                self._rows[GRADIENT].zero_()
                self._is_lent = False
            self._read(vectors, self._views[GRADIENT])
            self._subtract_anchor()
            pair = self._rows[GRADIENT:ANCHOR]
            products = [
                _by_block(pair, self._rows),
                self._past.products(pair),
            ]
            sums = self._by_layer(torch.cat(products, 2).flatten(1))
            before = self._columns.before.table_slice
            row["tables"][:, before] = sums[:, self._products]
            if self._exact:
                row["gradient"].copy_(pair[0])
                row["displacement"].copy_(pair[1])
                return
            factors = self._scale(pair)
            self._sketching.measure(self._scaled_views[0], number, self._sketched)
            row["signs"].copy_(self._sketched["signs"])
            row["scales"].copy_(self._sketched["scales"].double() * factors[0])
            row["probes"].copy_(self._sketched["probes"].double() * factors)

    def finish(self, *, waits: bool = True) -> None:
        """Do nothing, because rows are complete when they are measured."""

    def after_step(self, last: LastStep) -> None:
        """Measure the update of a step, which leads to the parameters."""
        row, gradient_energy = last
        gradient_energy += row["tables"][:, self._columns.grad_sq]
        with no_grad_float32(self._rows.device):
            self._read_update()
            others = torch.stack([self._update, self._rows[DISPLACEMENT]])
            products = self._by_layer(_by_block(self._update[None], others)[:, 0])
            after = self._columns.after
            for i, name in enumerate(("update_sq", "update_dot_displacement")):
                column = after.table_slice.start + after.starts[name]
                row["tables"][:, column] = products[:, i]

    @torch.no_grad()
    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        before = self._update.clone()
        try:
            self._read_update()
        except ValueError:
            # The shapes have changed.
            return False
        return torch.equal(before.view(torch.int64), self._update.view(torch.int64))

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Restore all results but rows on exit."""
        kept, update = self._rows[:ANCHOR].clone(), self._update.clone()
        yield
        self._rows[:ANCHOR] = kept
        self._update.copy_(update)

    def read_displacement(self, piece: slice) -> Tensor:
        """Return the parameters minus the anchor, and the anchor, float64 (2, element)."""
        self._subtract_anchor()
        return self._rows[DISPLACEMENT:, piece]

    def _subtract_anchor(self) -> None:
        """Set the displacement to the parameters minus the anchor."""
        self._read(self._parameters, self._views[DISPLACEMENT])
        self._rows[DISPLACEMENT].sub_(self._rows[ANCHOR])

    def fold_displacement(self) -> Tensor:
        """Raise an error: displacements are not added up."""
        raise NotImplementedError("Sums of displacements are not recorded in float64.")

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate and code a fold, float32 (bucket,)."""
        self._sketching.encode(fold, rotation_signs, signs=signs, scales=scales)

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float64 (probe,)."""
        factors = self._scale(self._rows[GRADIENT:ANCHOR])
        probes = torch.zeros_like(self._sketched["probes"][1], dtype=torch.float64)
        for piece in self._sketching.pieces:
            self._sketching.read_displacement(piece)
            probes += self._sketching.probe_displacement()
        return probes * factors[1]

    def _read_update(self) -> None:
        """Set the update: the parameters minus the parameters before the step."""
        # Near the anchor r, x - r is exact, and so is the difference of two displacements.
        self._read(self._parameters, self._update_views)
        self._update.sub_(self._rows[ANCHOR]).sub_(self._rows[DISPLACEMENT])

    def _read(self, tensors: Sequence[Tensor | None], views: list[Tensor]) -> None:
        """Copy tensors of layers into views; a view is set to zero if its tensor is None."""
        layout = self._layout
        if _are_plain(tensors, layout.shapes):
            torch._foreach_copy_(views, [t for t in tensors if t is not None])
            return
        present = iter(views)
        for tensor, name, shape in zip(
            tensors, layout.names, layout.shapes, strict=True
        ):
            if 0 in shape:
                continue
            view = next(present)
            if tensor is None:
                view.zero_()
            else:
                view.copy_(row_major(tensor, name, shape, _dense))

    def _scale(self, vectors: Tensor) -> Tensor:
        """Set the float32 copies of two vectors; return their factors, float64 (2, 1)."""
        largest = vectors.abs().amax(1, keepdim=True)
        _, exponents = torch.frexp(largest)
        # The factor of a vector that is 0 or not finite is 1.
        usable = (largest > 0) & largest.isfinite()
        exponents = torch.where(usable, exponents, 0).clamp(min=-1021)
        factors = torch.ldexp(torch.ones_like(largest), exponents)
        # The factors are powers of two; only that of the least numbers has no reciprocal.
        torch.mul(vectors, factors.reciprocal(), out=self._scaled)
        return factors

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Return the sums over the blocks of each layer, float64 (layer, column)."""
        n_layers = len(self._layout.names)
        sums = block_sums.new_zeros(n_layers, block_sums.shape[1])
        return sums.index_add_(0, self._layer_of_block, block_sums)


def _are_plain(
    tensors: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]
) -> bool:
    """Whether every layer has a dense tensor of its shape, with elements."""
    return all(
        t is not None
        and t.layout is torch.strided
        and t.shape == shape
        and t.dtype in FLOATS
        and not t.is_meta
        and t.numel()
        for t, shape in zip(tensors, shapes, strict=True)
    )


def _of_layers(placement: Placement, flat: Tensor) -> list[Tensor]:
    """Return the parts of a vector (size,) by layer, in the shapes of the layers."""
    views, shapes = iter(placement.views(flat)), placement.layout.shapes
    return [
        flat.new_zeros(shape) if piece is None else next(views)
        for piece, shape in zip(placement.pieces, shapes, strict=True)
    ]


def _by_block(vectors: Tensor, others: Tensor) -> Tensor:
    """Return the inner products of vectors with others, block by block, (block, vector, other)."""
    # Multiplying a row by a matrix is several times as fast as two matrices.
    left, right = (v.unflatten(1, (-1, BLOCK)) for v in (vectors, others))
    columns = right.permute(1, 2, 0)
    return torch.cat([torch.bmm(row[:, None], columns) for row in left], 1)


def _products_of_columns(basis: int, columns: Columns) -> list[int]:
    """Return the index of the product for each column of a table that is filled before a step."""
    # Products of the gradient come first, then products of the displacement, each with the rows
    # of the buffer and with the displacements from past anchors.
    width = 4 + max(0, basis - 1)
    with_basis = [ANCHOR, *range(4, width)][:basis]
    products = {
        "grad_dot_previous": [PREVIOUS],
        "grad_sq": [GRADIENT],
        "grad_dot_displacement": [DISPLACEMENT],
        "grad_dot_basis": with_basis,
        "displacement_sq": [width + DISPLACEMENT],
        "displacement_dot_basis": [width + i for i in with_basis],
    }
    of_column = {
        columns.starts[name] + i: product
        for name, indexes in products.items()
        for i, product in enumerate(indexes)
    }
    return [of_column[column] for column in range(columns.n_columns)]


def _dense(tensor: Tensor) -> Tensor:
    """Return a dense tensor without its gradient."""
    return tensor.detach().to_dense()
