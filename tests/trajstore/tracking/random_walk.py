"""Let a tracker follow a random walk, and measure the walk in float64 with NumPy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed as dist

from trajstore.format.arrays import table_columns
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch import deltas
from trajstore.sketch.sketch import probes_of, sketch_of
from trajstore.sketch.weights import tensor_weights
from trajstore.tracking.placement import Placement, unsharded
from trajstore.tracking.tracker import CodedAnchor, Tracker
from trajstore.tracking.window_sums import EndedWindow

SHAPES = {"matrix": (32, 32), "empty": (0, 3), "bias": (70,), "scalar": ()}
"""The matrix fills its blocks, so that some row of the fold has elements of two tensors."""

N_STEPS = 5
"""Every step but the first two begins a window."""


def spec_of(shapes: Mapping[str, Any], **options: Any) -> RunSpec:
    document: dict[str, Any] = {
        "names": tuple(shapes),
        "shapes": tuple(shapes.values()),
        "seed": 3,
        "sketch_bits": 1024,
        "basis": 3,
        "probes": 64,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
    return RunSpec.from_json(document | options)


class Walk(NamedTuple):
    """A walk and its measurements by a tracker; vectors are float32 (size,)."""

    spec: RunSpec
    rows: dict[str, Any]  # measurements, with a leading step axis
    gradients: list[Any]
    before: list[Any]  # parameters before each step
    after: list[Any]  # parameters after each step
    window: list[int]  # window of each step
    anchors: list[Any]  # `CodedAnchor` of each window, with NumPy arrays
    ended: list[Any]  # `EndedWindow` of each window, with NumPy arrays
    unchanged: bool  # answer of the tracker before a parameter was changed
    unchanged_after_change: bool  # answer of the tracker after a parameter was changed


@contextmanager
def one_rank() -> Iterator[Any]:
    """Make a process group that contains only this process."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def unchanged_tensor(tensor: Any) -> Any:
    return tensor


def follow(
    backend: type,
    *,
    device: str = "cpu",
    group: Any = None,
    arrange: Mapping[str, Callable[[Any], Any]] | None = None,
    arrange_gradient: Mapping[str, Callable[[Any], Any]] | None = None,
    measures_aside: bool = False,
    **options: Any,
) -> Walk:
    """Let a tracker follow a random walk; `arrange` changes types or strides of tensors."""
    generator = torch.Generator().manual_seed(0)
    arrange, arrange_gradient = arrange or {}, arrange_gradient or {}

    def draw(shape: Any) -> Any:
        return torch.randn(shape, generator=generator).to(device)

    parameters = {
        name: arrange.get(name, unchanged_tensor)(draw(shape))
        for name, shape in SHAPES.items()
    }
    spec = spec_of(SHAPES, **({"sketch_bits": 512} | options))
    if not (spec.exact or spec.is_packed or spec.float64):
        spec = replace(spec, energies=True, window_folds=2)
    if not (spec.exact or spec.float64):
        spec = replace(spec, displacement_sum=True)
    layout = Layout(spec.names, spec.shapes)
    placement = unsharded(layout)
    if group is not None:
        placement = Placement(layout, placement.pieces, group)

    def flat(tensors: Mapping[str, Any]) -> Any:
        dense = {
            name: (torch.zeros(SHAPES[name]) if t is None else t.to_dense()).float()
            for name, t in tensors.items()
        }
        return layout.flatten(
            {n: t.resolve_neg().cpu() for n, t in dense.items()}
        ).copy()

    tracker = Tracker([*parameters.values()], layout, spec, placement, backend=backend)
    tracker.sums.least_steps = 1
    rows = tracker.allocate(N_STEPS)
    # The second fold leaves the last few probes unwritten.
    rows["tables"].fill_(torch.nan)
    anchors = [tracker.start()]
    walk = Walk(
        spec, {}, [], [], [], [], [], [], unchanged=True, unchanged_after_change=True
    )
    for step in range(N_STEPS):
        if step > 1:
            walk.ended.append(tracker.end_window())
            anchors.append(tracker.move())
        for i, (name, parameter) in enumerate(parameters.items()):
            gradient = arrange.get(name, unchanged_tensor)(draw(parameter.shape))
            gradient = arrange_gradient.get(name, unchanged_tensor)(gradient)
            # Some parameters have no gradient in some steps.
            parameter.grad = None if (step + i) % 5 == 4 else gradient
        walk.gradients.append(flat({n: p.grad for n, p in parameters.items()}))
        walk.before.append(flat(parameters))
        walk.window.append(len(anchors) - 1)
        row = {name: values[step] for name, values in rows.items()}
        tracker.before_step(step, row)
        if measures_aside and step % 2:
            aside = {name: values[0] for name, values in tracker.allocate(1).items()}
            tracker.measure(100 + step, aside)
            tracker.finish()
            np.testing.assert_array_equal(aside["tables"][:, 1], row["tables"][:, 1])
        for parameter in parameters.values():
            parameter.add_(0.01 * draw(parameter.shape))
        tracker.after_step(row)
        walk.after.append(flat(parameters))
    unchanged = tracker.parameters_unchanged_since_step()
    walk.ended.append(tracker.end_window())
    changed = parameters["bias"]
    # The tracker rounds float64 to float32, so change the last bit of the float32 number.
    before = changed[3].float() if changed.dtype is torch.float64 else changed[3]
    changed[3] = torch.nextafter(before, torch.full_like(before, 9.0))
    return walk._replace(
        rows={name: values.cpu().numpy().copy() for name, values in rows.items()},
        anchors=[CodedAnchor._make(t.cpu().numpy().copy() for t in a) for a in anchors],
        ended=[
            EndedWindow._make(t.cpu().numpy().copy() for t in e) for e in walk.ended
        ],
        unchanged=unchanged,
        unchanged_after_change=tracker.parameters_unchanged_since_step(),
    )


class Expected(NamedTuple):
    """Measurements of a walk by NumPy, float64 except the codes."""

    tables: Any  # (step, layer, column)
    signs: Any
    scales: Any
    probes: Any  # (step, 2, probe)
    arrival: Any  # (window, layer, 1 + basis)
    weights: Any  # (window, layer)
    anchor_probes: Any  # (window, probe)


def expected(walk: Walk) -> Expected:
    """Measure a walk with float64 products and the reference implementation."""
    spec = walk.spec
    layout = Layout(spec.names, spec.shapes)
    columns = table_columns(spec)

    def by_layer(a: Any, b: Any) -> Any:
        tensors = layout.unflatten(np.multiply(a, b, dtype=np.float64))
        return np.array([tensor.sum() for tensor in tensors.values()])

    anchors = [walk.before[0]]
    for coded in walk.anchors[1:]:
        anchors.append(anchors[-1] + deltas.decode(coded.codes, coded.scales))

    def basis_of(window: int) -> Sequence[Any]:
        past = (anchors[max(window - 2**j, 0)] for j in range(spec.basis - 1))
        anchor = np.float64(anchors[window])
        return [anchor, *(anchor - np.float64(p) for p in past)][: spec.basis]

    n_measured = columns["update_dot_displacement"].stop
    tables = np.full((N_STEPS, len(spec.names), n_measured), np.nan)
    previous = np.zeros(layout.size)
    for k, window in enumerate(walk.window):
        g, displacement = walk.gradients[k], walk.before[k] - anchors[window]
        update = np.float64(walk.after[k]) - walk.before[k]
        products = {
            "grad_dot_previous": [by_layer(g, previous)],
            "grad_sq": [by_layer(g, g)],
            "grad_dot_displacement": [by_layer(g, displacement)],
            "grad_dot_basis": [by_layer(g, s) for s in basis_of(window)],
            "displacement_sq": [by_layer(displacement, displacement)],
            "displacement_dot_basis": [
                by_layer(displacement, s) for s in basis_of(window)
            ],
            "update_sq": [by_layer(update, update)],
            "update_dot_displacement": [by_layer(update, displacement)],
        }
        for name, values in products.items():
            if values:
                tables[k][:, columns[name]] = np.stack(values, 1)
        previous = g

    n_windows, n_layers = len(anchors), len(spec.names)
    arrival = np.full((n_windows, n_layers, 1 + spec.basis), np.nan)
    weights = np.ones((n_windows, n_layers))
    sizes = np.maximum(layout.sizes, 1)
    for window in range(1, n_windows):
        [first, *_] = [k for k, w in enumerate(walk.window) if w == window]
        x = walk.before[first] - anchors[window - 1]
        factors = [x, *basis_of(window - 1)]
        arrival[window] = np.stack([by_layer(x, factor) for factor in factors], 1)
        move = np.float64(anchors[window]) - anchors[window - 1]
        gradients = [
            g
            for g, w in zip(walk.gradients, walk.window, strict=True)
            if w == window - 1
        ]
        energy = np.mean([by_layer(g, g) for g in gradients], 0)
        weights[window] = tensor_weights(
            np.sqrt(by_layer(move, move) / sizes), np.sqrt(energy / sizes), sizes
        )
        if spec.float64:
            weights[window] /= weights[window].max()
    if spec.exact:
        return Expected(tables, None, None, None, arrival, weights, None)

    codes, probes = [], []
    sketch, probe_folded = sketch_of(spec, layout), probes_of(spec, layout)

    def folded(vector: Any) -> Any:
        return vector[layout.packed_elements] if spec.is_packed else vector

    def probe(vector: Any) -> Any:
        return probe_folded(folded(vector))

    for k, window in enumerate(walk.window):
        # Weights are float32, as is their product with the gradient.
        block_weights = weights[window].astype(np.float32)[layout.layer_of_block]
        weighted = walk.gradients[k].reshape(len(block_weights), -1)
        weighted = (weighted * block_weights[:, None]).reshape(-1)
        codes.append(replace(sketch, window=window).encode(folded(weighted), k))
        vectors = walk.gradients[k], walk.before[k] - anchors[window]
        probes.append([probe(vector) for vector in vectors])
    signs, scales = (np.array(values) for values in zip(*codes, strict=True))
    anchor_probes = np.array([probe(anchor) for anchor in anchors])
    return Expected(
        tables, signs, scales, np.array(probes), arrival, weights, anchor_probes
    )
