"""Compare stated errors with the errors that random signs cause on average, without chance.

With twelve recorders, z of ``calibration.py`` scatters by 10 % or more. But signs are all that differs
between recorders, and the variance over all signs follows from the vectors: the error of a fold is a sum
over pairs of elements in one bucket, whose relative signs are independent. So this script records a
training once, keeps every iterate and gradient, and prints the root of true over stated variances, mid-run:

- ``products``: of <g, v'> of single steps;
- ``probes``: of <x - r, v'> of single steps;
- ``start``, ``end``: the same at the borders of windows, where x - r is a rounding error or next to f;
- ``gradients``, ``displacements``: of the recorded sums of a window;
- ``sums``: of <x - r, v'> of single steps from the sums of a window under SGD;
- ``means``: of the mean of <g, v'> of a window under SGD, whose errors go back to earlier windows.

    python benchmarks/expected_errors.py mlp5k gru
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
import tyro
from calibration import record
from calibration_errors import Kept
from calibration_trainings import TRAININGS, Case, Training
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results

import analyzers
import trajstore
from analyzers._engine import combine
from analyzers._engine.arrays.recurrence import gradient_of, states
from analyzers._engine.measured_window import Measured
from analyzers._engine.tables import sketch_weights
from analyzers._engine.vectors.walk import walk
from analyzers._engine.window_constraint import Constrained
from trajstore.reading.target import find_target
from trajstore.sketch.displacement_sum import middle

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

EVERY = 7
"""Distance between the steps of a window that are compared."""

TERMS = (
    "products",
    "probes",
    "start",
    "end",
    "gradients",
    "displacements",
    "sums",
    "means",
)


class Window(NamedTuple):
    """Exact vectors of a window without gaps between layers, each (element,) or (row, element)."""

    steps: slice
    residual: Array  # v'
    basis: Array  # orthonormal, (vector, element)
    displacements: Array  # x - r of every step and at the end
    gradients: Array
    advance: Array  # f
    weights: Array  # of the sketch


class Form(NamedTuple):
    """A multiple of the error E(p, q) = <P p, P q> - <p, q>."""

    factor: float
    p: Array
    q: Array


def fold_covariance(first: Form, second: Form, place: Places) -> float:
    """Return the covariance of two errors over all signs, if elements are folded to places."""
    # Elements i and j of one place have the error (p_i q_j + p_j q_i) s_i s_j.
    p, q, r, s = first.p, first.q, second.p, second.q

    def folded(values: Array) -> Array:
        return np.bincount(place, values)

    pairs = folded(p * r) @ folded(q * s) + folded(p * s) @ folded(q * r)
    return first.factor * second.factor * float(pairs - 2 * (p * q * r * s).sum())


def fold_variance(p: Array, q: Array, place: Places) -> float:
    """Return the variance of <P p, P q> over all signs."""
    form = Form(1.0, p, q)
    return fold_covariance(form, form, place)


def probe_forms(a: Array, window: Window) -> list[Form]:
    """Return the error of the estimate of <a, v'> from probes, to first order."""
    # See docs/estimator.md: the distance.
    rest = a - window.basis.T @ (window.basis @ a)
    f = window.advance - window.basis.T @ (window.basis @ window.advance)
    v = window.residual - window.basis.T @ (window.basis @ window.residual)
    f = f / np.linalg.norm(f)
    along, v_along, length = rest @ f, v @ f, np.linalg.norm(rest)
    aside, v_aside = rest - along * f, v - v_along * f
    left, v_left = np.linalg.norm(aside), np.linalg.norm(v_aside)
    if left == 0 or length == 0:
        return []
    e, u = aside / left, v_aside / max(v_left, 1e-300)
    c, s, cosine = along / length, left / length, float(e @ u)
    slope = left * (s * v_along - c * v_left * cosine)
    mixed = left * v_left
    return [
        Form(c * slope / 2, f, f),
        Form(-c * slope / 2 - mixed * cosine / 2, e, e),
        Form(s * slope, e, f),
        Form(mixed, e, u),
        Form(-mixed * cosine / 2, u, u),
    ]


def forms_covariance(first: list[Form], second: list[Form], place: Places) -> float:
    """Return the covariance of two sums of errors over all signs."""
    return sum(fold_covariance(one, two, place) for one in first for two in second)


def probe_variance(a: Array, window: Window, place: Places) -> float:
    """Return the variance of the estimate of <a, v'> from probes, to first order."""
    forms = probe_forms(a, window)
    return forms_covariance(forms, forms, place)


def exact_windows(
    run: trajstore.Run, kept: Kept, measured: Mapping[int, Measured]
) -> Iterator[tuple[int, Window]]:
    """Yield the exact vectors of every window."""
    layout, rank = run.layout, run.spec.basis
    places = zip(layout.offsets, layout.sizes, strict=True)
    elements = np.concatenate([np.arange(o, o + n) for o, n in places])
    layers = np.repeat(np.arange(len(layout.sizes)), layout.sizes)
    buffer = np.empty((rank + 2, layout.size), np.float32)
    everything = slice(0, layout.size)
    target = find_target(run, "final")
    for number, vectors in walk(run, target, range(run.n_windows), everything):
        vectors.write(everything, out=buffer)
        known = buffer[:, elements].astype(np.float64)
        coefficients = measured[number].fit.coefficients[layers].T
        residual = known[rank] - (coefficients * known[:rank]).sum(0)
        # Anchors of the first windows coincide, so some vectors of the basis are 0.
        _, sizes, rows = np.linalg.svd(known[:rank], full_matrices=False)
        steps = measured[number].steps
        anchor = vectors.anchor[elements].astype(np.float64)
        rows_of_steps = kept.iterates[steps.start : steps.stop + 1]
        yield (
            number,
            Window(
                steps,
                residual,
                rows[sizes > 1e-6 * sizes.max()],
                rows_of_steps - anchor,
                kept.gradients[steps].astype(np.float64),
                known[rank + 1],
                sketch_weights(run, number)[layers],
            ),
        )


class Folded(NamedTuple):
    """Places of the elements in the folds of a run."""

    bucket: Places
    row: Places
    probe: Places
    code: float  # variance of the code
    is_packed: bool

    def sketched(self, vector: Array, with_v: Array, *, is_orthogonal: bool) -> float:
        """Return the variance of a product from a sketch."""
        along = (vector @ with_v) ** 2 if is_orthogonal else 0.0
        coded = self.code * ((vector @ vector) * (with_v @ with_v) - along)
        folded = 0.0 if self.is_packed else fold_variance(vector, with_v, self.bucket)
        return float(coded) + folded


def places_of(run: trajstore.Run) -> Folded:
    """Return where the elements of a run lie in its folds."""
    layout, sketch = run.layout, run.stored.sketch
    offsets = layout.packed_offsets if run.spec.is_packed else layout.offsets
    places = zip(offsets, layout.sizes, strict=True)
    place = np.concatenate([np.arange(o, o + size) for o, size in places])
    bucket, row = place % sketch.fold.width, place // sketch.fold.width
    probe = run.stored.probes.probe_of_bucket[bucket]
    return Folded(bucket, row, probe, sketch.code_variance, run.spec.is_packed)


def compare_window(
    run: trajstore.Run, window: Window, measured: Measured
) -> dict[str, list[float]]:
    """Return ratios of true to stated variances by term."""
    n, folded = len(window.gradients), places_of(run)
    row, probe, sketched = folded.row, folded.probe, folded.sketched
    # Where every parameter has a probe of its own, only rounding errors are left.
    is_folded = run.spec.n_params > run.spec.probes
    v = window.residual
    u = v / window.weights
    stated = {
        "products": (measured.products.stderr**2).sum(1),
        "probes": measured.probed.estimate.stderr**2,
    }
    found: dict[str, list[float]] = {term: [] for term in TERMS}

    for k in range(0, n, EVERY):
        gradient = window.gradients[k] * window.weights
        true = sketched(gradient, u, is_orthogonal=folded.is_packed)
        found["products"].append(true / stated["products"][k])
        # The first window starts at its anchor.
        if is_folded and stated["probes"][k] > 0:
            true = probe_variance(window.displacements[k], window, probe)
            found["probes" if k else "start"].append(true / stated["probes"][k])
    if is_folded and measured.has_end:
        true = probe_variance(window.displacements[-1], window, probe)
        found["end"].append(true / stated["probes"][n])
    if measured.total is not None:
        total = window.gradients.sum(0) * window.weights
        n_folds, true = run.spec.window_folds, 0.0
        for i in range(n_folds):
            own, own_u = (np.where(row % n_folds == i, x, 0) for x in (total, u))
            true += sketched(own, own_u, is_orthogonal=False)
        found["gradients"].append(true / (measured.total.stderr**2).sum())
    if measured.displacement_total is not None:
        total = window.displacements[:n].sum(0) - middle(n) * window.displacements[n]
        true = sketched(total, v, is_orthogonal=True)
        # The rounding error of the next anchor is not random: it is what it is.
        rounded = window.displacements[n] - window.advance
        true += (middle(n) * (rounded @ v)) ** 2
        stderr = measured.displacement_total.stderr
        found["displacements"].append(true / (stderr**2).sum())
    return found


class Sources(NamedTuple):
    """Independent errors of gradients' products, and errors of probes at the borders of windows."""

    variances: list[float]  # of the products of all steps so far
    borders: list[list[Form]]  # of the start and the end of every window so far
    memory: Array  # derivatives of the buffer's product at the end, (source,)


def compare_sums(
    run: trajstore.Run,
    number: int,
    window: Window,
    constrained: Constrained,
    sources: Sources,
) -> dict[str, float]:
    """Return ratios of true to stated variances of what a window under SGD adds up to."""
    # Windows must follow each other, because errors of the buffer go back to earlier windows.
    folded, n = places_of(run), len(window.gradients)
    u = window.residual / window.weights
    sources.variances.extend(
        folded.sketched(g * window.weights, u, is_orthogonal=folded.is_packed)
        for g in window.gradients
    )
    for a in (window.displacements[0], window.displacements[-1]):
        sources.borders.append(probe_forms(a, window))
    recurrence, posterior, on_end = constrained[:3]
    tie = posterior.tie
    # Rows are the products of the steps, A and M - tie A at the start.
    rows = np.zeros((n + 2, len(sources.memory)))
    rows[np.arange(n), np.arange(window.steps.start, window.steps.stop)] = 1
    start, end = (run.n_steps + 2 * number + i for i in (0, 1))
    rows[n, start] = 1
    rows[n + 1] = sources.memory
    rows[n + 1, start] -= tie[0]
    # The residual of the sum: the end by probes, minus the end by the rows.
    at_end = (np.arange(n + 1) == n)[:, None].astype(np.float64)
    by_rows = gradient_of(recurrence, at_end, np.zeros(1), tie)
    residual = -by_rows[:, 0] @ rows
    residual[end] += 1
    rows += np.outer(posterior.gains[0, :, 0] * posterior.weights[0, 0], residual)
    path = states(recurrence, rows[..., None], tie).displacement[..., 0]
    sources.memory[:] = on_end[:, 0] @ rows
    stated = posterior.variance[:n, 0].sum() - posterior.gains[0, :n, 0].sum() ** 2
    of_sums = constrained.displacement.stderr[n // 2, 0] ** 2
    return {
        "sums": true_variance(path[n // 2], sources, run, folded) / float(of_sums),
        "means": true_variance(rows[:n].sum(0), sources, run, folded) / float(stated),
    }


def true_variance(
    derivatives: Array, sources: Sources, run: trajstore.Run, folded: Folded
) -> float:
    """Return the variance of a linear function of the sources over all signs."""
    of_steps, of_borders = np.split(derivatives, [run.n_steps])
    variances = np.array(sources.variances)
    forms = [
        Form(factor * form.factor, form.p, form.q)
        for factor, border in zip(of_borders, sources.borders, strict=False)
        if factor
        for form in border
    ]
    products = of_steps[: len(variances)] ** 2 @ variances
    return float(products) + forms_covariance(forms, forms, folded.probe)


def measure(training: Training, case: Case, training_seed: int = 0) -> dict[str, float]:
    """Record a training once; return the rms of true over stated errors by term."""
    training = replace(training, cases={"": case})
    measured: dict[int, Measured] = {}
    constrained: dict[int, Constrained] = {}

    def keep(run: Any, window: int, *rest: Any) -> Measured:
        measured[window] = original(run, window, *rest)
        return measured[window]

    def keep_sums(given: Measured, *rest: Any) -> Constrained | None:
        found = constrain(given, *rest)
        if found is not None:
            constrained[max(measured)] = found
        return found

    original, constrain = combine.measure, combine.constrain_window
    first, last = 1, training.epochs - 1
    borders = [training.steps_per_epoch * epoch for epoch in (first, last)]
    ratios: dict[str, list[float]] = {term: [] for term in TERMS}
    with tempfile.TemporaryDirectory() as folder:
        kept, runs = record(training, 1, Path(folder), lambda: None, training_seed)
        [run] = runs[""]
        with (
            patch.object(combine, "measure", keep),
            patch.object(combine, "constrain_window", keep_sums),
        ):
            analyzers.path_geometry(run).compute(scheduler="synchronous")
        n_sources = run.n_steps + 2 * run.n_windows
        sources = Sources([], [], np.zeros(n_sources))
        for number, window in exact_windows(run, kept, measured):
            by_sums = {}
            if number == len(sources.borders) / 2 and number in constrained:
                given = constrained[number]
                by_sums = compare_sums(run, number, window, given, sources)
            if borders[0] <= window.steps.start and window.steps.stop <= borders[1]:
                found = compare_window(run, window, measured[number])
                for term, value in by_sums.items():
                    found[term].append(value)
                for term, values in found.items():
                    ratios[term] += values
    return {
        term: float(np.sqrt(np.mean(values)))
        for term, values in ratios.items()
        if values
    }


def main(
    names: tuple[str, ...] = (),
    /,
    *,
    training_seed: int = 0,
    out: Path = RESULTS / "expected_errors.json",
) -> None:
    """Print and save expected z by term.

    Parameters
    ----------
    names : str
        Trainings of `calibration_trainings.py`; all by default.
    training_seed : int
        Seed of the training.
    out : Path
        JSON file to write; results of other trainings in the file are kept.
    """
    torch.set_num_threads(1)
    table = Table(title="root of true over stated variances, mid-run", box=None)
    for title in ("training", *TERMS):
        table.add_column(title, justify="right")
    cases = [
        (f"{name}, {case}" if case else name, TRAININGS[name], given)
        for name in names or TRAININGS
        for case, given in TRAININGS[name].cases.items()
        # Errors of what is stored do not depend on the weight decay of the analysis.
        if given.reference == "final" and not given.weight_decay
    ]
    for title, training, case in cases:
        found = measure(training, case, training_seed)
        table.add_row(title, *(f"{found[t]:.2f}" if t in found else "" for t in TERMS))
        kept = json.loads(out.read_text()) if out.exists() else {}
        save_results(kept | {title: found}, out)
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
