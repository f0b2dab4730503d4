"""Values that trackers receive, computed from recorded rows."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import table_columns
from trajstore.format.run_spec import RunSpec

Array = npt.NDArray[Any]

RUN_GROUP: Final = "trajectory"
LAYER_GROUP: Final = "layer_"
"""Values of the whole run are called ``trajectory/loss``, values of a layer
``layer_grad_norm/NAME``."""

WALL_TIME: Final = "wall_time"


class StepValues(NamedTuple):
    """Values of one step for trackers."""

    step: int
    elapsed: float
    """Seconds since recording began."""
    values: dict[str, float]


class Rows(NamedTuple):
    """Recorded rows of consecutive steps, as the writer thread stores them."""

    first: int
    """Optimizer step of the first row."""
    tables: Array
    """Products by layer, float (step, layer, quantity)."""
    scalars: Sequence[Mapping[str, float]]


def chosen_layers(names: Sequence[str], layers: bool | Sequence[str]) -> list[int]:
    """Return the indices of layers that are all or none, or match one of several patterns."""
    if isinstance(layers, bool):
        return list(range(len(names))) if layers else []
    return [
        i
        for i, name in enumerate(names)
        if any(fnmatchcase(name, pattern) for pattern in layers)
    ]


def step_values(
    rows: Rows,
    spec: RunSpec,
    *,
    every: int,
    layers: Sequence[int],
    previous_sq: Array | None,
) -> list[StepValues]:
    """Return the values of every `every`-th step; `previous_sq` is |g|^2 of the row before."""
    # Values that cannot be known are left out: the cosine of the first gradient and the one
    # before, and what needs the norm of the parameters if the recording has no basis.
    chosen = [i for i in range(len(rows.scalars)) if (rows.first + i) % every == 0]
    found = []
    for i in chosen:
        before = _squares(rows.tables[i - 1], spec) if i else previous_sq
        quantities = _quantities(rows.tables[i], before, spec)
        scalars = rows.scalars[i]
        values = {
            f"{RUN_GROUP}/{name}": value
            for name, value in scalars.items()
            if name != WALL_TIME
        }
        # Norms of the whole run are among the scalars.
        for name in ("update_ratio", "adjacent_cosine"):
            if name in quantities:
                values[f"{RUN_GROUP}/{name}"] = float(quantities[name][-1])
        for name, by_layer in quantities.items():
            for layer in layers:
                key = f"{LAYER_GROUP}{name}/{spec.names[layer]}"
                values[key] = float(by_layer[layer])
        elapsed = scalars.get(WALL_TIME, 0.0)
        found.append(StepValues(rows.first + i, elapsed, values))
    return found


def last_squares(rows: Rows, spec: RunSpec) -> Array:
    """Return |g|^2 by layer of the last row, float64 (layer,)."""
    return _squares(rows.tables[-1], spec)


def _squares(table: Array, spec: RunSpec) -> Array:
    return _column(table, "grad_sq", spec)


def _column(table: Array, name: str, spec: RunSpec) -> Array:
    column: Array = table[:, table_columns(spec)[name].start].astype(np.float64)
    return column


def _quantities(
    table: Array, previous_sq: Array | None, spec: RunSpec
) -> dict[str, Array]:
    """Return each quantity by layer, and of all layers as the last element."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        grad_sq, update_sq = (
            _with_sum(_column(table, name, spec)) for name in ("grad_sq", "update_sq")
        )
        found = {"grad_norm": np.sqrt(grad_sq), "update_norm": np.sqrt(update_sq)}
        if "param_sq" in table_columns(spec):
            param_sq = _with_sum(_column(table, "param_sq", spec))
            found["update_ratio"] = np.sqrt(update_sq / param_sq)
        product = _with_sum(_column(table, "grad_dot_previous", spec))
        if previous_sq is not None:
            cosine = product / (np.sqrt(grad_sq) * np.sqrt(_with_sum(previous_sq)))
            found["adjacent_cosine"] = np.clip(cosine, -1, 1)
    return found


def _with_sum(column: Array) -> Array:
    return np.append(column, column.sum())
