"""Quantities of every layer in every epoch, as images with standard errors."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from analyzers.explorer.contents.decimation import means_of_groups
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.contents.stored_geometries import LAYERS, read_geometry
from trajstore.format.arrays import n_columns as n_table_columns
from trajstore.format.arrays import table_columns
from trajstore.format.shown import shown as printable

Floats = npt.NDArray[np.floating[Any]]

MAX_COLUMNS: Final = 400
"""Largest number of columns of an image; longer runs have several epochs in a column."""

MAX_LAYER_NAME: Final = 60
"""Longest name of a layer in the page, in characters."""

READ_VALUES: Final = 1 << 24
"""Number of table values to read at a time."""


class Image(NamedTuple):
    """A quantity by layer and group of epochs."""

    name: str
    title: str
    is_signed: bool
    values: Floats  # (layer, column)
    stderr: Floats | None  # standard errors of the values; None if they are exact


class LayerGrid(NamedTuple):
    """Images of a run, with rows in the order of the layers."""

    layers: list[str]
    modules: list[tuple[str, int, int]]  # name, first row, row after the last
    edges: Floats  # places of the borders of the columns on the axis of epochs
    images: list[Image]


def layer_grid(shown: ShownRun, groups: dict[str, str]) -> LayerGrid:
    """Return the images of a run; `groups` maps labels of targets to groups of results."""
    run = shown.run
    column, edges = _columns(shown)
    names = [layer_name(name) for name in run.layout.names]
    images = [
        *_gamma_images(shown, groups, column),
        *_exact_images(shown, column),
    ]
    return LayerGrid(names, modules_of(names), edges, images)


def layer_name(name: str) -> str:
    """Return the name of a layer as printable text of limited length."""
    text = printable(name)
    if len(text) > MAX_LAYER_NAME:
        text = f"{text[: MAX_LAYER_NAME // 2]}…{text[-MAX_LAYER_NAME // 2 :]}"
    return text


def modules_of(names: list[str]) -> list[tuple[str, int, int]]:
    """Group consecutive layers by the module that holds them: the name without its end."""
    found: list[tuple[str, int, int]] = []
    for i, name in enumerate(names):
        module = name.split(".")[0]
        if found and found[-1][0] == module:
            found[-1] = (module, found[-1][1], i + 1)
        else:
            found.append((module, i, i + 1))
    return found


def _columns(shown: ShownRun) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the column of every step, and the places of the columns' borders."""
    size = max(1, -(-shown.n_epochs // MAX_COLUMNS))
    if size > 1 or shown.n_epochs > 1:
        column = shown.epoch // size
        used, column = np.unique(column, return_inverse=True)
        edges = np.append(used * size, shown.n_epochs).astype(float)
        return column, edges
    # A run of a single epoch is divided into parts of it.
    n_parts = min(60, max(1, len(shown.epoch)))
    column = np.arange(len(shown.epoch)) * n_parts // max(1, len(shown.epoch))
    return column, np.linspace(0.0, 1.0, n_parts + 1)


def _gamma_images(
    shown: ShownRun, groups: dict[str, str], column: npt.NDArray[np.int64]
) -> list[Image]:
    images = []
    for label, group in groups.items():
        names = ("gamma", "gamma_stderr", "gamma_covariance")
        geometry = read_geometry(shown.run, f"{group}{LAYERS}", names, layers=True)
        if geometry is None:
            continue
        gamma = geometry["gamma"].values
        values = means_of_groups(gamma, column)
        # Errors of steps of a window depend on each other; covariances with the sum of the
        # errors of the window and epoch add up to the variance of the sum.
        is_known, error = np.isfinite(gamma), geometry["gamma_stderr"].values
        covariance = geometry["gamma_covariance"].values
        is_unsure = is_known & ~np.isfinite(error + covariance)
        covariance = np.where(is_known & ~is_unsure, covariance, np.nan)
        counts = _counts(is_known, column)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = means_of_groups(covariance, column) / counts
            stderr = np.sqrt(np.clip(mean, 0, None))
            # One value whose error is not known leaves that of the mean unknown.
            stderr = np.where(_counts(is_unsure, column) > 0, np.nan, stderr)
        title = f"gamma, x* = {printable(label)}"
        images.append(Image("gamma", title, True, values.T, stderr.T))
    return images


def _counts(known: npt.NDArray[np.bool_], column: npt.NDArray[np.int64]) -> Floats:
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    counts: Floats = np.add.reduceat(known, starts, axis=0, dtype=float)
    return counts


def _exact_images(shown: ShownRun, column: npt.NDArray[np.int64]) -> list[Image]:
    """Return images of recorded products: adjacent cosine, |g|, |u| / |x|."""
    run, n_layers = shown.run, len(shown.run.layout.names)
    n_columns = int(column[-1]) + 1 if len(column) else 0
    where = table_columns(run.spec)
    has_params = "param_sq" in where
    kinds = ["cosine", "gradient", *(["ratio"] if has_params else [])]
    sums = {k: np.zeros((n_columns, n_layers)) for k in (*kinds, "square")}
    counts = {k: np.zeros((n_columns, n_layers)) for k in kinds}
    rows = max(1, READ_VALUES // (n_layers * n_table_columns(run.spec)))
    before = np.full(n_layers, np.nan)
    for part in slices(slice(0, run.n_steps), rows):
        tables = run.stored.rows("tables", part)
        square, previous, update = (
            tables[..., where[name].start].astype(float)
            for name in ("grad_sq", "grad_dot_previous", "update_sq")
        )
        earlier = np.vstack([before[None], square[:-1]])
        before = square[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "cosine": previous / np.sqrt(square * earlier),
                "gradient": np.sqrt(square),
            }
            if has_params:
                param_sq = tables[..., where["param_sq"].start]
                found["ratio"] = np.sqrt(update / param_sq)
        # Steps of a column follow each other.
        starts = np.flatnonzero(np.diff(column[part], prepend=-1))
        labels = column[part][starts]
        for kind, values in found.items():
            known = np.isfinite(values)
            added = np.where(known, values, 0.0)
            sums[kind][labels] += np.add.reduceat(added, starts, axis=0)
            counts[kind][labels] += np.add.reduceat(known, starts, axis=0, dtype=float)
            if kind == "cosine":
                sums["square"][labels] += np.add.reduceat(added**2, starts, axis=0)
    return _images_of_sums(sums, counts)


def _images_of_sums(
    sums: Mapping[str, Floats], counts: Mapping[str, Floats]
) -> list[Image]:
    titles = {
        "cosine": ("cosine of adjacent gradients", True),
        "gradient": ("|g|", False),
        "ratio": ("|u| / |x|", False),
    }
    images = []
    for kind, (title, is_signed) in titles.items():
        if kind not in counts:
            continue
        n = counts[kind]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(n > 0, sums[kind] / n, np.nan)
            stderr = None
            if kind == "cosine":
                variance = np.clip(sums["square"] / n - mean**2, 0, None) / (n - 1)
                stderr = np.sqrt(np.where(n > 1, variance, np.nan)).T
        images.append(Image(kind, title, is_signed, mean.T, stderr))
    return images
