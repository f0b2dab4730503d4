"""Follow the parameters from anchor to anchor, on the training device.

Measuring a step does not wait for the device: the results go to tensors that another thread
converts later. The buffers are three float32 vectors as long as the parameters (four with
`trajstore.tracking.backends.eager`, the memory of two if compact) and the codes of past anchors, each
one byte per element.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY, table_columns
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.rows import measured_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.sketch_torch.weights import tensor_weights
from trajstore.tracking import moves
from trajstore.tracking.backends.choose import choose_backend
from trajstore.tracking.backends.double import DoubleBackend
from trajstore.tracking.backends.protocol import (
    DISPLACEMENT,
    GRADIENT,
    LastStep,
    StepBackend,
)
from trajstore.tracking.gathering import gathered, norm_of, sums_by_layer
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement, local_part, unsharded
from trajstore.tracking.precision import no_grad_float32
from trajstore.tracking.scaling import Scaling, unscaled
from trajstore.tracking.unknown_values import forget_squares
from trajstore.tracking.window_sums import EndedWindow, WindowSums

FAR_BACK: Final = 8
"""Probes of an anchor are computed again if it is this many times closer to 0 than to the one before."""


class CodedAnchor(NamedTuple):
    """The coded anchor of a new window, with measurements at the window's start."""

    # Codes, int8 (size,), and scales, float32 (block,), of the difference from the previous
    # anchor; see `trajstore.sketch.deltas`.
    codes: Tensor
    scales: Tensor
    weights: Tensor  # float32 (layer,): weights of the sketch in this window
    # float32 (layer, 1 + basis): products of the displacement (from the previous anchor to the
    # first iterate of this window) with itself and with the basis of the previous window.
    arrival: Tensor
    probes: Tensor  # float64 (probe,): probes of the anchor; empty in exact mode


class Tracker:
    """Follows parameters, all on one device, from anchor to anchor."""

    def __init__(
        self,
        parameters: Sequence[
            Tensor | None
        ],  # one per layer; None if it is not on this rank
        layout: Layout,
        spec: RunSpec,
        placement: Placement | None = None,  # default: no sharding
        device: torch.device | None = None,  # default: the device of the parameters
        backend: type[StepBackend] | None = None,  # default: the fastest on the device
    ) -> None:
        self._parameters = list(parameters)
        # Layers whose tensors no optimizer holds any more.
        self._idle: frozenset[int] = frozenset()
        self._spec = spec
        self.device = device or next(p.device for p in parameters if p is not None)
        self._placement = placement or unsharded(layout)
        if backend is None:
            is_whole = self._placement.group is None
            backend = choose_backend(self.device, is_whole=is_whole)
            backend = DoubleBackend if spec.float64 else backend
        self._past = PastAnchors(spec.basis)
        self._backend: StepBackend = backend(
            parameters, self._placement, spec, self._past, self.device
        )
        self.joins_updates = self._backend.joins_updates
        """Whether `before_step` can also measure the update of the last step."""
        self.finish = self._backend.finish
        """See `trajstore.tracking.backends.protocol.StepBackend.finish`."""
        self.sums = WindowSums(spec, self._placement, self._backend, self.device)
        # The clamp makes the rms of an empty tensor 0 instead of 0 / 0.
        sizes = torch.from_numpy(layout.sizes).clamp(min=1)
        self._sizes = sizes.to(self.device, torch.float64)
        self._by_layer = partial(
            sums_by_layer,
            self._placement,
            torch.from_numpy(self._placement.layer_of_block).to(self.device),
        )
        self._gradient_energy = self._sizes.new_zeros(len(layout.names))
        self._n_gradients = 0
        self._anchor_probes = self._sizes.new_zeros(0 if spec.exact else spec.probes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self._placement.layout.size

    @property
    def anchor(self) -> Tensor:
        """The part of the decoded anchor on this rank, which `move` changes."""
        return self._backend.anchor

    def keyframe(self) -> Tensor:
        """Return the whole decoded anchor; without sharding, this is the tracker's own vector."""
        return self._placement.gather(self.anchor)

    def allocate(self, n_rows: int) -> dict[str, Tensor]:
        """Return buffers for `n_rows` steps: `measured_arrays` with a leading step axis."""
        # The buffers begin as zeros because the second fold does not write the last few probes.
        return {
            name: torch.zeros(
                (n_rows, *shape), dtype=getattr(torch, dtype), device=self.device
            )
            for name, (dtype, shape) in measured_arrays(self._spec, self.size).items()
        }

    def start(self) -> CodedAnchor:
        """Make the parameters the first anchor, whose codes are zero."""
        with no_grad_float32(self.device):
            return self._start()

    def _start(self) -> CodedAnchor:
        # The anchor is 0 before the first window, so the displacement equals the parameters.
        if self._spec.exact:
            for piece in self._backend.pieces:
                self.anchor[piece] = self._backend.read_displacement(piece)[0]
        else:
            self._add_anchor_probes(
                moves.probes_of(self._backend, lambda a, anchor: anchor.copy_(a))
            )
        self.sums.start(0)
        n_layers = len(self._placement.layout.names)
        return CodedAnchor(
            codes=self._placement.gather(
                torch.zeros_like(self.anchor, dtype=torch.int8)
            ),
            scales=self._zeros(self._placement.layout.size // BLOCK),
            weights=self._zeros(n_layers).fill_(1.0),
            arrival=self._zeros(n_layers, 1 + self._spec.basis).fill_(torch.nan),
            probes=self._anchor_probes.clone(),
        )

    def move(self, *, overwrites: bool = False) -> CodedAnchor:
        """Begin a window: code the displacement, and move the anchor by the decoded code."""
        # Later calls do not change the returned tensors, except that `overwrites` takes the memory
        # of the oldest codes that are kept, which nobody else may need.
        with no_grad_float32(self.device):
            return self._move(overwrites=overwrites)

    def _move(self, *, overwrites: bool) -> CodedAnchor:
        found = moves.arrive(self._backend, self._past)
        arrival = self._by_layer(found.products[:, : 1 + self._spec.basis])
        all_scales = self._placement.block_max(found.scales)
        codes = self._past.take_oldest() if overwrites else None
        if codes is None:
            codes = torch.empty_like(self.anchor, dtype=torch.int8)
        squares, probes = moves.move(
            self._backend, codes, found, probes=not self._spec.exact
        )
        self._past.append(codes, found.scales)
        moved_sq = self._by_layer(squares)[:, 0]
        weights = tensor_weights(
            (moved_sq / self._sizes).sqrt(),
            (self._gradient_energy / self._sizes / max(self._n_gradients, 1)).sqrt(),
            self._sizes,
        )
        if self._spec.float64:
            # Only ratios matter; without this, tiny gradients would leave the range of float32.
            weights /= weights.amax()
        self._placement.copy_from_first(weights)  # which knows all energies
        window = self.sums.window + 1
        self._backend.start_window(window, weights)
        self.sums.start(window)
        self._gradient_energy.zero_()
        self._n_gradients = 0
        if probes is not None:
            self._add_anchor_probes(probes)
        # A sum of probes lacks digits after a long way back; an accelerator would have to wait.
        way_back = FAR_BACK**2 * self.anchor_sq().sum()
        is_far = self.device.type == "cpu" and moved_sq.sum().numpy() > way_back.numpy()
        if is_far and probes is not None:
            self._anchor_probes.zero_()
            self._add_anchor_probes(
                moves.probes_of(self._backend, lambda a, anchor: a.copy_(anchor))
            )
        return CodedAnchor(
            self._placement.gather(codes),
            all_scales,
            weights,
            arrival.float(),
            self._anchor_probes.clone(),
        )

    def end_window(self) -> EndedWindow:
        """Return what is known of the current window at its end."""
        with no_grad_float32(self.device):
            return self.sums.end()

    def restore(
        self,
        window: int,
        keyframe: Tensor,  # float32 (size,): the last keyframe before the window
        codes: Callable[[int], tuple[Tensor, Tensor]],  # codes and scales by window
        weights: Tensor,  # float32 (layer,): weights of the sketch in the window
        probes: Tensor,  # float64 (probe,): probes of the anchor; empty in exact mode
        gradient_energies: Tensor,  # float32 (step, layer): |g|^2 in the window so far
        sums: Mapping[str, Tensor] | None,  # `WindowSums.state`
    ) -> None:
        """Continue in the middle of a window of an earlier recording."""
        with no_grad_float32(self.device):
            self._placement.scatter(keyframe, self.anchor)
            first = max(window - 1, 0) // KEYFRAME_EVERY * KEYFRAME_EVERY
            for earlier in range(first + 1, window + 1):
                self._add_to_anchor(*self._on_device(codes(earlier)))
            for earlier in range(max(1, window + 1 - self._past.n_kept), window + 1):
                self._past.append(*self._on_device(codes(earlier)))
            if window > 0:
                self._backend.start_window(window, weights.to(self.device))
            self.sums.restore(window, len(gradient_energies), sums)
            self._anchor_probes.copy_(probes)
            # Add step by step, as the recording did: sums of floats depend on the order.
            for energies in gradient_energies.to(self.device):
                self._gradient_energy += energies
            self._n_gradients = len(gradient_energies)

    def _on_device(self, code: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        codes = torch.zeros_like(self.anchor, dtype=torch.int8)
        self._placement.scatter(code[0], codes)
        scales = self._zeros(self._placement.size // BLOCK)
        self._placement.scatter_blocks(code[1], scales)
        return codes, scales

    @property
    def previous_gradient(self) -> Tensor:
        """The gradient of the last step, float32 (size,), which callers may set."""
        return self._placement.gather(self._backend.held(GRADIENT))

    @previous_gradient.setter
    def previous_gradient(self, gradient: Tensor) -> None:
        held = torch.empty_like(self.anchor)
        self._placement.scatter(gradient, held)
        self._backend.hold(GRADIENT, held)

    def forget_previous_gradient(self) -> None:
        """Replace the last gradient by NaN, so that the next product with it is NaN."""
        self.finish()
        # The sums of the window may contain this gradient, although it belongs to no step.
        self.sums.forget()
        self._forget(GRADIENT)

    def _forget(self, which: int) -> None:
        """Replace a vector of the backend by NaN."""
        vector = self._backend.held(which)
        for view in self._placement.views(vector):
            view.fill_(torch.nan)
        self._backend.hold(which, vector)

    def displacement_sq(self) -> Tensor:
        """Return the squared distance from the anchor in each layer, float64 (layer,)."""
        with no_grad_float32(self.device):
            return self._by_layer(moves.squares(self._backend))[:, 0]

    def before_step(
        self,
        step: int,
        row: Mapping[str, Tensor],
        scaling: Scaling | None = None,
        gradients: Sequence[Tensor | None] | None = None,
        last: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Measure gradients and parameters before a step, whose number selects random signs."""
        # Overwrites `row`, which is one step of the buffers from `allocate`. The gradients, by
        # default those of the parameters, are divided by the factor in `scaling`. Also does what
        # `after_step` does with the row `last`, if the backend joins updates.
        gradients = self.gradients(scaling) if gradients is None else gradients
        self.sums.n_steps += 1
        if last is None:
            self._backend.measure(gradients, step, row)
        else:
            last_step = LastStep(last, self._gradient_energy)
            self._backend.measure(gradients, step, row, last_step)
            self._n_gradients += 1
        if self._spec.scaled and self.device.type != "cpu":
            forget_squares(row, self._spec)

    @property
    def parameters(self) -> list[Tensor | None]:
        """The tensors that are followed, one per layer; None if a layer is not on this rank."""
        return self._parameters

    def follow(
        self, parameters: Sequence[Tensor | None], *, idle: Collection[int] = ()
    ) -> None:
        """Follow other tensors of the same shapes; ignore gradients of the layers `idle`."""
        self._parameters, self._idle = list(parameters), frozenset(idle)
        self._backend.follow(self._parameters)

    @contextmanager
    def at(self, copies: Sequence[Tensor | None]) -> Iterator[None]:
        """Measure copies of the parameters, which were made earlier, instead of the parameters."""
        parameters, self._parameters = self._parameters, list(copies)
        self._backend.follow(self._parameters)
        try:
            yield
        finally:
            self._parameters = parameters
            self._backend.follow(parameters)

    def gradients(self, scaling: Scaling | None = None) -> list[Tensor | None]:
        """Return the current gradients, one per layer, divided by the factor in `scaling`."""
        gradients = [None if p is None else p.grad for p in self._parameters]
        for i in self._idle:
            gradients[i] = None
        if scaling is None:
            return gradients
        return unscaled(gradients, self._parameters, scaling)

    def gradient_norm(self, scaling: Scaling | None) -> Tensor:
        """Return the norm of the current gradients, a float64 scalar on the device."""
        with torch.no_grad():
            return norm_of(self.gradients(scaling), self._placement, self.device)

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """Measure the update; `row` is the row that `before_step` overwrote."""
        self._backend.after_step(LastStep(row, self._gradient_energy))
        self._n_gradients += 1

    def skip_after_step(self, row: Mapping[str, Tensor]) -> None:
        """Leave out `after_step` for a row, but count its gradient."""
        self.finish()
        squares = row["tables"][:, table_columns(self._spec)["grad_sq"].start]
        self._gradient_energy += squares.to(getattr(torch, self._spec.float_type))
        self._n_gradients += 1

    def forget_displacement(self) -> None:
        """Replace the displacement of a measured row by NaN, so that its update is NaN."""
        self.finish()
        self._forget(DISPLACEMENT)

    def measure(self, number: int, row: Mapping[str, Tensor]) -> None:
        """Measure the current gradients outside a step; `number` selects the random signs."""
        with self._backend.preserve_state():
            self._backend.measure(self.gradients(), number, row)

    def measure_update(
        self, number: int, step: Mapping[str, Tensor], row: Mapping[str, Tensor]
    ) -> None:
        """Measure the update of a measured step as if it were a gradient."""
        with torch.no_grad(), self._backend.preserve_state():
            self._backend.measure(self._updates(), number, row)
            self.finish()
        # An update begins at the parameters before the step: copy their measurements.
        columns = table_columns(self._spec)
        tables, step_tables = row["tables"], step["tables"]
        for name in ("displacement_sq", "displacement_dot_basis"):
            tables[:, columns[name]] = step_tables[:, columns[name]]
        product = step_tables[:, columns["update_dot_displacement"]]
        tables[:, columns["grad_dot_displacement"]] = product
        if self._spec.exact:
            row["displacement"].copy_(step["displacement"])
        else:
            row["probes"][1].copy_(step["probes"][1])

    def _updates(self) -> list[Tensor | None]:
        """Return the change of each parameter since `before_step`; None if not on this rank."""
        anchor, displacement = (
            self._placement.views(vector)
            for vector in (self.anchor, self._backend.held(DISPLACEMENT))
        )
        updates = iter(
            # Subtract in this order, as `after_step` does: near the anchor both results are exact.
            (local_part(parameter).to(self.device, r.dtype) - r) - a
            for parameter, r, a in zip(
                self._placement.local(self._parameters),
                anchor,
                displacement,
                strict=True,
            )
        )
        return [
            None if piece is None else next(updates) for piece in self._placement.pieces
        ]

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""
        with self._backend.preserve_state():
            return self._backend.parameters_unchanged_since_step()

    @torch.no_grad()
    def has_moved(self) -> bool:
        """Return whether the parameters differ from those in `before_step`; waits."""
        moved = any((u.abs() > 0).any() for u in self._updates() if u is not None)
        return not self._placement.all_agree(here=not moved)

    def anchor_sq(self) -> Tensor:
        """Return the squared norm of the anchor in each layer, float64 (layer,)."""
        with no_grad_float32(self.device):
            products = moves.block_products(self.anchor, self.anchor[None])
            return self._by_layer(products)[:, 0]

    def gathered_parameters(self) -> Callable[[slice], Tensor]:
        """Return a function that returns a range of the parameters, (element,)."""
        return gathered(self._parameters, self._placement, self.anchor)

    def _add_to_anchor(self, codes: Tensor, scales: Tensor) -> None:
        for elements, blocks in self._chunks():
            self.anchor[elements] += deltas_torch.decode(
                codes[elements], scales[blocks]
            )

    def _add_anchor_probes(self, probes: Tensor) -> None:
        """Add probes, which are those of this rank, to the probes of the anchor."""
        self._placement.all_reduce(probes)
        self._anchor_probes += probes

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        return deltas_torch.chunks(self._placement.size, self.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)
