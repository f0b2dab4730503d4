"""Write stores of any length and size, in the real format and with random contents."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import KEYFRAME_EVERY, n_blocks, n_columns, table_columns
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import sketch_fields
from trajstore.format.windows import Windows
from trajstore.planning.estimate import window_starts
from trajstore.sketch.window_sum import with_window_sums
from trajstore.store.writer import EndedWindow, Window, Writer

Shapes = dict[str, tuple[int, ...]]
RESNET18 = 11_173_962
"""Number of parameters of a ResNet-18 for 10 classes."""


def resnet18_shapes(n_params: int = RESNET18) -> Shapes:
    """Return the shapes of the 62 tensors of a ResNet-18 with about `n_params` parameters."""
    base = round(64 * np.sqrt(n_params / RESNET18))
    shapes: Shapes = {"conv1": (base, 3, 3, 3), **_norm("bn1", base)}
    before = base
    for stage in range(4):
        width = base << stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1"] = (width, before, 3, 3)
            shapes |= _norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes |= _norm(f"{name}.bn2", width)
            if before != width:
                shapes[f"{name}.shortcut"] = (width, before, 1, 1)
                shapes |= _norm(f"{name}.shortcut_bn", width)
            before = width
    return shapes | {"fc.weight": (10, before), "fc.bias": (10,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def write_run(
    path: Path,
    *,
    n_params: int,
    n_steps: int,
    steps_per_epoch: int,
    bits: int = 65536,
    with_scalars: bool = False,
) -> int:
    """Write a run, and return its number of windows; with all scalars, or the loss alone."""
    # Parameters follow a random walk whose steps the int8 code represents exactly; tables
    # are random. Values are inconsistent, but have the types and sizes of a real run.
    shapes = resnet18_shapes(n_params)
    spec = RunSpec(
        names=tuple(shapes),
        shapes=tuple(shapes.values()),
        seed=7,
        **sketch_fields(sum(map(math.prod, shapes.values())), bits),
        basis=3,
        probes=1024,
        steps_per_epoch=steps_per_epoch,
        reference_every=None,
        total_steps=None,
        exact=False,
    )
    # As of an optimizer whose windows need the sums of their gradients.
    spec = with_window_sums(spec, Windows.of(spec), is_sgd=False)
    rng = np.random.default_rng(0)
    writer = Writer(path, spec)
    walk = _Walk(Layout(spec.names, spec.shapes), rng)
    starts = list(window_starts(Windows.of(spec), n_steps))
    for c, (start, stop) in enumerate(zip(starts, [*starts[1:], n_steps], strict=True)):
        writer.append_window(walk.window(c, start, spec))
        for first in range(start, stop, 2048):
            steps = np.arange(first, min(first + 2048, stop))
            rows = _rows(steps, c, spec, rng)
            scalars = [{"loss": 0.1}] * len(steps)
            if with_scalars:
                scalars = _scalars(steps, n_steps, rows, spec)
            writer.steps.append(rows, scalars)
            writer.commit()
        writer.end_window(_ended(spec, walk.layout, rng))
    writer.write_final(lambda part: walk.point[part], status="complete")
    writer.commit()
    writer.close()
    return len(starts)


class _Walk:
    """The parameters of the synthetic run, which change at random from window to window."""

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout, self.rng = layout, rng
        inside = np.zeros(layout.size, bool)
        for offset, size in zip(layout.offsets, layout.sizes, strict=True):
            inside[offset : offset + size] = True
        self.inside = inside
        normal = rng.standard_normal(layout.size, np.float32)
        self.point = 0.02 * normal * inside

    def window(self, index: int, start: int, spec: RunSpec) -> Window:
        n, n_layers = self.layout.size, len(spec.names)
        scales = np.full(n // BLOCK, 2e-5, np.float32)
        normal = self.rng.standard_normal(n, np.float32)
        codes = (np.clip(32 * normal, -127, 127) * self.inside).astype(np.int8)
        if index == 0:
            codes[:] = 0
        self.point = self.point + codes * np.float32(2e-5)
        return Window(
            start=start,
            codes=codes,
            scales=scales,
            weights=np.exp(self.rng.standard_normal(n_layers)).astype(np.float32),
            arrival=np.zeros((n_layers, 1 + spec.basis), np.float32),
            probes=self.rng.standard_normal(spec.probes),
            keyframe=self.point if index % KEYFRAME_EVERY == 0 else None,
        )


def _ended(spec: RunSpec, layout: Layout, rng: np.random.Generator) -> EndedWindow:
    """Return random energies of blocks, and random sums of gradients and displacements."""
    n_folds, n = spec.window_folds, spec.sketch_numbers
    return EndedWindow(
        energies=rng.uniform(0.1, 1, layout.size // BLOCK).astype(np.float16),
        sum_signs=rng.integers(0, 256, (n_folds, n // 8), np.uint8),
        sum_scales=np.ones((n_folds, n_blocks(n)), np.float32),
        displacement_codes=rng.integers(0, 256, spec.sketch_bits // 8, np.uint8),
        displacement_scales=np.ones(n_blocks(n), np.float32),
    )


def _scalars(
    steps: npt.NDArray[np.int64],
    n_steps: int,
    rows: dict[str, npt.NDArray[np.generic]],
    spec: RunSpec,
) -> list[dict[str, float]]:
    """Return the scalars of rows: a falling loss, and the norms that follow from tables."""
    columns, tables = table_columns(spec), rows["tables"]
    squares = {
        f"{name}_norm": tables[..., columns[table].start].sum(1, dtype=float)
        for name, table in (("grad", "grad_sq"), ("update", "update_sq"))
    }
    noise = np.random.default_rng(int(steps[0])).standard_normal(len(steps))
    loss = 2.0 * np.exp(-4.0 * steps / n_steps + 0.2 * noise)
    values = {name: np.sqrt(square) for name, square in squares.items()}
    values |= {"loss": loss, "lr": np.full(len(steps), 0.1), "wall_time": 0.01 * steps}
    return [
        {name: float(column[i]) for name, column in values.items()}
        for i in range(len(steps))
    ]


def _rows(
    steps: npt.NDArray[np.int64], window: int, spec: RunSpec, rng: np.random.Generator
) -> dict[str, npt.NDArray[np.generic]]:
    n, n_layers = len(steps), len(spec.names)
    per_epoch = spec.steps_per_epoch or 1
    tables = rng.standard_normal((n, n_layers, n_columns(spec)), np.float32)
    for name, columns in table_columns(spec).items():
        if name.endswith("_sq"):
            tables[..., columns] = 1 + np.square(tables[..., columns])
    return {
        "epoch": (steps // per_epoch).astype(np.int32),
        "iteration": (steps % per_epoch).astype(np.int32),
        "window": np.full(n, window, np.int32),
        "tables": tables,
        "signs": rng.integers(0, 256, (n, spec.sketch_bits // 8), np.uint8),
        "scales": np.ones((n, n_blocks(spec.sketch_numbers)), np.float32),
        "gradient_probes": rng.integers(-127, 128, (n, spec.probes), np.int8),
        "displacement_probes": rng.standard_normal((n, spec.probes)).astype(np.float16),
        "probe_scales": np.ones((n, 2), np.float32),
    }
