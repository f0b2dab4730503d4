"""Test that plans agree with recorded stores and with measured errors."""

import json
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajstore.format.arrays import DISPLACEMENT_CODES, SUM_SIGNS
from trajstore.format.layout import Layout
from trajstore.format.run_spec import BASIS, SKETCH_BITS
from trajstore.format.windows import Windows
from trajstore.planning.errors import Rate, mean_of_signs
from trajstore.planning.estimate import (
    COMPRESSION,
    Plan,
    guess_layout,
    plan_recording,
    window_starts,
)
from trajstore.planning.measured import Optimizer
from trajstore.reading.run import open_run
from trajstore.sketch.sketch import sketch_of

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
LAYOUT = Layout(("weight", "bias"), ((2000, 500), (500,)))


def results(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def bytes_below(path: Path, *, but: tuple[str, ...] = ()) -> int:
    files = [file for file in path.rglob("*") if file.is_file()]
    return sum(
        file.stat().st_size
        for file in files
        if file.relative_to(path).parts[0] not in but
    )


@pytest.fixture(scope="module", params=[3, 0], ids="basis={}".format)
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the path of a run of 6 epochs of 40 steps, with default options or no basis."""
    torch = pytest.importorskip("torch")
    from trajstore import Recorder

    torch.manual_seed(1)
    nn = torch.nn
    model = nn.Sequential(nn.Linear(64, 700), nn.Tanh(), nn.Linear(700, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    path = tmp_path_factory.mktemp("plan") / "run.zarr"
    with Recorder(
        path,
        model,
        optimizer,
        steps_per_epoch=40,
        total_steps=240,
        basis=request.param,
    ) as recorder:
        for _ in range(240):
            optimizer.zero_grad()
            inputs = torch.randn(16, 64)
            loss = (model(inputs) - inputs[:, :10].sin()).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    return path


def test_sizes_equal_those_of_a_recorded_store(recorded: Path):
    run = open_run(recorded)
    plan = Plan(spec=run.spec)
    assert plan.n_windows == run.n_windows
    assert plan.disk == pytest.approx(bytes_below(recorded), rel=0.15)
    steps = bytes_below(recorded, but=("references", "final", "zarr.json"))
    planned = plan.n_steps * sum(plan.bytes_per_step.values())
    assert planned == pytest.approx(steps, rel=0.15)
    anchors = bytes_below(recorded / "references")
    assert sum(plan.bytes_of_anchors.values()) == pytest.approx(anchors, rel=0.15)
    assert plan.bytes_of_final == pytest.approx(
        bytes_below(recorded / "final"), rel=0.15
    )


def test_sizes_equal_those_of_a_store_in_float64(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from trajstore import Recorder

    torch.manual_seed(1)
    nn = torch.nn
    model = nn.Sequential(nn.Linear(64, 700), nn.Tanh(), nn.Linear(700, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(16, 64, dtype=torch.float64)
    path = tmp_path / "run.zarr"
    with Recorder(path, model, optimizer, steps_per_epoch=20, total_steps=60):
        for _ in range(60):
            optimizer.zero_grad()
            (model(inputs) - inputs[:, :10].sin()).square().mean().backward()
            optimizer.step()
    run = open_run(path)
    plan = plan_recording(run.layout, n_steps=60, steps_per_epoch=20, float64=True)
    assert plan.spec == run.spec
    assert plan.disk == pytest.approx(bytes_below(path), rel=0.15)
    assert plan.bytes_of_final == 8 * run.layout.size
    narrow = plan_recording(run.layout, n_steps=60, steps_per_epoch=20)
    vectors = (60 - 12) * run.layout.size
    assert plan.memory > narrow.memory + vectors


def test_the_size_of_a_tiny_store_includes_its_metadata(example_run: Path):
    spec = open_run(example_run).spec
    snapshots = bytes_below(example_run / "snapshots")
    stored = bytes_below(example_run) - snapshots
    assert Plan(spec=spec).disk == pytest.approx(stored, rel=0.25)


def test_a_plan_counts_windows_and_bytes():
    layout = Layout(("weight", "bias"), ((1000, 1000), (1000,)))
    plan = plan_recording(layout, n_steps=3000, steps_per_epoch=300)
    assert plan.n_windows == 22
    assert plan.bytes_per_step["signs"] == SKETCH_BITS / 8


def test_defaults_equal_those_of_a_recorder(recorded: Path):
    run = open_run(recorded)
    options: dict[str, Any] = {} if run.spec.basis == BASIS else {"basis": 0}
    planned = plan_recording(
        run.layout, n_steps=240, steps_per_epoch=40, optimizer="sgd", **options
    )
    assert planned.spec == run.spec


def test_past_anchors_are_not_more_than_windows():
    layout = guess_layout(10**8)
    plans = [
        plan_recording(layout, n_steps=100, reference_every=10, basis=basis)
        for basis in (3, 12, 30)
    ]
    assert plans[0].memory < plans[1].memory
    # Tables have more columns, but the number of codes stays the same.
    assert plans[2].memory < 1.1 * plans[1].memory


def test_memory_equals_the_measured_memory():
    # ResNet-18. The plan does not count freed memory (below 32 MB) that the allocator keeps.
    layout = guess_layout(11_173_962, 62)
    plan = plan_recording(layout, n_steps=240, steps_per_epoch=6)
    vectors = results("overhead")["peak memory, float32 vectors"]
    assert 0 < vectors * 4 * layout.n_params - plan.memory < 48e6


def test_a_plan_without_a_basis_saves_columns_but_no_memory_of_vectors():
    plans = [
        plan_recording(LAYOUT, n_steps=1000, reference_every=100, basis=basis)
        for basis in (0, 1)
    ]
    # Each of 2 layers has 2 columns of products and 2 derived columns, of 4 bytes each.
    saved = [sum(p.bytes_per_step.values()) for p in plans]
    assert saved[1] - saved[0] == pytest.approx(32 * COMPRESSION["tables"])
    # Buffers of rows differ slightly.
    assert plans[0].memory == pytest.approx(plans[1].memory, abs=0.1 * 4 * LAYOUT.size)


positive = st.integers(1, 40)


@given(
    steps_per_epoch=st.none() | positive,
    reference_every=st.none() | positive,
    total_steps=st.none() | st.integers(1, 120),
    n_steps=st.integers(1, 150),
)
def test_windows_start_as_in_a_recorder(
    steps_per_epoch, reference_every, total_steps, n_steps
):
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=reference_every,
        total_steps=total_steps,
    )
    starts, following = [], 0
    for step in range(n_steps):
        epoch_start = step - step % steps_per_epoch if steps_per_epoch else 0
        if step == following:
            starts.append(step)
            following = windows.next_start(step + 1, epoch_start)
    assert list(window_starts(windows, n_steps)) == starts


def test_error_falls_with_the_root_of_signs_and_steps():
    layout = guess_layout(20_000_000)

    def error(bits: int, mean_of: int = 1) -> float:
        plan = plan_recording(
            layout,
            n_steps=5000,
            sketch_bits=bits,
            reference_every=200,
            optimizer="sgd",
        )
        return plan.stderr(mean_of=mean_of).typical

    # For both numbers of signs, the fold has many rows.
    assert error(1 << 12) == pytest.approx(4 * error(1 << 16), rel=0.02)
    independent = error(1 << 12) / 4
    known = mean_of_signs("sgd")
    assert error(1 << 12, 16) == pytest.approx(known * independent, rel=0.02)


@pytest.mark.parametrize("mean_of", [1, 40])
def test_errors_grow_if_the_learning_rate_decays(mean_of: int):
    errors = [
        plan_recording(LAYOUT, n_steps=1000, steps_per_epoch=40, rate=rate).stderr(
            mean_of=mean_of
        )
        for rate in ("constant", "linear", "cosine")
    ]
    for less, more in pairwise(errors):
        assert all(a < b for a, b in zip(less, more, strict=True))


def test_more_probes_reduce_the_error_that_more_signs_leave():
    def saved(bits: int) -> float:
        errors = [
            plan_recording(
                LAYOUT,
                n_steps=1000,
                reference_every=100,
                sketch_bits=bits,
                probes=probes,
            ).stderr()
            for probes in (1024, 4096)
        ]
        return errors[1].typical / errors[0].typical

    assert saved(1 << 24) < 0.75
    assert 0.9 < saved(1 << 16) < 1


def test_sums_of_updates_make_means_under_sgd_more_precise():
    def error(optimizer: Optimizer | None, length: int, mean_of: int) -> float:
        plan = plan_recording(
            LAYOUT,
            n_steps=1000,
            steps_per_epoch=40,
            reference_every=length,
            optimizer=optimizer,
        )
        return plan.stderr(mean_of=mean_of).typical

    kinds: tuple[Optimizer, ...] = ("sgd", "momentum", "adaptive")
    means = [error(kind, 40, 40) for kind in kinds]
    assert means[0] < 0.5 * min(means[1:])
    assert means[-1] == error(None, 40, 40)
    # The sum of a long window says little about one epoch.
    step = error("sgd", 40, 1)
    expected = mean_of_signs("sgd") * step / sqrt(40)
    # The rounded ends of the window leave a little more.
    assert expected < means[0] < 1.3 * expected
    assert error("sgd", 400, 40) > 0.9 * error("sgd", 400, 1) / sqrt(40)


def test_the_ends_of_windows_limit_what_sums_of_updates_add_to_precise_sketches():
    def gain(bits: int) -> float:
        plan = plan_recording(
            guess_layout(12_000),
            n_steps=800,
            steps_per_epoch=20,
            reference_every=20,
            sketch_bits=bits,
            optimizer="sgd",
        )
        step = plan.stderr().typical / sqrt(20)
        return plan.stderr(mean_of=20).typical / step

    # Sketches of one bit, 4 and 16 bits for each number.
    assert 1 < gain(1 << 14) / mean_of_signs("sgd") < 1.3
    assert 0.3 < gain(1 << 16) < 0.6
    assert gain(1 << 18) > 0.99


def test_the_first_epochs_have_windows_of_their_own_where_short_epochs_share():
    def mean_error(n_epochs: int, **options: Any) -> float:
        plan = plan_recording(
            guess_layout(2_000_000),
            n_steps=20 * n_epochs,
            steps_per_epoch=20,
            optimizer="sgd",
            **options,
        )
        assert (plan.spec.shared_epochs > 1) == (not options)
        return plan.stderr(mean_of=20).typical

    # Windows that epochs share say less about each of them.
    ratios = [mean_error(n) / mean_error(n, reference_every=20) for n in (12, 40, 400)]
    assert 1 <= ratios[0] < 1.5 < ratios[1] < ratios[2]


def test_small_networks_without_sums_of_gradients_have_independent_errors():
    layout = guess_layout(5000)
    options: dict[str, Any] = {
        "n_steps": 1000,
        "steps_per_epoch": 40,
        "probes": 1 << 24,
    }
    plan = plan_recording(layout, optimizer="adaptive", **options)
    assert plan.spec.window_folds == 0
    step = plan.stderr().typical
    assert plan.stderr(mean_of=40).typical == pytest.approx(step / sqrt(40), rel=0.1)


def test_plans_count_the_sums_of_gradients_that_only_other_optimizers_need():
    def planned(optimizer: Optimizer | None) -> Plan:
        return plan_recording(
            guess_layout(2_000_000),
            n_steps=4000,
            reference_every=400,
            optimizer=optimizer,
        )

    adaptive, sgd = planned("adaptive"), planned("sgd")
    assert (sgd.spec.window_folds, planned(None).spec) == (0, adaptive.spec)
    sums = adaptive.bytes_of_anchors[SUM_SIGNS]
    per_window = adaptive.spec.window_folds * SKETCH_BITS / 8
    # Windows of fewer than 8 steps have no sums.
    n_long = (adaptive.windows.lengths >= 8).sum()
    assert sums == pytest.approx(n_long * per_window)
    assert 0 < adaptive.disk - sgd.disk < 0.05 * sgd.disk


def test_sums_of_displacements_make_means_more_precise():
    plan = plan_recording(
        guess_layout(300_000), n_steps=8000, steps_per_epoch=400, optimizer="adaptive"
    )
    assert plan.spec.displacement_sum
    without = replace(plan, spec=replace(plan.spec, displacement_sum=False))
    assert plan.stderr() == without.stderr()
    means = [each.stderr(mean_of=400).typical for each in (plan, without)]
    assert means[0] < 0.85 * means[1]
    codes = plan.bytes_of_anchors[DISPLACEMENT_CODES]
    n_long = (plan.windows.lengths >= 8).sum()
    assert codes == n_long * SKETCH_BITS / 8


def test_a_run_of_one_step_has_no_error_from_the_distance():
    few, many = (
        plan_recording(LAYOUT, n_steps=1, sketch_bits=bits).stderr().typical
        for bits in (1 << 20, 1 << 24)
    )
    assert many < 0.26 * few


@pytest.mark.parametrize("n_params", [5000, 82_000, 300_000, 2_000_000])
@pytest.mark.parametrize("bits", [1 << 12, 1 << 16, 1 << 18])
def test_the_plain_error_counts_pairs_of_elements_in_the_same_bucket(n_params, bits):
    layout = Layout(("all",), ((n_params,),))
    plan = plan_recording(layout, n_steps=1000, sketch_bits=bits)
    sketch = sketch_of(plan.spec, layout)
    counts = np.bincount(np.arange(sketch.size) % sketch.fold.width)
    pairs = int((counts**2).sum()) - sketch.size
    variance = pairs / sketch.size**2 + sketch.code_variance
    assert plan.plain_error == pytest.approx(sqrt(variance), rel=1e-9)


def test_a_larger_basis_gives_a_smaller_error():
    errors = [
        plan_recording(LAYOUT, n_steps=1000, reference_every=40, basis=basis).stderr()
        for basis in (0, 1, 3)
    ]
    for more, less in pairwise(errors):
        assert more.low > less.low
        assert more.typical > less.typical
        # The run with the largest error has one basis, and one hardly depends on it.
        assert more.high >= 0.99 * less.high


@pytest.mark.parametrize(("basis", "measured"), [(2, 1), (7, 3)])
def test_a_basis_has_the_error_of_the_next_smaller_measured_basis(
    basis: int, measured: int
):
    options: dict[str, Any] = {"n_steps": 1000, "reference_every": 40}
    found = plan_recording(LAYOUT, basis=basis, **options).stderr()
    assert found == plan_recording(LAYOUT, basis=measured, **options).stderr()


def test_the_typical_error_lies_inside_the_range():
    low, typical, high = plan_recording(LAYOUT, n_steps=1000).stderr()
    assert low < typical < high


@given(data=st.data(), n_params=st.integers(1, 10**10))
def test_guessed_layers_have_the_given_number_of_parameters(data, n_params):
    n_tensors = data.draw(st.none() | st.integers(1, min(n_params, 2000)))
    layout = guess_layout(n_params, n_tensors)
    assert layout.n_params == n_params
    assert min(layout.sizes) >= 1
    assert n_tensors in {None, len(layout.names)}


@pytest.mark.parametrize(
    ("n_params", "n_tensors", "message"),
    [
        pytest.param(0, None, r"`n_params` must be at least 1, got 0", id="no params"),
        pytest.param(10, 11, r"between 1 and .*, 10; got 11", id="too many tensors"),
        pytest.param(10, 0, r"between 1 and .*, 10; got 0", id="no tensors"),
    ],
)
def test_impossible_tensors_are_refused(n_params, n_tensors, message):
    with pytest.raises(ValueError, match=message):
        guess_layout(n_params, n_tensors)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_ends_of_windows_limit_nearly_exact_sketches_under_sgd(
    optimizer: Optimizer,
):
    def error(probes: int, mean_of: int = 1, rate: Rate = "constant") -> float:
        plan = plan_recording(
            guess_layout(12_000),
            n_steps=300,
            steps_per_epoch=20,
            sketch_bits=1 << 20,
            probes=probes,
            optimizer=optimizer,
            rate=rate,
        )
        return plan.stderr(mean_of=mean_of).typical

    # Recordings of 4,935 to 12,705 parameters had 1.6e-5 to 1.7e-5.
    assert 5e-6 < error(1024) < 2e-5
    assert error(4096) == pytest.approx(error(1024) / 2, rel=0.2)
    # The ends of a window are the same for all of its steps.
    assert 0.8 < error(1024, mean_of=20) / error(1024) < 1
    assert error(1024, rate="cosine") > 2 * error(1024)
