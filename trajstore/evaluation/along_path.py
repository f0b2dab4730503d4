"""Losses along a recorded path: towards a target, and on the plane in which the path lies best.

The plane is that of `analyzers.path_pca`: through the mean of the stored iterates, along their
first two principal components.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from trajstore.evaluation.chords import FRACTIONS
from trajstore.evaluation.restored_state import restored_state
from trajstore.evaluation.setup import TrainingSetup
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target

Floats = npt.NDArray[np.float64]

Track = Callable[[range], Iterable[int]]
"""Yields the numbers of a range, and shows progress."""

PART_VALUES: Final = 1 << 23
"""Largest number of values of all iterates that are in memory together."""

MARGIN: Final = 0.15
"""Distance of the edges of the grid from the path, relative to its extent."""

TRAINING_MODE: Final = (
    "all training examples, in training mode, with the same dropout at every point"
)


class Plane(NamedTuple):
    """A plane through the iterates of a path."""

    origin: Floats
    """Mean of the stored iterates, (param,)."""
    directions: Floats
    """Unit vectors, (2, param)."""
    shares: Floats
    """Shares of the variance of the iterates along the two directions, (2,)."""
    steps: npt.NDArray[np.int64]
    """Number of optimizer steps before each stored iterate, (point,)."""
    coordinates: Floats
    """Coordinates of the stored iterates in the plane, (point, 2)."""

    def point(self, first: float, second: float) -> Floats:
        """Return the parameters at a point of the plane, (param,)."""
        moved: Floats = self.origin + np.array([first, second]) @ self.directions
        return moved


def losses_towards(
    run: Run,
    setup: TrainingSetup,
    *,
    reference: TargetLike = "final",
    epochs: Sequence[int] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    track: Track = iter,
) -> xr.Dataset:
    """Evaluate the loss of all training examples on the lines from iterates to a target.

    Parameters
    ----------
    run : trajstore.Run
        The recorded run.
    setup : TrainingSetup
        Model, loss and data. The model keeps its parameters, buffers and mode.
    reference : str, int, Run or mapping, default: "final"
        The target x*, given like `reference` in `analyzers.path_geometry`.
    epochs : sequence of int, optional
        Epochs at whose starts the lines begin. An epoch stands for its stored anchor, which is
        close to the iterate but not equal to it. Default: five from the first epoch to the last.
    fractions : sequence of float, default: eleven from 0 to 1
        Positions on a line: 0 is the iterate, 1 is the target. Numbers outside of 0 to 1 lie
        beyond.
    track : callable, default: iter
        Iterates over the points and shows progress.

    Returns
    -------
    xarray.Dataset
        Loaded: ``loss`` (epoch, fraction) and ``distance`` (epoch), from the anchor to the
        target, float64. The model is in training mode, and batches have the size of the
        training run: as in training, batch normalisation uses statistics of batches.

    Raises
    ------
    ValueError, KeyError, TypeError
        As `trajstore.parameters_at` raises them for the target or an epoch.
    """
    whole = slice(0, run.layout.size)
    if epochs is None:
        stored = list(run.stored.epoch_windows)
        chosen = np.linspace(0, len(stored) - 1, min(5, len(stored))).round()
        epochs = [stored[int(i)] for i in chosen]
    target = find_target(run, reference)
    end = target.read(whole).astype(np.float64)
    losses = np.empty((len(epochs), len(fractions)))
    distances = np.empty(len(epochs))
    starts = [find_target(run, int(epoch)) for epoch in epochs]
    with restored_state(setup.model, parameters=True), torch.no_grad():
        steps = iter(track(range(losses.size)))
        for i, start in enumerate(starts):
            begin = start.read(whole).astype(np.float64)
            distances[i] = np.linalg.norm(begin - end)
            for j, fraction in enumerate(fractions):
                next(steps)
                point = (1 - fraction) * begin + fraction * end
                losses[i, j] = _loss_at(run, setup, point)
        _exhaust(steps)
    return xr.Dataset(
        {
            "loss": (
                ("epoch", "fraction"),
                losses,
                {"units": "1", "long_name": "loss"},
            ),
            "distance": (
                "epoch",
                distances,
                {"units": "1", "long_name": "distance from the target"},
            ),
        },
        {
            "epoch": np.array([int(epoch) for epoch in epochs], float),
            "fraction": np.array(fractions, float),
        },
        {"run": run.location, "reference": target.label, "method": TRAINING_MODE},
    )


def losses_on_plane(
    run: Run,
    setup: TrainingSetup,
    *,
    size: int = 15,
    first: Sequence[float] | None = None,
    second: Sequence[float] | None = None,
    check_points: int = 5,
    others: Sequence[Run] = (),
    track: Track = iter,
) -> xr.Dataset:
    """Evaluate the loss of all training examples on the plane of `analyzers.path_pca`.

    Parameters
    ----------
    run : trajstore.Run
        The recorded run.
    setup : TrainingSetup
        Model, loss and data. The model keeps its parameters, buffers and mode.
    size : int, default: 15
        Number of grid points in each direction, at least 2; the loss is evaluated at ``size *
        size`` points.
    first, second : sequence of float, optional
        Coordinates of the grid along the components. Default: `size` numbers that reach
        beyond the path by 15 percent.
    check_points : int, default: 5
        Number of stored iterates of `run` at which the loss is evaluated too, and compared with
        the loss at their projections onto the plane.
    others : sequence of trajstore.Run, default: ()
        Further runs whose iterates span the plane, as further runs given to
        `analyzers.path_pca`.
    track : callable, default: iter
        Iterates over the points and shows progress.

    Returns
    -------
    xarray.Dataset
        Loaded, float64: ``loss`` (second, first), and for stored iterates of `run`
        ``point_loss`` and ``projected_loss`` (point), with the coordinates ``step``,
        ``point_first`` and ``point_second``. ``explained_variance_ratio`` (component) are the
        shares of the variance of the iterates in the plane. ``attrs["projection_error"]`` is
        the largest difference of `point_loss` and `projected_loss`: how far the losses of the
        plane are from those of the path. The model is in training mode, see
        `losses_towards`.

    Raises
    ------
    ValueError
        If `size` is less than 2, if a run has fewer than three stored iterates or other layers,
        or if a stored iterate is damaged or not finite.
    """
    if size < 2:
        raise ValueError(f"`size` must be at least 2, got {size}.")
    plane = principal_plane([run, *others])
    axes = [
        np.asarray(given, float) if given is not None else _axis(values, size)
        for given, values in zip((first, second), plane.coordinates.T, strict=True)
    ]
    losses = np.empty((len(axes[1]), len(axes[0])))
    own = len(_iterates(run))
    chosen = np.unique(np.linspace(0, own - 1, min(check_points, own)).round()).astype(
        int
    )
    checked = np.empty((2, len(chosen)))
    with restored_state(setup.model, parameters=True), torch.no_grad():
        steps = iter(track(range(losses.size + checked.size)))
        for j, y in enumerate(axes[1]):
            for i, x in enumerate(axes[0]):
                next(steps)
                losses[j, i] = _loss_at(run, setup, plane.point(x, y))
        for k, point in enumerate(chosen):
            projected = plane.point(*plane.coordinates[point])
            for row, values in enumerate((_iterate(run, int(point)), projected)):
                next(steps)
                checked[row, k] = _loss_at(run, setup, values)
        _exhaust(steps)
    apart = abs(checked[0] - checked[1])
    x, y = plane.coordinates[chosen].T
    long_names = ("loss at the iterate", "loss at its projection onto the plane")
    return xr.Dataset(
        {
            "loss": (("second", "first"), losses, {"units": "1", "long_name": "loss"}),
            "explained_variance_ratio": ("component", plane.shares),
            **{
                name: ("point", values, {"units": "1", "long_name": long_name})
                for name, values, long_name in zip(
                    ("point_loss", "projected_loss"), checked, long_names, strict=True
                )
            },
        },
        {
            "first": axes[0],
            "second": axes[1],
            "step": ("point", plane.steps[chosen]),
            "point_first": ("point", x),
            "point_second": ("point", y),
        },
        {
            "run": run.location,
            "runs": [run.location, *(other.location for other in others)],
            "projection_error": float(apart.max(initial=0.0)),
            "method": TRAINING_MODE,
        },
    )


def principal_plane(runs: Sequence[Run]) -> Plane:
    """Return the plane of the first two principal components of all stored iterates."""
    listed = [(run, i) for run in runs for i in range(len(_iterates(run)))]
    n, layout = len(listed), runs[0].layout
    for run in runs[1:]:
        if run.layout != layout:
            raise ValueError(
                f"{run.location} and {runs[0].location} have different layers; give runs "
                "of one architecture."
            )
    if n < 3:
        raise ValueError(
            f"A plane needs three stored iterates, and {runs[0].location} has {n}. Record a "
            "longer run, or one with a smaller `reference_every`."
        )
    gram = np.zeros((n, n))
    for _, part in _parts(runs, n):
        gram += part @ part.T
    if not np.isfinite(gram).all():
        raise ValueError(
            f"A stored iterate of {', '.join(run.location for run in runs)} is damaged or not "
            "finite, so the plane is unknown; see traj-store verify."
        )
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    values, vectors = values[:-3:-1], vectors[:, :-3:-1]
    coordinates = vectors * np.sqrt(np.maximum(values, 0))
    largest = abs(coordinates).argmax(0)
    coordinates *= np.sign(coordinates[largest, [0, 1]])
    # The components are e = sum c (x - mean) / sum c^2, and the sum of c is 0.
    scales = np.maximum((coordinates**2).sum(0), np.finfo(float).tiny)
    weights = np.vstack([np.full(n, 1 / n), (coordinates / scales).T])
    flat = np.empty((3, layout.size))
    for elements, part in _parts(runs, n):
        flat[:, elements] = weights @ part
    steps = np.array([step for run in runs for step, _ in _iterates(run)])
    total = np.trace(centred) or 1.0
    return Plane(flat[0], flat[1:], values / total, steps, coordinates)


Read = Callable[[slice], npt.NDArray[Any]]


def _iterates(run: Run) -> list[tuple[int, Read]]:
    """Return the step and a function that reads a part of every stored iterate, by step."""

    def anchor(window: int) -> Read:
        return lambda elements: run.stored.anchors.decode(window, elements)

    def vector(path: str) -> Read:
        return lambda elements: run.stored.vector(path, elements)

    found = [(int(s), 0, anchor(c)) for c, s in enumerate(run.stored.starts)]
    snapshots = run.stored.document.snapshots.values()
    found += [(int(s.step), 1, vector(s.array)) for s in snapshots]
    found.sort(key=lambda iterate: iterate[:2])
    if run.has_final:
        found.append((run.n_steps, 2, vector("final")))
    return [(step, read) for step, _, read in found]


def _iterate(run: Run, i: int) -> Floats:
    values = _iterates(run)[i][1](slice(0, run.layout.size))
    return np.asarray(values, np.float64)


def _parts(runs: Sequence[Run], n: int) -> Iterator[tuple[slice, Floats]]:
    """Yield parts of all stored iterates, float64 (point, element)."""
    size = runs[0].layout.size
    length = max(1, PART_VALUES // n // BLOCK) * BLOCK
    for start in range(0, size, length):
        elements = slice(start, min(start + length, size))
        rows = [
            np.asarray(read(elements), np.float64)
            for run in runs
            for _, read in _iterates(run)
        ]
        yield elements, np.stack(rows)


def _axis(coordinates: Floats, size: int) -> Floats:
    low, high = coordinates.min(), coordinates.max()
    margin = MARGIN * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, size)


def _loss_at(run: Run, setup: TrainingSetup, flat: Floats) -> float:
    """Return the loss of all training examples at a flat parameter vector."""
    setup.model.train()
    setup.load(run.layout.unflatten(flat.astype(run.spec.float_type)))
    torch.manual_seed(setup.seed)
    return setup.mean_loss()


def _exhaust(steps: Iterator[int]) -> None:
    """Let the progress bar end."""
    for _ in steps:
        pass
