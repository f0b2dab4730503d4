"""Compute the tables of a recorded run in float64, from the trace of its steps."""

from collections.abc import Sequence

import numpy as np
import pytest

from trajstore.reading.run import Run

torch = pytest.importorskip("torch")


from tests.trajstore.recording.regression import Array, Step, flat


def reference(run: Run, window: int) -> Array:
    return run.stored.anchors.decode(window, slice(0, run.layout.size))


def expected_references(run: Run, trace: list[Step]) -> list[Array]:
    """Compute the anchors from the windows' first iterates, with codes in float32."""
    references: list[Array] = []
    for start in run.windows["start"].values:
        point = flat(run, trace[start].before)
        if not references:
            references.append(point)
            continue
        difference = (point - references[-1]).reshape(-1, 1024)
        difference = np.where(np.isfinite(difference), difference, np.float32(0))
        scale = (np.abs(difference).max(1) / np.float32(127))[:, None]
        scale = scale.astype(np.float32)
        levels = np.rint(difference / np.where(scale > 0, scale, np.float32(1)))
        decoded = levels.astype(np.float32) * scale
        references.append(references[-1] + decoded.reshape(-1))
    return references


def by_layer(run: Run, a: Array, b: Array) -> Array:
    products = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    return np.array(
        [
            products[start : start + size].sum()
            for start, size in zip(run.layout.offsets, run.layout.sizes, strict=True)
        ]
    )


def columns_of(products: list[Array], names: Sequence[str]) -> Array:
    """Return products as an array (layer, product), which may have no columns."""
    return np.array(products).reshape(len(products), len(names)).T


def expected_tables(
    run: Run, trace: list[Step], references: list[Array]
) -> dict[str, tuple[Array, Array]]:
    """Return every table in float64, with the magnitude that scales its rounding error."""
    columns: dict[str, list[tuple[Array, Array]]] = {}
    names = run.layout.names
    previous = np.zeros(run.layout.size)
    starts = run.windows["start"].values
    for step, seen in enumerate(trace):
        window = int(np.searchsorted(starts, step, side="right")) - 1
        r = references[window].astype(np.float64)
        vectors = {"g": previous * 0, "x": previous * 0, "u": previous * 0}
        for name, offset in zip(names, run.layout.offsets, strict=True):
            part = slice(offset, offset + seen.before[name].size)
            vectors["g"][part] = seen.gradient[name].ravel()
            vectors["x"][part] = seen.before[name].ravel()
            vectors["u"][part] = (seen.after[name] - seen.before[name]).ravel()
        g, x, u = vectors["g"], vectors["x"], vectors["u"]
        a = x - r
        past = [
            references[max(window - (1 << j), 0)] for j in range(run.spec.basis - 1)
        ]
        basis = [r, *(r - p.astype(np.float64) for p in past)][: run.spec.basis]

        def norm(v: Array) -> Array:
            return np.sqrt(by_layer(run, v, v))

        moved = norm(u) + norm(a)
        for name, value, scale in [
            ("grad_sq", by_layer(run, g, g), norm(g) ** 2),
            (
                "grad_dot_previous",
                by_layer(run, g, previous),
                norm(g) * norm(previous),
            ),
            ("grad_dot_displacement", by_layer(run, g, a), norm(g) * norm(a)),
            # The recorder sums codes, so a basis vector is as precise as r.
            (
                "grad_dot_basis",
                columns_of([by_layer(run, g, s) for s in basis], names),
                columns_of([norm(g) * (norm(s) + 0.1 * norm(r)) for s in basis], names),
            ),
            ("displacement_sq", by_layer(run, a, a), norm(a) ** 2),
            (
                "displacement_dot_basis",
                columns_of([by_layer(run, a, s) for s in basis], names),
                columns_of([norm(a) * (norm(s) + 0.1 * norm(r)) for s in basis], names),
            ),
            ("update_sq", by_layer(run, u, u), norm(u) * moved),
            ("update_dot_displacement", by_layer(run, u, a), norm(a) * moved),
            ("param_sq", by_layer(run, x, x), (norm(a) + norm(r)) ** 2),
            ("grad_dot_param", by_layer(run, g, x), norm(g) * (norm(a) + norm(r))),
        ]:
            columns.setdefault(name, []).append((value, scale))
        previous = g
    if not basis:
        for name in PRODUCTS_WITH_REFERENCE:
            del columns[name]
    return {
        name: (np.stack([v for v, _ in rows]), np.stack([s for _, s in rows]))
        for name, rows in columns.items()
    }


PRODUCTS_WITH_REFERENCE = (
    *("grad_dot_basis", "displacement_dot_basis"),
    *("param_sq", "grad_dot_param"),
)
"""Tables that are computed from products with the first vector of the basis."""


RTOL = 3e-6
"""Error of float32 sums of 1024 products, relative to the product of the norms."""


def assert_tables_match(run: Run, trace: list[Step]) -> None:
    assert run.n_steps == len(trace)
    expected = expected_tables(run, trace, expected_references(run, trace))
    assert {str(n) for n, v in run.steps.items() if "layer" in v.dims} == set(expected)
    for name, (value, scale) in expected.items():
        measured = run.steps[name].values.astype(np.float64)
        error = np.abs(measured - value)
        usable = np.isfinite(value)
        assert (error[usable] <= RTOL * scale[usable] + 1e-30).all(), name
        assert np.array_equal(np.isfinite(measured), usable), name
