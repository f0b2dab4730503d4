"""Choose iterates of several runs as the points of a map or of a table of distances."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.probes import rounding_squares
from analyzers._engine.tables import read_tables
from analyzers._engine.vectors.walk import past_windows
from analyzers.comparison.arrays.probed_points import (
    Displaced,
    Known,
    Located,
    known_of,
    locate,
    whole_iterate,
)
from analyzers.comparison.products import Products, probe_signature
from analyzers.comparison.run_list import run_names
from analyzers.comparison.stored_iterates import (
    StoredIterate,
    epoch_of,
    stored_iterates,
)
from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

PROBES = ("gradient_probes", "displacement_probes", "probe_scales")


class Point(NamedTuple):
    """An iterate of one of several runs."""

    run: int  # number of the run
    step: int
    epoch: int
    kind: str
    whole: (
        int  # index among the whole iterates of all runs; -1 if only probes are known
    )


class Chosen(NamedTuple):
    """Points, and the whole iterates that they are computed from."""

    points: list[Point]
    iterates: list[list[StoredIterate]]  # by run
    probed: dict[
        int, int
    ]  # number of the run whose probes each run with probed points uses


def choose(
    runs: Sequence[Run],
    steps: Sequence[Sequence[int]],
    *,
    with_stored: bool,
) -> Chosen:
    """Choose the given `steps` of each run, and with `with_stored` all its stored iterates."""
    points: list[Point] = []
    iterates, first = [], 0
    for number, (run, of_run) in enumerate(zip(runs, steps, strict=True)):
        listed = stored_iterates(run, of_run)
        if not listed:
            raise ValueError(
                f"{run.location} holds no anchor yet; open it again after its first step."
            )
        wanted = [
            Point(number, iterate.step, iterate.epoch, iterate.kind, first + i)
            for i, iterate in enumerate(listed)
            if with_stored or iterate.kind == "step"
        ]
        if not run.spec.exact:
            wanted += [
                Point(number, k, epoch_of(run, k), "step", -1)
                for k in of_run
                if k < run.n_steps
            ]
        if run.has_final and run.n_steps in of_run and not with_stored:
            last = first + len(listed) - 1
            epoch = epoch_of(run, run.n_steps)
            wanted.append(Point(number, run.n_steps, epoch, "final", last))
        points += sorted(wanted, key=lambda point: (point.step, point.kind == "final"))
        iterates.append(listed)
        first += len(listed)
    signatures: dict[Any, int] = {}
    probed = {
        number: signatures.setdefault(probe_signature(runs[number]), number)
        for number in dict.fromkeys(p.run for p in points if p.whole < 0)
    }
    return Chosen(points, iterates, probed)


def point_coordinates(
    runs: Sequence[Run], points: Sequence[Point], *, prefix: str = ""
) -> dict[str, Any]:
    """Return the coordinates ``run``, ``step``, ``epoch`` and ``kind`` of points."""
    names = run_names(runs)
    dim = f"{prefix}point"
    return {
        f"{prefix}run": (dim, np.array([names[p.run] for p in points], object)),
        f"{prefix}step": (dim, np.array([p.step for p in points], np.int64)),
        f"{prefix}epoch": (dim, np.array([p.epoch for p in points], np.int64)),
        f"{prefix}kind": (dim, np.array([p.kind for p in points], object)),
    }


def locate_points(
    runs: Sequence[Run], chosen: Chosen, products: Products
) -> tuple[list[Located], dict[int, Known]]:
    """Return the located points, and what is known for each key of the products' probes."""
    known = {
        key: known_of(products.gram, probes) for key, probes in products.probes.items()
    }
    if not known:
        known = {-1: known_of(products.gram, np.zeros((len(products.gram), 1)))}
    some = next(iter(known.values()))
    rank = max(run.spec.basis for run in runs)
    first_of = np.cumsum([0, *map(len, chosen.iterates)])
    located = []
    for point in chosen.points:
        if point.whole >= 0:
            located.append(whole_iterate(some, point.whole, rank=rank))
            continue
        key, run = chosen.probed[point.run], runs[point.run]
        at = _index_of_windows(chosen.iterates[point.run], int(first_of[point.run]))
        given = displaced(run, point.step, at, n=len(products.gram), rank=rank)
        located.append(locate(known[key], given))
    return located, known


def _index_of_windows(iterates: Iterable[StoredIterate], first: int) -> dict[int, int]:
    """Return the index of every window's anchor, and under -1 that of the final iterate."""
    return {
        iterate.window: first + i
        for i, iterate in enumerate(iterates)
        if iterate.kind in {"anchor", "final"}
    }


def displaced(
    run: Run, step: int, at: Mapping[int, int], *, n: int, rank: int
) -> Displaced:
    """Read what the store holds about the iterate before a step."""
    # `at` maps windows to the indices of their anchors among `n` whole iterates, the last of
    # which is the zero vector. A basis with fewer than `rank` vectors is padded with zeros.
    rows = slice(step, step + 1)
    table = read_tables(run, rows)
    window = int(run.stored.rows("window", rows)[0])
    basis, on_basis = np.zeros((rank, n)), np.zeros(rank)
    own = run.spec.basis
    if own:
        basis[:own, at[window]] = 1
        # The first vector is the anchor itself.
        basis[0, -1] = -1
        for i, past in enumerate(past_windows(window, own), start=1):
            basis[i, at[past]] -= 1
        on_basis[:own] = table["displacement_dot_basis"][0].sum(0)
    end = np.zeros(n)
    after = at.get(window + 1, at.get(-1))
    if after is not None:
        end[after], end[at[window]] = 1, -1
    stored = {name: run.stored.rows(name, rows) for name in PROBES}
    return Displaced(
        anchor=at[window],
        squared=float(table["displacement_sq"][0].sum()),
        on_basis=on_basis,
        basis=basis,
        end=end,
        probes=decode_probes(stored)[1][0],
        rounding=float(rounding_squares(run, np.array([step]))[0]),
    )
