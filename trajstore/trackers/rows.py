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

PRODUCTS: Final = ("grad_sq", "update_sq", "param_sq", "grad_dot_previous")


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
    products: Mapping[str, Array]
    """Products by layer, each float (step, layer), by name; those of `PRODUCTS` that exist."""
    scalars: Sequence[Mapping[str, float]]


def products_of(tables: Array, spec: RunSpec) -> dict[str, Array]:
    """Return the products that `step_values` needs, of tables (step, layer, quantity)."""
    columns = table_columns(spec)
    return {
        name: tables[..., columns[name].start] for name in PRODUCTS if name in columns
    }


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
    names: Sequence[str],
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
        products = {
            name: values[i].astype(np.float64) for name, values in rows.products.items()
        }
        before = rows.products["grad_sq"][i - 1] if i else previous_sq
        quantities = _quantities(products, before)
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
                key = f"{LAYER_GROUP}{name}/{names[layer]}"
                values[key] = float(by_layer[layer])
        elapsed = scalars.get(WALL_TIME, 0.0)
        found.append(StepValues(rows.first + i, elapsed, values))
    return found


def _quantities(
    products: Mapping[str, Array], previous_sq: Array | None
) -> dict[str, Array]:
    """Return each quantity by layer, and of all layers as the last element."""
    sums = {name: _with_sum(values) for name, values in products.items()}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        grad_norm, update_norm = np.sqrt(sums["grad_sq"]), np.sqrt(sums["update_sq"])
        found = {"grad_norm": grad_norm, "update_norm": update_norm}
        if "param_sq" in sums:
            found["update_ratio"] = np.sqrt(sums["update_sq"] / sums["param_sq"])
        if previous_sq is not None:
            norms = grad_norm * np.sqrt(_with_sum(previous_sq.astype(np.float64)))
            cosine = np.clip(sums["grad_dot_previous"] / norms, -1, 1)
            found["adjacent_cosine"] = cosine
    return found


def _with_sum(values: Array) -> Array:
    return np.append(values, values.sum())
