"""Follow the path of the parameters from reference to reference, on the device that trains.

Nothing here waits for the device: results go to tensors that are converted later, in
another thread. The buffers are three float32 vectors of the length of the parameters, one
more where plain torch measures, besides codes of past references, of a byte each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY, table_columns
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.rows import measured_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.sketch_torch.weights import tensor_weights
from trajstore.tracking.backends.choose import steps_class
from trajstore.tracking.backends.eager import StepsOnDevice
from trajstore.tracking.backends.huge_pages import huge_zeros
from trajstore.tracking.past_anchors import PastReferences
from trajstore.tracking.placement import Placement, all_here, local_part
from trajstore.tracking.precision import quiet
from trajstore.tracking.scaling import Scaling

# Rows of the frame.
DISPLACEMENT, REFERENCE = 0, 1


class Reference(NamedTuple):
    """A new window: its reference, coded, and what is known when it begins.

    Attributes
    ----------
    codes, scales : torch.Tensor
        Difference to the reference before; see `trajstore.sketch.deltas`.
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
    parameters : sequence of torch.Tensor or None
        The tensors that are followed, all on one device; None for those that are on other
        ranks.
    layout : Layout
        Their places in the flat vector.
    spec : RunSpec
        What is measured.
    placement : Placement, optional
        Which parts of them lie here; default: all.
    device : torch.device, optional
        Where vectors are kept and measured; default: where the parameters are.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        layout: Layout,
        spec: RunSpec,
        placement: Placement | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._layout, self._spec = layout, spec
        self.device = device or next(p.device for p in parameters if p is not None)
        self._placement = placement or all_here(layout)
        size = self._placement.size
        # The compiled loops read whole tensors.
        is_whole = self._placement.group is None
        steps: Any = steps_class(self.device) if is_whole else StepsOnDevice
        rows = huge_zeros(steps.N_GRADIENTS + 2, size, device=self.device)
        self._past = PastReferences(spec.basis)
        self._steps: Any
        if steps is StepsOnDevice:
            self._steps = StepsOnDevice(
                parameters, self._placement, spec, rows, self._past
            )
        else:
            whole = [p for p in parameters if p is not None]
            self._steps = steps(whole, layout, spec, rows, self._past)
        self._frame = rows[steps.N_GRADIENTS :]
        blocks = self._frame.unflatten(1, (-1, BLOCK))
        self._factors = {
            "displacement": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:]),
            "move": _factors(blocks[DISPLACEMENT], blocks[DISPLACEMENT:REFERENCE]),
            "reference": _factors(blocks[REFERENCE], blocks[REFERENCE : REFERENCE + 1]),
        }
        layers = self._placement.layer_of_block
        self._layer_of_block = torch.from_numpy(layers).to(self.device)
        # Of tensors without elements the rms is 0, not 0 / 0.
        sizes = torch.from_numpy(layout.sizes).clamp(min=1)
        self._sizes = sizes.to(self.device, torch.float64)
        self._gradient_energy = self._sizes.new_zeros(len(layout.names))
        self._n_gradients = 0
        self._window = 0
        self._reference_probes = self._sizes.new_zeros(0 if spec.exact else spec.probes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self._layout.size

    @property
    def reference(self) -> Tensor:
        """What lies here of the decoded reference, float32; changes with `move`."""
        return self._frame[REFERENCE]

    def keyframe(self) -> Tensor:
        """Return the decoded reference; if all is here, the tracker's own vector."""
        return self._placement.gather(self.reference)

    def allocate(self, n_rows: int) -> dict[str, Tensor]:
        """Room for the measurements of some steps.

        Parameters
        ----------
        n_rows : int
            How many steps.

        Returns
        -------
        dict from str to torch.Tensor
            What `trajstore.format.rows.measured_arrays` describes, with the step as first
            dimension.
        """
        # The second fold leaves the last few probes unwritten.
        return {
            name: torch.zeros(
                (n_rows, *shape), dtype=getattr(torch, dtype), device=self.device
            )
            for name, (dtype, shape) in measured_arrays(
                self._spec, self._layout.size
            ).items()
        }

    def start(self) -> Reference:
        """Take the parameters as they are for the first reference, without a code."""
        with quiet(self.device):
            return self._start()

    def _start(self) -> Reference:
        # Before the first window the reference is 0.
        self._steps.read_displacement()
        self.reference.copy_(self._frame[DISPLACEMENT])
        self._add_reference_probes()
        n_layers = len(self._layout.names)
        return Reference(
            codes=self._placement.gather(
                torch.zeros_like(self.reference, dtype=torch.int8)
            ),
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
        with quiet(self.device):
            return self._move()

    def _move(self) -> Reference:
        self._steps.read_displacement()
        arrival = self._arrival()
        codes, scales, all_scales = self._code_displacement()
        self.reference.add_(self._frame[DISPLACEMENT])
        self._past.append(codes, scales)
        weights = tensor_weights(
            (self._by_layer(self._products("move"))[:, 0] / self._sizes).sqrt(),
            (self._gradient_energy / self._sizes / max(self._n_gradients, 1)).sqrt(),
            self._sizes,
        )
        self._window += 1
        self._steps.start_window(self._window, weights)
        self._gradient_energy.zero_()
        self._n_gradients = 0
        self._add_reference_probes()
        return Reference(
            self._placement.gather(codes),
            all_scales,
            weights,
            arrival.float(),
            self._reference_probes.clone(),
        )

    def restore(
        self,
        window: int,
        keyframe: Tensor,
        codes: Callable[[int], tuple[Tensor, Tensor]],
        weights: Tensor,
        probes: Tensor,
        gradient_energies: Tensor,
    ) -> None:
        """Go on in a window of an earlier recording.

        Parameters
        ----------
        window : int
            Which window.
        keyframe : torch.Tensor
            float32, (size,): the last stored in full before the window's reference, or
            the first of all.
        codes : callable
            Returns codes and scales of the reference of a window.
        weights : torch.Tensor
            float32, (layer,): weights of the sketch in the window.
        probes : torch.Tensor
            float64, (probe,): probes of the reference; empty if recording is exact.
        gradient_energies : torch.Tensor
            float32, (step, layer): |g|^2 of the steps of the window so far.
        """
        with quiet(self.device):
            self._placement.spread(keyframe, self.reference)
            first = max(window - 1, 0) // KEYFRAME_EVERY * KEYFRAME_EVERY
            for earlier in range(first + 1, window + 1):
                self._add_to_reference(*self._on_device(codes(earlier)))
            for earlier in range(max(1, window + 1 - self._past.n_kept), window + 1):
                self._past.append(*self._on_device(codes(earlier)))
            if window > 0:
                self._steps.start_window(window, weights.to(self.device))
            self._window = window
            self._reference_probes.copy_(probes)
            # One by one, as they were added: sums of floats depend on the order.
            for energies in gradient_energies.to(self.device):
                self._gradient_energy += energies
            self._n_gradients = len(gradient_energies)

    def _on_device(self, code: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        codes = torch.zeros_like(self.reference, dtype=torch.int8)
        self._placement.spread(code[0], codes)
        scales = self._zeros(self._placement.size // BLOCK)
        self._placement.spread_over_blocks(code[1], scales)
        return codes, scales

    @property
    def previous_gradient(self) -> Tensor:
        """The gradient of the last step, float32 of shape ``(size,)``; may be set."""
        return self._placement.gather(self._steps.last_gradient)

    @previous_gradient.setter
    def previous_gradient(self, gradient: Tensor) -> None:
        self._placement.spread(gradient, self._steps.last_gradient)

    def forget_previous_gradient(self) -> None:
        """Make what the next step is compared with unknown: NaN."""
        for view in self._placement.views(self._steps.last_gradient):
            view.fill_(torch.nan)

    def displacement_sq(self) -> Tensor:
        """Squared distances to the reference by layer, float64 of shape (layer,)."""
        with quiet(self.device):
            self._steps.read_displacement()
            return self._by_layer(self._products("displacement"))[:, 0]

    def before_step(
        self, step: int, row: Mapping[str, Tensor], scaling: Scaling | None = None
    ) -> None:
        """Measure the gradient and the parameters that a step begins with.

        Parameters
        ----------
        step : int
            Optimizer step; selects the random signs.
        row : mapping from str to torch.Tensor
            One step of what `allocate` returned; overwritten.
        scaling : Scaling, optional
            What gradients contain that is no part of them.
        """
        self._steps.measure(self._gradients(scaling), step, row)

    def _gradients(self, scaling: Scaling | None) -> list[Tensor | None]:
        gradients = [None if p is None else p.grad for p in self._parameters]
        if scaling is None:
            return gradients
        scaled = {
            i: gradient
            for i, gradient in enumerate(gradients)
            if gradient is not None and id(self._parameters[i]) in scaling.parameters
        }
        if scaled:
            inverse = scaling.factor.reshape(()).double().reciprocal().float()
            with torch.no_grad():
                unscaled = torch._foreach_mul([*scaled.values()], inverse)
            for i, gradient in zip(scaled, unscaled, strict=True):
                gradients[i] = gradient
        return gradients

    def gradient_norm(self, scaling: Scaling | None) -> Tensor:
        """Return the norm of the gradients as they are, float32 on the device."""
        with torch.no_grad():
            squares = self._zeros(1)
            for gradient in self._placement.held(self._gradients(scaling)):
                if gradient is not None:
                    dense = local_part(gradient).to_dense()
                    squares += dense.float().square().sum().to(self.device)
            self._placement.add_up(squares)
            return squares.sqrt()[0]

    def after_step(self, row: Mapping[str, Tensor]) -> None:
        """Measure what the step did to the parameters.

        Parameters
        ----------
        row : mapping from str to torch.Tensor
            As given to `before_step`.
        """
        self._steps.after_step(row)
        self._steps.add_gradient_energy(row, self._gradient_energy)
        self._n_gradients += 1

    def measure(self, number: int, row: Mapping[str, Tensor]) -> None:
        """Measure the gradients that there are now, beside those of steps.

        Parameters
        ----------
        number : int
            Selects the random signs.
        row : mapping from str to torch.Tensor
            One step of what `allocate` returned; overwritten.
        """
        with self._steps.undisturbed():
            self._steps.measure(self._gradients(None), number, row)

    def measure_update(
        self, number: int, step: Mapping[str, Tensor], row: Mapping[str, Tensor]
    ) -> None:
        """Measure what a step did to the parameters as if it were their gradient.

        Parameters
        ----------
        number : int
            Selects the random signs.
        step : mapping from str to torch.Tensor
            As `before_step` and `after_step` have filled it.
        row : mapping from str to torch.Tensor
            Overwritten.
        """
        with torch.no_grad(), self._steps.undisturbed():
            self._steps.measure(self._updates(), number, row)
        # The update belongs to the parameters that the step began with.
        columns = table_columns(self._spec)
        tables, of_step = row["tables"], step["tables"]
        for name in ("displacement_sq", "displacement_dot_basis"):
            tables[:, columns[name]] = of_step[:, columns[name]]
        product = of_step[:, columns["update_dot_displacement"]]
        tables[:, columns["grad_dot_displacement"]] = product
        if self._spec.exact:
            row["displacement"].copy_(step["displacement"])
        else:
            row["probes"][1].copy_(step["probes"][1])

    def _updates(self) -> list[Tensor | None]:
        """Return the change of every parameter since `before_step`."""
        reference, displacement = (
            self._placement.views(self._frame[row]) for row in (REFERENCE, DISPLACEMENT)
        )
        updates = iter(
            # As `after_step` computes it: near the reference both differences are exact.
            (local_part(parameter).to(self.device, torch.float32) - r) - a
            for parameter, r, a in zip(
                self._placement.held(self._parameters),
                reference,
                displacement,
                strict=True,
            )
        )
        return [
            None if piece is None else next(updates) for piece in self._placement.pieces
        ]

    def is_where_last_step_led(self) -> bool:
        """Whether the parameters are what they were when `after_step` looked at them."""
        return bool(self._steps.is_where_last_step_led())

    def reference_sq(self) -> Tensor:
        """Squared norms of the reference by layer, float64 of shape (layer,)."""
        with quiet(self.device):
            return self._by_layer(self._products("reference"))[:, 0]

    @torch.no_grad()
    def gathered_parameters(self) -> Callable[[slice], Tensor]:
        """Get the parameters together.

        Returns
        -------
        callable
            Returns a part of them, float32 of shape ``(part,)``. If all of them are here
            they are read where they are, and must not change until then; otherwise the
            first rank has a copy in the host's memory, and others have nothing.
        """
        if self._placement.group is None:
            return self._read_parameters
        flat = self._zeros(self._placement.size)
        held = self._placement.held(self._parameters)
        for view, parameter in zip(self._placement.views(flat), held, strict=True):
            view.copy_(local_part(parameter))
        return self._placement.gather(flat).__getitem__

    @torch.no_grad()
    def _read_parameters(self, elements: slice) -> Tensor:
        part = self._zeros(elements.stop - elements.start)
        for offset, parameter in zip(
            self._layout.offsets.tolist(), self._parameters, strict=True
        ):
            assert parameter is not None
            first = max(elements.start, offset)
            last = min(elements.stop, offset + parameter.numel())
            if first < last:
                values = parameter.reshape(-1)[first - offset : last - offset]
                part[first - elements.start : last - elements.start] = values
        return part

    def _arrival(self) -> Tensor:
        """Products of the displacement with itself and the basis, (layer, 1 + basis)."""
        of_past = self._past.products(self._frame[: DISPLACEMENT + 1])
        products = torch.cat([self._products("displacement"), of_past[:, 0]], 1)
        return self._by_layer(products[:, : 1 + self._spec.basis])

    def _code_displacement(self) -> tuple[Tensor, Tensor, Tensor]:
        """Replace the displacement by its code, a chunk at a time.

        Returns
        -------
        codes, scales : torch.Tensor
            The code.
        all_scales : torch.Tensor
            Scales of all blocks, also of other ranks.
        """
        vector = self._frame[DISPLACEMENT]
        codes = torch.empty_like(vector, dtype=torch.int8)
        scales = self._empty(len(vector) // BLOCK)
        for elements, blocks in self._chunks():
            scales[blocks] = deltas_torch.block_scales(vector[elements])
        all_scales = self._placement.largest_of_blocks(scales)
        for elements, blocks in self._chunks():
            codes[elements] = deltas_torch.encode(vector[elements], scales[blocks])
            vector[elements] = deltas_torch.decode(codes[elements], scales[blocks])
        return codes, scales, all_scales

    def _add_to_reference(self, codes: Tensor, scales: Tensor) -> None:
        for elements, blocks in self._chunks():
            self.reference[elements] += deltas_torch.decode(
                codes[elements], scales[blocks]
            )

    def _add_reference_probes(self) -> None:
        """Add the probes of the displacement's row to those of the reference."""
        if not self._spec.exact:
            self._reference_probes += self._steps.probe_displacement()

    def _products(self, name: str) -> Tensor:
        """Inner products of rows of the frame, (block, other row)."""
        return torch.bmm(*self._factors[name])[:, 0]

    def _by_layer(self, block_sums: Tensor) -> Tensor:
        """Add up blocks tensor by tensor, float64 of shape (layer, column)."""
        sums = self._sizes.new_zeros(len(self._sizes), block_sums.shape[1])
        sums.index_add_(0, self._layer_of_block, block_sums.double())
        self._placement.add_up(sums)
        return sums

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        return deltas_torch.chunks(self._placement.size, self.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)


def _factors(vector: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Prepare inner products of blocks, (block, element), with those of other rows."""
    # A product of a row with a matrix is several times as fast as one with a column.
    return vector[:, None, :], others.permute(1, 2, 0)
