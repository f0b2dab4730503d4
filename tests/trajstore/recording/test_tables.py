"""Stored tables, sketches and anchors, compared with float64 arithmetic."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run
from trajstore.sketch.rotation import rotate

torch = pytest.importorskip("torch")


from tests.trajstore.recording.float64_tables import (
    RTOL,
    assert_tables_match,
    by_layer,
    expected_references,
    reference,
)
from tests.trajstore.recording.regression import (
    EPOCHS,
    STEPS_PER_EPOCH,
    Array,
    Step,
    Training,
    flat,
    record,
    regression,
)
from tests.trajstore.recording.unusual_models import KINDS
from trajstore.tracking.backends.choose import CHOICE

BACKENDS = {"compiled": "", "torch": "eager"}
"""Values of the environment variable that selects a backend."""


@pytest.fixture(scope="module", params=list(BACKENDS.values()), ids=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let recorders measure steps with each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOICE, request.param)
        yield


@pytest.fixture(scope="module", params=[0, 1, 2, 3, 4, 5], ids="basis={}".format)
def traced(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    backend: None,
) -> tuple[Run, list[Step]]:
    """A run of many windows, with the trace of its steps."""
    path = tmp_path_factory.mktemp("traced") / "run.zarr"
    return record(
        path,
        regression(),
        STEPS_PER_EPOCH * EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=STEPS_PER_EPOCH * EPOCHS,
        basis=request.param,
        sketch_bits=1024,
        probes=128,
    )


def test_tables_equal_a_float64_reference(traced: tuple[Run, list[Step]]):
    run, trace = traced
    assert run.n_windows >= 10
    assert_tables_match(run, trace)


def test_norms_are_those_of_all_tensors_together(traced: tuple[Run, list[Step]]):
    run, trace = traced

    def norms(pick: Callable[[Step], dict[str, Array]]) -> list[float]:
        return [
            np.sqrt(sum(np.square(v).sum() for v in pick(seen).values()))
            for seen in trace
        ]

    updates = norms(lambda s: {n: s.after[n] - s.before[n] for n in s.after})
    steps = run.steps
    np.testing.assert_allclose(steps.grad_norm, norms(lambda s: s.gradient), rtol=1e-6)
    if run.spec.basis:
        expected = norms(lambda s: s.before)
        np.testing.assert_allclose(steps.param_norm, expected, rtol=1e-6)
    else:
        assert "param_norm" not in run.metrics
    # The update is a difference of float32 displacements.
    np.testing.assert_allclose(steps.update_norm, updates, rtol=1e-5)


def test_stored_references_are_the_ones_coded_by_hand(traced: tuple[Run, list[Step]]):
    run, trace = traced
    references = expected_references(run, trace)
    assert run.n_windows == len(references)
    for window, expected in enumerate(references):
        assert np.array_equal(reference(run, window), expected), window


def test_arrival_is_the_last_iterate_in_the_old_basis(traced: tuple[Run, list[Step]]):
    run, trace = traced
    references = [r.astype(np.float64) for r in expected_references(run, trace)]
    arrival = run.stored.array("references/arrival")[:]
    assert np.isnan(arrival[0]).all()
    for window in range(1, run.n_windows):
        old = window - 1
        start = int(run.windows["start"][window])
        a = flat(run, trace[start].before).astype(np.float64) - references[old]
        past = [references[max(old - (1 << j), 0)] for j in range(run.spec.basis - 1)]
        others = [a, references[old], *(references[old] - p for p in past)]
        others = others[: 1 + run.spec.basis]
        expected = np.stack([by_layer(run, a, s) for s in others], -1)
        size = np.sqrt(by_layer(run, a, a)) * np.sqrt(
            by_layer(run, references[old], references[old])
        )
        # As in the tables, a basis vector is as precise as its anchor.
        assert (np.abs(arrival[window] - expected) <= RTOL * size[:, None]).all()


def test_weights_follow_from_the_window_before(traced: tuple[Run, list[Step]]):
    run, trace = traced
    references = expected_references(run, trace)
    sizes = run.layout.sizes
    stored = run.windows["weights"].values
    assert (stored[0] == 1).all()
    starts = run.windows["start"].values
    for window in range(1, run.n_windows):
        move = references[window].astype(np.float64) - references[window - 1]
        energy = np.mean(
            [
                [np.square(g).sum() for g in seen.gradient.values()]
                for seen in trace[starts[window - 1] : starts[window]]
            ],
            axis=0,
        )
        u, q = np.sqrt(by_layer(run, move, move) / sizes), np.sqrt(energy / sizes)
        U, Q = (np.sqrt((sizes * v**2).sum() / sizes.sum()) for v in (u, q))
        expected = np.sqrt((u + 0.03 * U) / (q + 0.03 * Q))
        # Adding the code to the anchor rounds to float32, which matters for small steps.
        np.testing.assert_allclose(stored[window], expected, rtol=1e-4)
    assert stored.std() > 0


def test_the_stored_sketch_is_that_of_the_weighted_gradient(
    traced: tuple[Run, list[Step]],
):
    run, trace = traced
    signs, scales = run.stored.array("signs")[:], run.stored.array("scales")[:]
    windows = run.stored.array("window")[:]
    for step, seen in enumerate(trace):
        weights = run.windows["weights"].values[windows[step]]
        weighted = {
            name: np.float32(gradient) * weight
            for (name, gradient), weight in zip(
                seen.gradient.items(), weights, strict=True
            )
        }
        vector = flat(run, weighted)
        sketch = run.stored.sketch_of(int(windows[step]))
        expected, scale = sketch.encode(vector, step)
        np.testing.assert_allclose(scales[step], scale, rtol=1e-5)
        # A sign may differ if it depends on rounding.
        first, rows = sketch.step_signs(step)
        y = rotate(sketch.fold(vector, rows), first)
        clear = np.abs(y) > 1e-5 * np.abs(y).max()
        differs = np.unpackbits(signs[step]) != np.unpackbits(expected)
        assert clear.mean() > 0.99
        assert not (differs & clear).any()


def test_stored_probes_are_those_of_gradient_and_displacement(
    traced: tuple[Run, list[Step]],
):
    run, trace = traced
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    gradient, displacement = decode_probes({n: run.stored.array(n)[:] for n in names})
    windows = run.stored.array("window")[:]
    for step, seen in enumerate(trace):
        point = flat(run, seen.before) - reference(run, windows[step])
        for stored, vector, half_level in [
            (gradient[step], flat(run, seen.gradient), 0.501 / 127),
            (displacement[step], point, 2**-11),  # float16 below its largest
        ]:
            expected = run.stored.probes(vector)
            largest = np.abs(expected).max()
            assert np.abs(stored - expected).max() <= (half_level + 1e-5) * largest
    for window in range(run.n_windows):
        expected = run.stored.probes(reference(run, window))
        stored = run.windows["probes"].values[window]
        # The probes are sums of float32 probes over the windows.
        np.testing.assert_allclose(
            stored, expected, atol=1e-5 * np.abs(expected).max(), rtol=0
        )


def test_exact_mode_stores_gradients_and_displacements(tmp_path: Path):
    run, trace = record(
        tmp_path / "run", regression(), 12, steps_per_epoch=4, exact=True
    )
    assert_tables_match(run, trace)
    for step, seen in enumerate(trace):
        window = int(run.stored.array("window")[step])
        expected = flat(run, seen.before) - reference(run, window)
        assert np.array_equal(
            run.stored.array("gradient")[step], flat(run, seen.gradient)
        )
        assert np.array_equal(run.stored.array("displacement")[step], expected)


def test_final_iterate_is_bit_exact(traced: tuple[Run, list[Step]]):
    run, trace = traced
    assert np.array_equal(run.stored.array("final")[:], flat(run, trace[-1].after))
    assert run.status == "complete"


@pytest.mark.parametrize("bits", [8, 4096], ids=["few-bits", "more-bits-than-numbers"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.usefixtures("backend")
def test_tables_of_unusual_parameters(
    make: Callable[[], Training], bits: int, tmp_path: Path
):
    training = make()
    options = {"reference_every": 3, "sketch_bits": bits, "probes": 8}
    run, trace = record(tmp_path / "run", training, 10, **options)

    parameters = dict(training.model.named_parameters())
    assert run.layout.names == tuple(parameters)
    assert run.layout.shapes == tuple(tuple(p.shape) for p in parameters.values())
    assert_tables_match(run, trace)
    assert np.array_equal(run.stored.array("final")[:], flat(run, trace[-1].after))
