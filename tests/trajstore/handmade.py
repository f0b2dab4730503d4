"""Small runs written without any training, for tests of code that reads runs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import METRIC_BLOCK, step_arrays
from trajstore.format.checks import seal
from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.store.writer import Window, Writer

Array = npt.NDArray[Any]


def small_spec(shapes: Mapping[str, tuple[int, ...]], **changes: Any) -> RunSpec:
    """Describe a run of these parameters with small sketches, 4 steps in an epoch."""
    spec = RunSpec(
        names=tuple(shapes),
        shapes=tuple(shapes.values()),
        seed=1,
        sketch_bits=64,
        basis=2,
        probes=8,
        steps_per_epoch=4,
        reference_every=None,
        total_steps=None,
        exact=False,
    )
    return replace(spec, **changes)


SPEC = small_spec({"first.weight": (50, 60), "bias": (7,)})
SIZE = 4 * BLOCK  # three blocks and one
EXACT = replace(SPEC, exact=True)


def random_rows(first: int, n: int, spec: RunSpec = SPEC) -> dict[str, Array]:
    """Return rows of the steps from `first`, each its own window, 4 in an epoch."""
    rng = np.random.default_rng(first)
    arrays = step_arrays(spec, size=SIZE, n_metrics=METRIC_BLOCK, n_blocks=1)
    rows = {
        name: (100 * rng.random((n, *array.inner))).astype(array.dtype)
        for name, array in arrays.items()
        if name != "scalars"
    }
    steps = np.arange(first, first + n)
    rows["epoch"], rows["iteration"] = (part.astype("i4") for part in divmod(steps, 4))
    rows["window"] = steps.astype("i4")
    return rows


def random_window(c: int, spec: RunSpec = SPEC) -> Window:
    rng = np.random.default_rng(c)
    return Window(
        start=c,
        codes=rng.integers(-127, 128, SIZE, np.int8),
        scales=rng.random(SIZE // BLOCK, np.float32) * np.float32(0.001),
        weights=rng.random(len(spec.names), np.float32),
        arrival=rng.random((len(spec.names), 1 + spec.basis), np.float32),
        probes=rng.random(0 if spec.exact else spec.probes),
        keyframe=rng.random(SIZE, np.float32) if c % 32 == 0 else None,
    )


def write_run(
    path: Path,
    *,
    n_steps: int,
    status: str | None = "complete",
    spec: RunSpec = SPEC,
    n_measured: int = 0,
) -> None:
    """Write a run with a window for every step; without status it stays unfinished."""
    writer = Writer(path, spec)
    for c in range(n_steps):
        writer.append_window(random_window(c, spec))
    if n_steps:
        scalars = [{"loss": -float(k)} for k in range(n_steps)]
        writer.steps.append(random_rows(0, n_steps, spec), scalars)
    if n_measured:
        rows = random_rows(0, n_measured, spec) | {"step": np.arange(n_measured)}
        writer.measurement("other").append(rows, [{"note": 1.0}] * n_measured)
    if status is not None:
        writer.write_final(
            np.full(SIZE, n_steps, np.float32).__getitem__, status=status
        )
    writer.commit()
    writer.close()


Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def change_root_of(path: Path, edit: Edit) -> None:
    """Change attributes and metadata of arrays in the root document of a run, and seal it."""
    document = json.loads((path / "zarr.json").read_bytes())
    edit(document["attributes"], document["consolidated_metadata"]["metadata"])
    (path / "zarr.json").write_bytes(seal(document))
