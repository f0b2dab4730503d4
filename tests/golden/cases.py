"""The golden stores, and the values read from them and computed on them.

A case is a function from the stores to a dataset. `record.py` keeps what the cases
returned when the stores were recorded; `test_golden.py` computes the results again.
"""

import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

import analyzers
import trajstore
from analyzers.geometry.null import subtract_null

HERE: Final = Path(__file__).resolve().parent

STORES: Final = HERE / "stores"
"""Directory with an archive of each store; chunks of small runs are mostly padding.

The archive of ``deep_linear`` also contains the results of ``traj-train replay``.
"""


class Stores:
    """Copies of the golden stores, which analyses may write to.

    Parameters
    ----------
    directory : pathlib.Path
        An empty directory for the copies.
    archives : pathlib.Path, default: STORES
        The directory of the archives.
    """

    def __init__(self, directory: Path, archives: Path = STORES) -> None:
        self._directory = directory
        self._runs: dict[str, trajstore.Run] = {}
        for archive in sorted(archives.glob("*.tar.xz")):
            with tarfile.open(archive) as members:
                # Python 3.11.3 and older have no filters, and ignore this attribute.
                members.extraction_filter = getattr(tarfile, "data_filter", None)
                members.extractall(directory)
        for name in JOURNALS:
            if not self._path(name).exists():
                continue
            recovered = self._path(f"{name}_recovered")
            shutil.copytree(self._path(name), recovered)
            trajstore.recover(recovered)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.zarr"

    def __getitem__(self, name: str) -> trajstore.Run:
        """Open a store, or return the run if it is open already."""
        if name not in self._runs:
            self._runs[name] = trajstore.open_run(self._path(name))
        return self._runs[name]


Array = npt.NDArray[Any]
Case = Callable[[Stores], xr.Dataset]

JOURNALS: Final = ("journal", "exact_journal")
"""Stores of killed runs whose last steps are in a journal."""

RECOVERED: Final = tuple(f"{name}_recovered" for name in JOURNALS)

COMPLETE: Final = (
    *("sketched", "basis_0", "adamw", "full_batch", "exact"),
    *("resumed", "lost", "deep_linear", "branch_half", "branch_tenth"),
)
"""Stores that hold the last iterate."""

WITHOUT_FINAL: Final = ("failed", "killed", *JOURNALS, *RECOVERED)
"""Stores without the last iterate; their reference is the start of an epoch."""

EVERY: Final = (*COMPLETE, *WITHOUT_FINAL)

WITH_LAYERS: Final = ("sketched", "basis_0", "adamw", "exact", "lost")
"""Stores for which results by layer are kept as well."""

MEASUREMENTS: Final = {
    "sketched": ("full_batch", "same_batch", "update"),
    "adamw": ("update",),
    "full_batch": ("same_batch",),
    "exact": ("full_batch", "same_batch", "update"),
    "deep_linear": ("full_batch", "same_batch"),
}

SNAPSHOTS: Final = {
    "sketched": ("middle",),
    "basis_0": ("late",),
    "full_batch": ("epoch-1",),
    "exact": ("middle",),
    "resumed": ("step-4", "step-12"),
}

LAGS: Final = (1, 2, 5)


def facts(run: trajstore.Run) -> xr.Dataset:
    """Return the status, the sizes and the metadata of a run."""
    values = {
        "status": run.status,
        "n_steps": run.n_steps,
        "n_epochs": run.n_epochs,
        "n_windows": run.n_windows,
        "has_final": run.has_final,
        "snapshots": json.dumps(run.snapshots),
        "measurements": json.dumps(run.measurements),
        "metrics": json.dumps(run.metrics),
        "attrs": json.dumps(run.attrs, sort_keys=True),
    }
    return xr.Dataset({name: ((), value) for name, value in values.items()})


def tensors(values: Mapping[str, npt.ArrayLike]) -> xr.Dataset:
    """Return parameter tensors as a dataset."""
    variables = {}
    for name, value in values.items():
        dims = [f"{name}_{axis}" for axis in range(np.ndim(value))]
        variables[name] = (dims, np.asarray(value))
    return xr.Dataset(variables)


def geometry(run: trajstore.Run, reference: Any = None, **options: Any) -> xr.Dataset:
    """Return the geometry relative to the last iterate or, without one, to the start."""
    if reference is None:
        reference = "final" if run.has_final else 0
    return analyzers.path_geometry(run, reference=reference, **options)


def alpha_beta_terms(run: trajstore.Run) -> xr.Dataset:
    """Return the terms of the alpha-beta condition, with made-up losses at x*."""
    loss = run.steps["loss"].values
    return analyzers.alpha_beta(
        run, reference_losses=loss * (0.7 + 0.2 * np.cos(np.arange(len(loss))))
    )


def smallest_beta(run: trajstore.Run) -> xr.Dataset:
    pairs = analyzers.feasible_set(alpha_beta_terms(run))
    alpha = float(pairs["best_alpha"]) + np.array([-10.0, 0.0, 0.5, 20.0])
    return analyzers.smallest_beta(pairs, alpha).to_dataset(name="beta")


def lagged(run: trajstore.Run) -> xr.Dataset:
    reference = "final" if run.has_final else 0
    return analyzers.lagged_gradients(run, reference=reference, lags=LAGS, every=3)


def scaled_final(run: trajstore.Run) -> dict[str, Any]:
    """Return a mapping that serves as a reference; its additional key is ignored."""
    final = trajstore.parameters_at(run)
    return {name: 0.9 * x for name, x in final.items()} | {"other": np.zeros(2)}


READINGS: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "facts": facts,
    "steps": lambda run: run.steps,
    "windows": lambda run: run.windows,
    "iterate-epoch-0": lambda run: tensors(trajstore.parameters_at(run, 0)),
}
"""Reads of every store."""

ANALYSES: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "path_geometry": geometry,
    "zigzag": analyzers.zigzag,
    "zigzag_segments": lambda run: analyzers.zigzag_segments(run, window=3),
    "lagged_gradients": lagged,
    "lag_curve": lambda run: analyzers.lag_curve(run, lags=LAGS, n_pairs=8),
    "smoothness": analyzers.smoothness,
    "update_products": analyzers.update_products,
    "random_walk_gamma": lambda run: analyzers.random_walk_gamma(run).to_dataset(
        name="gamma"
    ),
    "polyak_lojasiewicz": lambda run: analyzers.polyak_lojasiewicz(
        run, reference_loss=0.05
    ),
}
"""Analyses of every store."""

TOWARDS_FINAL: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "iterate-final": lambda run: tensors(trajstore.parameters_at(run)),
    "path_geometry-epoch-0": lambda run: geometry(run, 0),
    "path_geometry-mapping": lambda run: geometry(run, scaled_final(run)),
    "excess_gamma": lambda run: subtract_null(geometry(run), run),
    "distance_travelled": analyzers.distance_travelled,
    "aiming": analyzers.aiming,
    "convexity": lambda run: analyzers.convexity(run, reference_loss=0.05),
    "alpha_beta": alpha_beta_terms,
    "feasible_set": lambda run: analyzers.feasible_set(
        alpha_beta_terms(run), n_stderr=0.5
    ),
    "zigzag_shares": lambda run: analyzers.zigzag_shares(
        run, windows=(1, 5), thresholds=(0.1, 0.5)
    ),
}
"""Analyses of the stores that hold the last iterate."""

BY_LAYER: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "path_geometry-layers": lambda run: geometry(run, layers=True),
    "zigzag-layers": lambda run: analyzers.zigzag(run, layers=True),
    "zigzag_layers": lambda run: analyzers.zigzag_layers(run, window=3),
    "smoothness-layers": lambda run: analyzers.smoothness(run, layers=True),
}

WITH_BASIS: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "scale_invariance": analyzers.scale_invariance,
    "path_geometry-weight-decay": lambda run: geometry(run, weight_decay=0.01),
}
"""Analyses that need products with the parameters."""

OF_MEASUREMENTS: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "steps": lambda rows: rows.steps,
    "path_geometry": geometry,
    "lagged_gradients": lagged,
}

OF_GEOMETRY: Final[Mapping[str, Callable[[xr.Dataset], xr.Dataset]]] = {
    "epoch_means": analyzers.epoch_means,
    "step_bound": lambda geometry: analyzers.step_contraction(geometry, lr=0.05),
    "locally_optimal_lr": analyzers.locally_optimal_lr,
    "guaranteed_decrease": analyzers.guaranteed_decrease,
    "linear_rate": lambda geometry: analyzers.linear_rate(
        geometry.isel(step=slice(0, 16))
    ),
}


@dataclass(frozen=True)
class On:
    """An analysis of a single store, as a case."""

    store: str
    analysis: Callable[[trajstore.Run], xr.Dataset]

    def __call__(self, stores: Stores) -> xr.Dataset:
        return self.analysis(stores[self.store])


@dataclass(frozen=True)
class OnMeasurement:
    """An analysis of the rows of a measurement, as a case."""

    store: str
    measurement: str
    analysis: Callable[[trajstore.Run], xr.Dataset]

    def __call__(self, stores: Stores) -> xr.Dataset:
        return self.analysis(stores[self.store].measured(self.measurement))


@dataclass(frozen=True)
class OnSnapshot:
    """A snapshot, or the path geometry relative to it, as a case."""

    store: str
    snapshot: str
    is_reference: bool

    def __call__(self, stores: Stores) -> xr.Dataset:
        run = stores[self.store]
        if self.is_reference:
            return geometry(run, self.snapshot)
        return tensors(trajstore.parameters_at(run, self.snapshot))


@dataclass(frozen=True)
class OnGeometry:
    """An analysis of the path geometry of a store, as a case."""

    store: str
    analysis: Callable[[xr.Dataset], xr.Dataset]

    def __call__(self, stores: Stores) -> xr.Dataset:
        return self.analysis(geometry(stores[self.store]))


def closed_forms(_stores: Stores) -> xr.Dataset:
    """Return the closed forms of deep linear networks by depth."""
    time, depths = np.linspace(0, 8, 9), (1, 2, 3, 4)
    flow: dict[str, float] = {"strength": 1.7, "initial": 0.02}
    strength = [analyzers.mode_strength(time, depth=depth, **flow) for depth in depths]
    half = [analyzers.half_time(depth=depth, **flow) for depth in depths]
    lr, steps = np.array([0.1, 0.2]), np.array([3, 4])
    return xr.Dataset(
        {
            "mode_strength": (("depth", "time"), np.array(strength)),
            "half_time": ("depth", half),
            "half_sum": ("lr", analyzers.time_of_steps(lr, steps)),
            "sum": ("lr", analyzers.time_of_steps(lr, steps, loss="sum")),
            "mean": (
                "lr",
                analyzers.time_of_steps(lr, steps, loss="mean", n_outputs=3),
            ),
        },
        {"depth": list(depths), "time": time, "lr": lr},
    )


def chords(_stores: Stores) -> xr.Dataset:
    fraction = np.linspace(0, 1, 9)
    losses = xr.DataArray(
        np.stack([fraction**2 - fraction, np.sin(7 * fraction)]),
        {"fraction": fraction},
        ("chord", "fraction"),
    )
    return analyzers.chord_convexity(losses)


def thresholds(stores: Stores) -> xr.Dataset:
    lr = stores["basis_0"].steps["lr"]
    return xr.Dataset(
        {
            "sgd": analyzers.stability_threshold(lr, optimizer="sgd"),
            "heavy_ball": analyzers.stability_threshold(lr, momentum=0.9),
            "nesterov": analyzers.stability_threshold(
                lr, momentum=0.8, optimizer="nesterov"
            ),
            "adam": analyzers.stability_threshold(lr, momentum=0.9, optimizer="adam"),
        }
    )


def margins(stores: Stores) -> xr.Dataset:
    """Return the margin of two runs."""
    datasets = [alpha_beta_terms(stores[name]) for name in ("sketched", "exact")]
    return analyzers.margin(datasets, alpha=[0.5, 1, 5], beta=[0.1, 0.4])


def branches(stores: Stores, **options: Any) -> xr.Dataset:
    children = [stores["branch_tenth"], stores["branch_half"]]
    return analyzers.compare_branches(
        stores["full_batch"], children, window=3, **options
    )


def mean_of_epochs(run: trajstore.Run) -> dict[str, npt.NDArray[np.float32]]:
    return analyzers.average_of_epochs(run, range(1, 3))


def linear_modes_of_mlp(run: trajstore.Run) -> xr.Dataset:
    """Return the modes of two weights of a nonlinear net, for a given correlation."""
    correlation = np.arange(18.0).reshape(3, 6) % 5
    return analyzers.linear_modes(
        run,
        correlation=correlation,
        layers=["0.weight", "2.weight"],
        loss="mean",
        start=4,
    )


SINGLE: Final[Mapping[str, Case]] = {
    "sketched/samples": On("sketched", lambda run: run.samples.to_dataset()),
    "journal_recovered/samples": On(
        "journal_recovered", lambda run: run.samples.to_dataset()
    ),
    "deep_linear/samples": On("deep_linear", lambda run: run.samples.to_dataset()),
    "adamw/epoch_grid": On("adamw", lambda run: trajstore.epoch_grid(run.steps)),
    "sketched/epoch_grid": On(
        "sketched", lambda run: trajstore.epoch_grid(geometry(run))
    ),
    "sketched/steps-of-epoch": On("sketched", lambda run: run.steps.sel(epoch=1)),
    "basis_0/steps-of-iteration": On("basis_0", lambda run: run.steps.sel(iteration=2)),
    "sketched/store_geometry": On("sketched", analyzers.store_geometry),
    "exact/store_geometry-layers": On(
        "exact", lambda run: analyzers.store_geometry(run, layers=True)
    ),
    "sketched/path_geometry-epoch-2": On("sketched", lambda run: geometry(run, 2)),
    "adamw/path_geometry-epoch-2": On("adamw", lambda run: geometry(run, 2)),
    "sketched/path_geometry-weight-decay-layers": On(
        "sketched", lambda run: geometry(run, layers=True, weight_decay=0.01)
    ),
    "branch_half/path_geometry-other-run": lambda stores: geometry(
        stores["branch_half"], stores["full_batch"]
    ),
    "sketched/excess_gamma-epoch-2": On(
        "sketched", lambda run: subtract_null(geometry(run, 2), run)
    ),
    "sketched/average_of_epochs": On(
        "sketched", lambda run: tensors(mean_of_epochs(run))
    ),
    "sketched/path_geometry-average_of_epochs": On(
        "sketched", lambda run: geometry(run, mean_of_epochs(run))
    ),
    "sketched/epoch_means-layers": On(
        "sketched", lambda run: analyzers.epoch_means(geometry(run, layers=True))
    ),
    "deep_linear/alpha_beta-replayed": On("deep_linear", analyzers.alpha_beta),
    "sketched/smallest_beta": On("sketched", smallest_beta),
    "exact/smallest_beta": On("exact", smallest_beta),
    "sketched+exact/margin": margins,
    "full_batch/adjacent_convexity": On("full_batch", analyzers.adjacent_convexity),
    "branch_half/adjacent_convexity": On("branch_half", analyzers.adjacent_convexity),
    "full_batch/edge_of_stability": On("full_batch", analyzers.edge_of_stability),
    "adamw/edge_of_stability": On("adamw", analyzers.edge_of_stability),
    "deep_linear/edge_of_stability-nesterov": On(
        "deep_linear",
        lambda run: analyzers.edge_of_stability(
            run, optimizer="nesterov", momentum=0.5
        ),
    ),
    "basis_0/stability_threshold": thresholds,
    "deep_linear/linear_modes": On("deep_linear", analyzers.linear_modes),
    "exact/linear_modes": On("exact", linear_modes_of_mlp),
    "full_batch/scales": branches,
    "full_batch/scales-length": lambda stores: branches(stores, length=0.5),
    # The losses at x* are taken from measurements at x*.
    "sketched/measured-convexity": OnMeasurement(
        "sketched", "full_batch", analyzers.convexity
    ),
    "exact/measured-convexity": OnMeasurement(
        "exact", "full_batch", analyzers.convexity
    ),
    "full_batch/convexity-recorded": On(
        "full_batch", lambda run: analyzers.convexity(run, reference=2)
    ),
    "closed_forms": closed_forms,
    "chord_convexity": chords,
}

WITH_FULL_BATCH: Final[Mapping[str, Callable[[trajstore.Run], xr.Dataset]]] = {
    "aiming": lambda run: analyzers.aiming(run, measurement="full_batch"),
    "polyak_lojasiewicz": lambda run: analyzers.polyak_lojasiewicz(
        run, reference_loss=0.05, measurement="full_batch"
    ),
    "smoothness": lambda run: analyzers.smoothness(run, measurement="same_batch"),
}
"""Analyses that use measurements."""


def all_cases() -> dict[str, Case]:
    """Return every case by name: the store, a slash and the analysis."""
    cases: dict[str, Case] = {}
    tables = (
        (EVERY, {**READINGS, **ANALYSES}),
        (COMPLETE, TOWARDS_FINAL),
        (WITH_LAYERS, BY_LAYER),
        ([name for name in EVERY if name != "basis_0"], WITH_BASIS),
    )
    for names, analyses in tables:
        for store in names:
            for name, analysis in analyses.items():
                cases[f"{store}/{name}"] = On(store, analysis)
    for store, measurements in MEASUREMENTS.items():
        for measurement in measurements:
            for name, analysis in OF_MEASUREMENTS.items():
                case = OnMeasurement(store, measurement, analysis)
                cases[f"{store}/{measurement}-{name}"] = case
    for store in ("sketched", "exact", "deep_linear"):
        for name, analysis in WITH_FULL_BATCH.items():
            cases[f"{store}/measured-{name}"] = On(store, analysis)
    for store, snapshots in SNAPSHOTS.items():
        for snapshot in snapshots:
            cases[f"{store}/iterate-{snapshot}"] = OnSnapshot(store, snapshot, False)
            relative = OnSnapshot(store, snapshot, True)
            cases[f"{store}/path_geometry-{snapshot}"] = relative
    for store in ("sketched", "basis_0", "exact"):
        for name, of_geometry in OF_GEOMETRY.items():
            cases[f"{store}/{name}"] = OnGeometry(store, of_geometry)
    return {**cases, **SINGLE}


CASES: Final = all_cases()
