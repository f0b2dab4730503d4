"""Compare compiled loops over residuals with the NumPy code of the same results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from analyzers._engine.rules import parts_of
from analyzers._engine.vectors import compiled_sums
from analyzers._engine.vectors import project as projecting
from analyzers._engine.vectors.project import Projected, project
from trajstore.reading.run import Run, open_run
from trajstore.reading.target import find_target
from trajstore.recording.recorder import Recorder

SHAPES = {"embedding": (90, 40), "bias": (33,), "matrix": (40, 41), "scale": ()}


def record(path: Path, **options: Any) -> Run:
    """Record six windows of an optimizer whose windows have the sums of their gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        n: torch.nn.Parameter(torch.randn(s, generator=generator))
        for n, s in SHAPES.items()
    }
    optimizer = torch.optim.Adam(parameters.values(), lr=0.1)
    sizes: Any = {"sketch_bits": 1024, "probes": 16, "reference_every": 20}
    with Recorder(path, parameters, optimizer, **sizes | options) as recorder:
        for _ in range(110):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        recorder.flush()
    return open_run(path)


def test_residuals_end_with_zeros_whatever_the_buffer_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = record(tmp_path / "run.zarr", basis=1)
    plain = projected(run, monkeypatch, layers=False, compiled_from=1 << 60)
    write = compiled_sums.subtract_fit

    def write_to_used(*arguments: Any, out: Any) -> None:
        out.fill(np.nan)
        write(*arguments, out=out)

    monkeypatch.setattr(compiled_sums, "subtract_fit", write_to_used)
    fast = projected(run, monkeypatch, layers=False, compiled_from=1)
    for window, expected in plain.items():
        assert_equal(fast[window].products, expected.products)


def projected(
    run: Run, monkeypatch: pytest.MonkeyPatch, *, layers: bool, compiled_from: int
) -> dict[int, Projected]:
    monkeypatch.setattr(projecting, "COMPILED_FROM", compiled_from)
    rows, steps = slice(0, run.stored.sketch.fold.n_rows), slice(0, run.n_steps)
    parts = parts_of(run, layers=layers)
    return project(run, find_target(run, "final"), steps, rows, [], parts=parts)


def assert_equal(found: Any, expected: Any) -> None:
    """Compare up to the rounding of sums in float32."""
    largest = np.nanmax(np.abs(expected), initial=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * largest)


@pytest.mark.parametrize(
    ("basis", "layers"), [(0, False), (1, True), (3, False), (4, True)]
)
def test_compiled_sums_equal_those_of_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, basis: int, layers: bool
):
    run = record(tmp_path / "run.zarr", basis=basis)
    assert run.spec.window_folds > 0
    plain = projected(run, monkeypatch, layers=layers, compiled_from=1 << 60)
    fast = projected(run, monkeypatch, layers=layers, compiled_from=1)
    assert len(plain) == run.n_windows > 4
    for window, expected in plain.items():
        assert_equal(fast[window].products, expected.products)
        for field, values in expected.sums._asdict().items():
            assert_equal(getattr(fast[window].sums, field), values)
    energies = (fast[c].sums.energy != plain[c].sums.energy for c in plain)
    assert any(differ.any() for differ in energies)
    assert any(np.isfinite(p.sums.displacement_sum).all() for p in plain.values())
    assert any(np.isfinite(p.sums.window_sum).all() for p in plain.values())


def test_packed_sketches_do_without_compiled_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = record(tmp_path / "run.zarr", sketch_bits=1 << 17)
    assert run.spec.is_packed
    plain = projected(run, monkeypatch, layers=False, compiled_from=1 << 60)
    fast = projected(run, monkeypatch, layers=False, compiled_from=1)
    for window, expected in plain.items():
        np.testing.assert_array_equal(fast[window].products, expected.products)
