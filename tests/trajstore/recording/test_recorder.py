"""Recorded runs against unrecorded ones, and against float64 arithmetic."""

import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run, open_run
from trajstore.sketch.rotation import rotate
from trajstore.store.row_table import RowTable

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode

from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.choose import CHOICE
from trajstore.tracking.precision import quiet

Array = npt.NDArray[Any]

SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64}
STEPS_PER_EPOCH, EPOCHS = 8, 5


class Training(NamedTuple):
    """A model, its optimizer, and what one forward pass yields at a step."""

    model: nn.Module
    optimizer: Any
    loss: Callable[[int], Any]


class Step(NamedTuple):
    """What the test saw in one step, float64 by parameter name."""

    gradient: dict[str, Array]
    before: dict[str, Array]
    after: dict[str, Array]


def regression(*, dropout: float = 0.0, momentum: float = 0.9) -> Training:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(40, 60), nn.Tanh(), nn.Dropout(dropout), nn.Linear(60, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)

    def loss(step: int) -> Any:
        inputs = torch.randn(16, 40)
        return (model(inputs) - inputs[:, :3].sin()).square().mean()

    return Training(model, optimizer, loss)


def float64(tensor: Any) -> Array:
    dense = tensor.detach()
    dense = dense.to_dense() if dense.is_sparse else dense
    values: Array = dense.double().numpy().copy()
    return values


def iterate(training: Training) -> dict[str, Array]:
    return {n: float64(p) for n, p in training.model.named_parameters()}


def gradients(training: Training) -> dict[str, Array]:
    return {
        n: np.zeros(tuple(p.shape)) if p.grad is None else float64(p.grad)
        for n, p in training.model.named_parameters()
    }


def take_step(training: Training, step: int, recorder: Any = None) -> Step:
    training.optimizer.zero_grad()
    loss = training.loss(step)
    loss.backward()
    if recorder is not None:
        recorder.log(loss=loss)
    gradient, before = gradients(training), iterate(training)
    training.optimizer.step()
    return Step(gradient, before, iterate(training))


def record(
    path: Path, training: Training, n_steps: int, **options: Any
) -> tuple[Run, list[Step]]:
    with Recorder(path, training.model, training.optimizer, **options) as recorder:
        trace = [take_step(training, step, recorder) for step in range(n_steps)]
    return open_run(path), trace


def flat(run: Run, tensors: dict[str, Array]) -> Array:
    return run.layout.flatten(tensors)


def reference(run: Run, window: int) -> Array:
    return run.stored.anchors.decode(window, slice(0, run.layout.size))


def expected_references(run: Run, trace: list[Step]) -> list[Array]:
    """Code the windows' first iterates by hand, in float32."""
    references: list[Array] = []
    for start in run.windows["start"].values:
        point = flat(run, trace[start].before)
        if not references:
            references.append(point)
            continue
        difference = (point - references[-1]).reshape(-1, 1024)
        difference = np.where(np.isfinite(difference), difference, np.float32(0))
        scale = (np.abs(difference).max(1) / np.float32(127))[:, None]
        levels = np.rint(difference / np.where(scale > 0, scale, np.float32(1)))
        references.append(references[-1] + (levels * scale).reshape(-1))
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
    """Lay products by layer beside each other; there may be none."""
    return np.array(products).reshape(len(products), len(names)).T


def expected_tables(
    run: Run, trace: list[Step], references: list[Array]
) -> dict[str, tuple[Array, Array]]:
    """Return every table in float64, with the size that its rounding is relative to."""
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
            # The recorder adds codes up: a basis vector is as exact as r is.
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
"""Tables that rest on products with the first vector of the basis."""

RTOL = 3e-6
"""float32 sums of 1024 products, relative to the product of the norms."""


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


# --- the recorder changes nothing ---------------------------------------------------


def adam() -> Training:
    training = regression(dropout=0.3)
    optimizer = torch.optim.Adam(training.model.parameters(), lr=1e-3)
    return training._replace(optimizer=optimizer)


def with_dropout() -> Training:
    return regression(dropout=0.3)


RUNS: dict[str, tuple[Callable[[], Training], bool, str]] = {
    "momentum": (regression, False, "highest"),
    "dropout": (with_dropout, False, "highest"),
    "adam-dropout": (adam, False, "highest"),
    "exact": (with_dropout, True, "highest"),
    "low-precision": (with_dropout, False, "medium"),
}


@pytest.mark.parametrize(("make", "exact", "precision"), RUNS.values(), ids=RUNS.keys())
def test_recording_does_not_change_the_run(
    make: Callable[[], Training], exact: bool, precision: str, tmp_path: Path
):
    def end(recorded: bool) -> tuple[Any, ...]:
        training = make()
        if recorded:
            record(
                tmp_path / "run.zarr",
                training,
                20,
                steps_per_epoch=8,
                total_steps=20,
                exact=exact,
                **SMALL,
            )
        else:
            for step in range(20):
                take_step(training, step)
        state = training.optimizer.state_dict()["state"]
        tensors = list(training.model.parameters())
        for i in sorted(state):
            tensors += [v for _, v in sorted(state[i].items()) if torch.is_tensor(v)]
        return tensors, torch.get_rng_state(), torch.get_float32_matmul_precision()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        (recorded, stream, left), (alone, own_stream, own) = end(True), end(False)
    finally:
        torch.set_float32_matmul_precision(before)

    assert len(recorded) == len(alone) >= 8
    assert all(torch.equal(a, b) for a, b in zip(recorded, alone, strict=True))
    assert torch.equal(stream, own_stream)
    assert left == own == precision


def test_recording_leaves_gradients_and_modes_alone(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        training.loss(0).backward()
        kept = [p.grad for p in training.model.parameters()]
        values = [g.clone() for g in kept]  # type: ignore[union-attr]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            training.optimizer.step()
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()

    for parameter, gradient, value in zip(
        training.model.parameters(), kept, values, strict=True
    ):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert parameter.requires_grad


def test_autocast_around_the_step_does_not_coarsen_the_record(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL):
        training.loss(0).backward()
        expected = [float64(p.grad) for p in training.model.parameters()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            training.optimizer.step()

    squares = [np.square(g).sum() for g in expected]
    # bfloat16 products would be off by 1e-3.
    np.testing.assert_allclose(open_run(path).steps.grad_sq[0], squares, rtol=1e-6)


@pytest.mark.slow
def test_precision_chosen_for_one_backend_is_left_alone(tmp_path: Path):
    code = (
        "import sys, torch; from torch import nn; from trajstore import Recorder\n"
        "model = nn.Linear(2, 1); opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "matmul = torch.backends.mkldnn.matmul; matmul.fp32_precision = 'bf16'\n"
        "with Recorder(sys.argv[1], model, opt, sketch_bits=64, probes=8):\n"
        "    model(torch.ones(1, 2)).sum().backward(); opt.step()\n"
        "assert matmul.fp32_precision == 'bf16'\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "r"], check=True)


# --- what is recorded ---------------------------------------------------------------


BACKENDS = {"compiled": "", "torch": "eager"}
"""Values of the environment variable that chooses a backend."""


@pytest.fixture(scope="module", params=list(BACKENDS.values()), ids=list(BACKENDS))
def steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let recorders measure steps with each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOICE, request.param)
        yield


@pytest.fixture(scope="module", params=[0, 1, 2, 3, 4, 5], ids="basis={}".format)
def traced(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    steps: None,
) -> tuple[Run, list[Step]]:
    """A run of many windows, with everything that happened in it."""
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
    # The update is a difference of float32 differences to the reference.
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
        # As in the tables: a basis vector is as exact as its reference is.
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
        # The code is added to the reference with float32 rounding; small steps feel it.
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
        # Where rounding decides, a sign may differ.
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
        # Sums over the windows of float32 probes.
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


# --- kinds of parameters ------------------------------------------------------------


class Module(nn.Module):
    """Parameters by name, as given."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            setattr(self, name, parameter)


def vector(*shape: int, dtype: Any = None, seed: int = 0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype or torch.float32)
    return nn.Parameter(values, **options)


def pull(*parameters: Any) -> Any:
    """Return a loss that draws parameters to 0.3, with a different force for each."""
    return sum(
        (i + 1) * (p.float() - 0.3).square().sum() for i, p in enumerate(parameters)
    )


def sgd(model: nn.Module, *, lr: float = 0.05) -> Any:
    return torch.optim.SGD(model.parameters(), lr=lr)


def frozen() -> Training:
    m = Module(free=vector(30, 50), still=vector(7, requires_grad=False))
    return Training(m, sgd(m), lambda _: pull(m.free))


def sometimes_without_gradient() -> Training:
    m = Module(always=vector(9), sometimes=vector(1100))
    return Training(
        m,
        sgd(m),
        lambda step: pull(m.always, m.sometimes) if step % 3 else pull(m.always),
    )


def tied() -> Training:
    m = Module(one=nn.Linear(6, 6), two=nn.Linear(6, 6))
    m.two.weight = m.one.weight  # type: ignore[union-attr]
    inputs = torch.ones(2, 6)
    return Training(m, sgd(m), lambda _: pull(m.two(m.one(inputs))))  # type: ignore[operator]


def groups() -> Training:
    m = Module(a=vector(5), b=vector(1030), c=vector(3))
    # The groups' order is not that of the model.
    optimizer = torch.optim.SGD(
        [{"params": [m.c, m.a], "lr": 0.1}, {"params": [m.b], "lr": 0.01}]
    )
    return Training(m, optimizer, lambda _: pull(m.a, m.b, m.c))


def half(dtype: Any) -> Callable[[], Training]:
    def make() -> Training:
        m = Module(low=vector(20, 60, dtype=dtype), full=vector(5))
        return Training(m, sgd(m), lambda _: pull(m.low, m.full))

    return make


def sparse() -> Training:
    m = Module(words=nn.Embedding(50, 30, sparse=True), bias=vector(30))

    def loss(step: int) -> Any:
        # Repeated words: the gradient is not coalesced.
        index = torch.tensor([step, 3, 3, 49])
        return pull(m.words(index) + m.bias)  # type: ignore[operator]

    return Training(m, sgd(m), loss)


def zero_size() -> Training:
    m = Module(a=vector(5), none=vector(0, 4), b=vector(6))
    return Training(m, sgd(m), lambda _: pull(m.a, m.none, m.b))


def one_parameter() -> Training:
    m = Module(x=vector())
    return Training(m, sgd(m), lambda _: pull(m.x))


def not_contiguous() -> Training:
    m = Module(t=nn.Parameter(vector(40, 30).detach().T), b=vector(3))
    return Training(m, sgd(m), lambda _: pull(m.t, m.b))


KINDS = {
    "frozen": frozen,
    "sometimes": sometimes_without_gradient,
    "tied": tied,
    "groups": groups,
    "float16": half(torch.float16),
    "bfloat16": half(torch.bfloat16),
    "float64": half(torch.float64),
    "sparse": sparse,
    "zero-size": zero_size,
    "one-parameter": one_parameter,
    "not-contiguous": not_contiguous,
}


@pytest.mark.parametrize("bits", [8, 4096], ids=["few-bits", "more-bits-than-numbers"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.usefixtures("steps")
def test_tables_of_unusual_parameters(
    make: Callable[[], Training], bits: int, tmp_path: Path
):
    training = make()
    options = {"reference_every": 3, "sketch_bits": bits, "probes": 8}
    run, trace = record(tmp_path / "run", training, 10, **options)

    parameters = dict(training.model.named_parameters())
    assert run.layout.names == tuple(parameters)
    assert run.layout.shapes == tuple(tuple(p.shape) for p in parameters.values())
    if make is not KINDS["float64"]:  # whose iterates float32 does not hold
        assert_tables_match(run, trace)
    else:
        sums = [[np.square(g).sum() for g in s.gradient.values()] for s in trace]
        np.testing.assert_allclose(run.steps.grad_sq, sums, rtol=1e-6)
    assert np.array_equal(run.stored.array("final")[:], flat(run, trace[-1].after))


def test_parameters_that_the_optimizer_does_not_hold_are_left_out(tmp_path: Path):
    m = Module(held=vector(4), other=vector(3))
    training = Training(m, torch.optim.SGD([m.held], lr=0.1), lambda _: pull(m.held))
    run, _ = record(tmp_path / "run", training, 2, **SMALL)
    assert run.layout.names == ("held",)


def test_learning_rates_of_every_group_are_recorded(tmp_path: Path):
    training = groups()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        training.optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
        take_step(training, 1)
        training.optimizer.param_groups[1]["lr"].fill_(0.25)
        take_step(training, 2)
    steps = open_run(tmp_path / "run").steps
    assert steps.lr.values.tolist() == [0.1, 0.1, 0.1]
    assert steps.lr_1.values.tolist() == [0.01, 0.5, 0.25]


def test_a_tensor_without_elements_does_not_change_the_weights(tmp_path: Path):
    def weights(name: str, **more: Any) -> Array:
        m = Module(a=vector(5), b=vector(6), **more)
        training = Training(m, sgd(m), lambda _: pull(m.a, m.b))
        run, _ = record(tmp_path / name, training, 4, reference_every=2, **SMALL)
        values: Array = run.windows["weights"].values[-1, :2]
        return values

    expected = weights("without")
    assert (expected != 1).all()
    np.testing.assert_allclose(weights("with", none=vector(0, 4)), expected, rtol=1e-6)


# --- numbers that are not finite ----------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_gradient_that_is_not_finite_stays_in_its_row(bad: float, tmp_path: Path):
    """The parameters stay finite here, as where a step is clipped or skipped."""
    m = Module(a=vector(1500), b=vector(6))
    training = Training(m, sgd(m, lr=0.01), lambda _: pull(m.a, m.b))
    options = {"reference_every": 3, "flush_rows": 4, **SMALL}

    def skip(*_: object) -> None:
        m.zero_grad()

    with (
        warnings.catch_warnings(),
        Recorder(tmp_path / "run", m, training.optimizer, **options),
    ):
        warnings.simplefilter("ignore")
        trace = []
        for step in range(10):
            m.zero_grad()
            training.loss(step).backward()
            before = iterate(training)
            if step == 4:
                m.a.grad[7] = bad  # type: ignore[operator, index]
                spoiled = gradients(training)
                handle = training.optimizer.register_step_pre_hook(skip)
                training.optimizer.step()
                handle.remove()
                trace.append(Step(spoiled, before, iterate(training)))
            else:
                gradient = gradients(training)
                training.optimizer.step()
                trace.append(Step(gradient, before, iterate(training)))
    run = open_run(tmp_path / "run")

    references = expected_references(run, trace)
    for window, expected in enumerate(references):
        assert np.array_equal(reference(run, window), expected)
    with np.errstate(invalid="ignore"):
        for name, (value, scale) in expected_tables(run, trace, references).items():
            measured = run.steps[name].values
            finite = np.isfinite(value)
            assert np.array_equal(np.isfinite(measured), finite), name
            error = np.abs(measured - value)[finite]
            assert (error <= RTOL * scale[finite]).all(), name
    finite_scales = np.isfinite(run.stored.array("scales")[:]).all(1)
    assert (~finite_scales).nonzero()[0].tolist() == [4]
    assert (~np.isfinite(run.steps.grad_norm.values)).nonzero()[0].tolist() == [4]
    assert np.isfinite(run.windows["probes"].values).all()


def test_a_run_that_diverges_is_recorded_to_its_end(tmp_path: Path):
    m = Module(x=vector(4))
    training = Training(m, sgd(m, lr=0.1), lambda s: pull(m.x) * (np.nan if s else 1))
    with (
        warnings.catch_warnings(),
        Recorder(tmp_path / "run", m, training.optimizer, reference_every=2, **SMALL),
    ):
        warnings.simplefilter("ignore")
        for step in range(8):
            take_step(training, step)
    run = open_run(tmp_path / "run")
    assert run.n_steps == 8
    assert np.isnan(run.stored.array("final")[:4]).all()
    assert all(np.isfinite(reference(run, w)).all() for w in range(run.n_windows))
    assert np.isnan(run.steps.grad_norm.values[1:]).all()


def test_a_run_that_diverged_closes_without_a_warning(tmp_path: Path):
    m = Module(x=vector(4))
    training = Training(m, sgd(m), lambda _: pull(m.x) * np.nan)
    record(tmp_path / "run", training, 2, **SMALL)


def test_an_infinite_gradient_is_no_reason_to_warn(tmp_path: Path):
    x = nn.Parameter(torch.tensor([-1.0]))
    m = Module(x=x)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.0)
    with Recorder(tmp_path / "run", m, optimizer, **SMALL):
        optimizer.step()
        with torch.no_grad():
            x.fill_(-0.5)
        # Its products with the reference and with the displacement differ in sign.
        x.grad = torch.tensor([torch.inf])
        optimizer.step()
        x.grad = None
        optimizer.step()


@pytest.mark.parametrize(
    "bad",
    [
        np.nan,
        np.inf,
    ],
    ids=["nan", "inf"],
)
def test_weights_after_a_gradient_that_is_not_finite(bad: float, tmp_path: Path):
    x = vector(6)
    m = Module(x=x, y=vector(3))
    with Recorder(tmp_path / "run", m, sgd(m), reference_every=2, **SMALL) as recorder:
        for step in range(4):
            m.zero_grad()
            pull(x, m.y).backward()
            if step == 1:
                x.grad[0] = bad
                handle = recorder._optimizers[0].register_step_pre_hook(
                    lambda optimizer, *_: optimizer.zero_grad()
                )
            recorder._optimizers[0].step()
            if step == 1:
                handle.remove()
    weights = open_run(tmp_path / "run").windows["weights"].values
    assert np.isfinite(weights).all()
    assert (weights > 0).all()


def test_skipped_steps_have_no_rows(tmp_path: Path):
    """A gradient scaler does not call the optimizer where it finds infinities."""
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        trace = []
        for step in range(6):
            if step in {0, 3}:
                training.optimizer.zero_grad()
                loss = training.loss(step) * torch.inf
                loss.backward()
                recorder.log(loss=loss)
                continue
            trace.append(take_step(training, step, recorder))
    run = open_run(path)
    assert_tables_match(run, trace)
    assert np.isfinite(run.steps.loss).all()


# --- scalars ------------------------------------------------------------------------


def test_scalars_belong_to_the_next_step_and_the_last_wins(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        recorder.log(early=1, twice=1.0)
        recorder.log(twice=2.0)
        take_step(training, 0)
        take_step(training, 1)
        recorder.log(late=np.float64(0.5), early=True)
        take_step(training, 2)
        recorder.log(late=7, after=torch.tensor([4.0]))
        recorder.log(after=8)
    steps = open_run(tmp_path / "run").steps
    nan = np.nan
    np.testing.assert_array_equal(steps.early, [1, nan, 1])
    np.testing.assert_array_equal(steps.twice, [2, nan, nan])
    # What belongs to a step is not overwritten by what came for another.
    np.testing.assert_array_equal(steps.late, [nan, nan, 0.5])
    np.testing.assert_array_equal(steps.after, [nan, nan, 8])


def test_scalars_after_the_last_step_keep_the_others_of_its_row(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        take_step(training, 0)
        recorder.log(kept=3)
        take_step(training, 1)
        recorder.flush()
        recorder.log(added=4)
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(steps.kept, [np.nan, 3])
    np.testing.assert_array_equal(steps.added, [np.nan, 4])
    assert np.isfinite(steps.grad_norm).all()


def test_scalars_of_a_run_without_steps_are_dropped(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        recorder.log(alone=1)
    run = open_run(tmp_path / "run")
    assert (run.n_steps, run.status) == (0, "complete")


def test_logged_tensors_are_copies(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        value = torch.tensor(1.0)
        recorder.log(value=value)
        take_step(training, 0)
        value.add_(10)
        recorder.log(value=value)
        take_step(training, 1)
        value.fill_(-1)
    assert open_run(tmp_path / "run").steps.value.values.tolist() == [1, 11]


def test_many_names_fit(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, flush_rows=1, **SMALL
    ) as recorder:
        for step in range(3):
            recorder.log(**{f"m{i}": step + i for i in range(20 * (step + 1))})
            take_step(training, step)
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(steps.m59, [np.nan, np.nan, 61])
    np.testing.assert_array_equal(steps.m0, [0, 1, 2])


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    training = regression()
    with Recorder(
        tmp_path / "fixture", training.model, training.optimizer, **SMALL
    ) as recorder:
        yield recorder


TAKEN = [
    "lr",
    "lr_1",
    "step_size",
    "step_size_1",
    "step",
    "epoch",
    "iteration",
    "window",
    "layer",
]
TAKEN += ["wall_time", "grad_norm", "update_norm", "param_norm"]


@pytest.mark.parametrize("name", TAKEN)
def test_names_of_the_recorder_are_taken(name: str, recorder: Recorder):
    with pytest.raises(ValueError, match=rf"'{name}' is taken"):
        recorder.log(**{name: 1.0})


@pytest.mark.parametrize("name", ["grad_sq", "basis"])
def test_names_of_tables_are_taken(name: str, recorder: Recorder):
    with pytest.raises(ValueError, match=rf"'{name}' is taken"):
        recorder.log(**{name: 1.0})


def test_several_numbers_are_not_a_scalar(recorder: Recorder):
    with pytest.raises(ValueError, match=r"'loss' must be one number.*shape \(2,\)"):
        recorder.log(loss=torch.ones(2))


@pytest.mark.parametrize("value", ["0.5", None, [1.0]], ids=repr)
def test_what_is_not_a_number_is_not_a_scalar(value: Any, recorder: Recorder):
    with pytest.raises(
        TypeError, match="'loss' must be a real number or a tensor of one, got"
    ):
        recorder.log(loss=value)


def test_a_complex_tensor_is_not_a_scalar(recorder: Recorder):
    try:
        with pytest.raises(TypeError, match="'loss' must be"):
            recorder.log(loss=torch.tensor(1j))
    finally:
        recorder._pending.clear()


class NoSync(TorchDispatchMode):
    """Fails where an operator brings a value to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal")
        assert not any(word in name for word in waits), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_steps_and_scalars_do_not_wait_for_the_device(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main = threading.get_ident()
    item = torch.Tensor.item

    def item_elsewhere(self: Any) -> Any:
        assert threading.get_ident() != main
        return item(self)

    monkeypatch.setattr(torch.Tensor, "item", item_elsewhere)
    monkeypatch.setenv(CHOICE, "eager")
    training = regression()
    with Recorder(
        tmp_path / "run",
        training.model,
        training.optimizer,
        steps_per_epoch=4,
        flush_rows=5,
        exact=exact,
        **SMALL,
    ) as recorder:
        for step in range(14):  # several windows and flushes among them
            training.optimizer.zero_grad()
            loss = training.loss(step)
            loss.backward()
            with NoSync():
                recorder.log(loss=loss, constant=1.0)
                training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 14


def test_the_guard_against_waiting_can_fail():
    with NoSync(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(1).item()


# --- flushes, epochs, windows -------------------------------------------------------


def test_rows_are_visible_after_a_flush(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        for step in range(5):
            take_step(training, step)
            assert open_run(path).n_steps == step
            recorder.flush()
            run = open_run(path)
            assert (run.n_steps, run.status, run.has_final) == (
                step + 1,
                "running",
                False,
            )
            assert np.isfinite(run.steps.grad_norm).all()
        recorder.flush()
    assert open_run(path).status == "complete"


def wait_for_steps(path: Path, n: int) -> int:
    """Return the number of visible rows as soon as there are n, or after a while."""
    for _ in range(200):
        if open_run(path).n_steps >= n:
            break
        time.sleep(0.01)
    return open_run(path).n_steps


def test_rows_are_flushed_by_number(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, flush_rows=3, **SMALL):
        for step in range(5):
            take_step(training, step)
        assert wait_for_steps(path, 3) == 3
        take_step(training, 5)
        assert wait_for_steps(path, 6) == 6


@pytest.mark.parametrize(
    ("seconds", "visible"), [(0.1, 2), (1000.0, 0)], ids=["soon", "late"]
)
def test_rows_are_flushed_by_time(seconds: float, visible: int, tmp_path: Path):
    training = regression()
    path, options = tmp_path / "run", {"flush_seconds": seconds, **SMALL}
    with Recorder(path, training.model, training.optimizer, **options):
        take_step(training, 0)
        time.sleep(0.15)
        take_step(training, 1)
        assert wait_for_steps(path, 2 if visible else 0) == visible


@pytest.mark.parametrize("flush_rows", [1, 1000])
def test_how_rows_are_flushed_does_not_change_them(flush_rows: int, tmp_path: Path):
    def rows(name: str, flush_rows: int) -> dict[str, Array]:
        run, _ = record(
            tmp_path / name,
            regression(),
            20,
            steps_per_epoch=4,
            flush_rows=flush_rows,
            **SMALL,
        )
        dropped = ["wall_time", "lr"]
        values = {str(k): v.values for k, v in run.steps.drop_vars(dropped).items()}
        return values | {"signs": run.stored.array("signs")[:]}

    expected, values = rows("a", 7), rows("b", flush_rows)
    assert expected.keys() == values.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value)


def test_epochs_are_counted(tmp_path: Path):
    run, _ = record(tmp_path / "run", regression(), 8, steps_per_epoch=3, **SMALL)
    assert run.steps.epoch.values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert run.steps.iteration.values.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_without_steps_per_epoch_there_is_one_epoch(tmp_path: Path):
    run, _ = record(tmp_path / "run", regression(), 4, **SMALL)
    assert run.steps.epoch.values.tolist() == [0, 0, 0, 0]
    assert run.steps.iteration.values.tolist() == [0, 1, 2, 3]


def test_epochs_are_begun_by_hand(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        trace = []
        for length in (2, 3, 1):
            recorder.start_epoch()
            recorder.start_epoch()  # has just begun
            trace += [take_step(training, step) for step in range(length)]
    run = open_run(tmp_path / "run")
    assert run.steps.epoch.values.tolist() == [0, 0, 1, 1, 1, 2]
    assert run.steps.iteration.values.tolist() == [0, 1, 0, 1, 2, 0]
    assert {2, 5} <= set(run.windows["start"].values.tolist())
    assert run.stored.epoch_windows.keys() == {0, 1, 2}
    assert_tables_match(run, trace)


def test_epochs_are_begun_by_the_count_or_by_hand(tmp_path: Path):
    training = regression()
    with (
        Recorder(
            tmp_path / "run",
            training.model,
            training.optimizer,
            steps_per_epoch=5,
            **SMALL,
        ) as recorder,
        pytest.raises(ValueError, match="`steps_per_epoch` = 5 begins the epochs"),
    ):
        recorder.start_epoch()


SCHEDULES: dict[str, tuple[dict[str, int], list[int]]] = {
    "epochs": ({"steps_per_epoch": 8}, [0, 1, 2, 4, 8, 16]),
    "end-known": (
        {"steps_per_epoch": 8, "total_steps": 20},
        [0, 1, 2, 4, 8, 16, 18, 19],
    ),
    "reference-every": ({"reference_every": 8}, [0, 1, 2, 4, 8, 16]),
}


@pytest.mark.parametrize(
    ("options", "starts"), SCHEDULES.values(), ids=SCHEDULES.keys()
)
def test_windows_begin_where_the_schedule_says(
    options: dict[str, int], starts: list[int], tmp_path: Path
):
    run, _ = record(tmp_path / "run", regression(), 20, **options, **SMALL)
    assert run.windows["start"].values.tolist() == starts
    expected = np.searchsorted(starts, np.arange(20), side="right") - 1
    assert run.steps.window.values.tolist() == expected.tolist()


def test_more_windows_than_keyframes(tmp_path: Path):
    run, trace = record(
        tmp_path / "run", regression(), 36, reference_every=1, basis=4, **SMALL
    )
    assert run.n_windows == 36
    assert run.stored.array("references/keyframes").shape[0] == 2
    for window, expected in enumerate(expected_references(run, trace)):
        assert np.array_equal(reference(run, window), expected), window


def test_two_recorders_agree(tmp_path: Path):
    training = regression()
    with (
        Recorder(tmp_path / "a", training.model, training.optimizer, **SMALL),
        Recorder(tmp_path / "b", training.model, training.optimizer, **SMALL),
    ):
        for step in range(3):
            take_step(training, step)
    a, b = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    assert np.array_equal(a.stored.array("signs")[:], b.stored.array("signs")[:])
    assert a.n_steps == b.n_steps == 3


# --- snapshots ----------------------------------------------------------------------


def test_snapshots_are_iterates_bit_for_bit(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        expected = {}
        for step in range(4):
            if step in {0, 3}:
                expected[f"at {step}/.."] = iterate(training)
                recorder.snapshot(f"at {step}/..")
            take_step(training, step)
        recorder.flush()
        assert set(open_run(path).snapshots) == set(expected)
    run = open_run(path)
    for (name, tensors), step in zip(expected.items(), (0, 3), strict=True):
        entry = run.stored.document.snapshots[name]
        assert entry.step == step
        assert np.array_equal(run.stored.array(entry.array)[:], flat(run, tensors))


@pytest.mark.parametrize("name", ["", "final", "used"], ids=repr)
def test_names_of_snapshots_are_not_empty_nor_used(name: str, recorder: Recorder):
    recorder.snapshot("used")
    with pytest.raises(ValueError, match=rf"cannot be called '{name}'.*\['used'\]"):
        recorder.snapshot(name)


# --- the end ------------------------------------------------------------------------


def hooks(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(
        optimizer._optimizer_step_post_hooks
    )


def test_closing_twice_is_closing_once(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    assert hooks(training.optimizer) == 2
    take_step(training, 0)
    recorder.close()
    recorder.close()
    assert hooks(training.optimizer) == 0
    take_step(training, 1)
    run = open_run(tmp_path / "run")
    assert (run.n_steps, run.status) == (1, "complete")


def test_closing_inside_the_context_is_closing(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        take_step(training, 0)
        recorder.close()
    assert open_run(tmp_path / "run").status == "complete"


@pytest.mark.parametrize(
    "use",
    [lambda r: r.flush(), lambda r: r.snapshot("late")],
    ids=["flush", "snapshot"],
)
def test_a_closed_recorder_says_so(use: Callable[[Recorder], None], tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    recorder.close()
    with pytest.raises(RuntimeError, match="The recorder is closed"):
        use(recorder)


@pytest.mark.parametrize(
    "use", [lambda r: r.log(loss=1), lambda r: r.start_epoch()], ids=["log", "epoch"]
)
def test_a_closed_recorder_takes_no_more(
    use: Callable[[Recorder], None], tmp_path: Path
):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    recorder.close()
    with pytest.raises(RuntimeError, match="The recorder is closed"):
        use(recorder)


def test_a_change_after_the_last_step_is_warned_about(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    with torch.no_grad():
        next(training.model.parameters())[2, 3] += 0.5
    with pytest.warns(UserWarning, match="changed since the last optimizer step") as w:
        recorder.close()
    assert w[0].filename == __file__
    run = open_run(tmp_path / "run")
    assert np.array_equal(run.stored.array("final")[:], flat(run, iterate(training)))


def test_a_step_that_failed_is_no_change_of_the_parameters(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        take_step(training, 1)
        handle = training.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="by zero"):
            take_step(training, 2)
        handle.remove()


def test_rows_go_on_after_a_step_that_failed(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        handle = training.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="by zero"):
            take_step(training, 1)
        handle.remove()
        second = take_step(training, 1)
    run = open_run(tmp_path / "run")
    assert run.n_steps == 2
    squares = [np.square(g).sum() for g in second.gradient.values()]
    np.testing.assert_allclose(run.steps.grad_sq[1], squares, rtol=1e-6)


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_ends_the_recording(
    exception: type[BaseException], tmp_path: Path
):
    training = regression()
    with (  # noqa: PT012
        pytest.raises(exception, match="as raised") as raised,
        Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL),
    ):
        trace = [take_step(training, step) for step in range(3)]
        raise exception("as raised")
    assert not hasattr(raised.value, "__notes__")
    assert hooks(training.optimizer) == 0
    run = open_run(tmp_path / "run")
    assert run.status == "failed"
    assert np.array_equal(run.stored.array("final")[:], flat(run, iterate(training)))
    assert_tables_match(run, trace)


def test_an_exception_before_a_step_leaves_the_last_row_alone(tmp_path: Path):
    training = regression()
    with (  # noqa: PT012
        pytest.raises(ValueError, match="lost"),
        Recorder(
            tmp_path / "run", training.model, training.optimizer, **SMALL
        ) as recorder,
    ):
        recorder.log(loss=1.0)
        take_step(training, 0)
        recorder.log(loss=99.0)
        raise ValueError("lost")
    assert open_run(tmp_path / "run").steps.loss.values.tolist() == [1.0]


def break_after(
    n_batches: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., object]:
    """Let the writer fail when it gets another batch of rows."""
    append, calls = RowTable.append, []

    def append_rows(self: RowTable, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > n_batches:
            raise OSError("no space left")
        append(self, *args, **kwargs)

    monkeypatch.setattr(RowTable, "append", append_rows)
    return append_rows


def train_until_error(training: Training) -> int:
    """Take steps until one raises; return how many went well."""
    for step in range(100):
        try:
            take_step(training, step)
        except RuntimeError:
            return step
        time.sleep(0.02)
    return 100


def test_an_error_of_the_writer_surfaces_at_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(1, monkeypatch)
    path = tmp_path / "run"
    recorder = Recorder(path, training.model, training.optimizer, flush_rows=2, **SMALL)
    # The batch of the third and the fourth step fails.
    assert train_until_error(training) in {4, 5}
    with pytest.raises(RuntimeError, match=r"failed \(OSError\('no space") as again:
        training.optimizer.step()
    assert isinstance(again.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.flush()
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.close()
    assert hooks(training.optimizer) == 0
    run = open_run(path)
    assert run.n_steps == 2
    assert np.isfinite(run.steps.grad_norm).all()
    assert not run.has_final


def test_an_error_of_the_writer_surfaces_at_a_flush_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    with pytest.raises(RuntimeError, match="What was committed before stays readable"):
        recorder.close()
    assert hooks(training.optimizer) == 0


def test_an_error_of_the_writer_does_not_mask_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt, match="by hand") as raised,
        Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL),
    ):
        take_step(training, 0)
        raise KeyboardInterrupt("by hand")
    assert "no space left" in raised.value.__notes__[0]


@pytest.mark.parametrize("n_batches", [0, 1], ids=["at-the-end", "at-a-step"])
def test_a_run_whose_writer_failed_is_interrupted(
    n_batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(n_batches, monkeypatch)
    path = tmp_path / "run"
    recorder = Recorder(path, training.model, training.optimizer, flush_rows=2, **SMALL)
    if n_batches:
        train_until_error(training)
    else:
        take_step(training, 0)
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.close()
    assert open_run(path).status == "interrupted"


def test_an_error_of_the_writer_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="no space left") as raised,
        Recorder(
            tmp_path / "run", training.model, training.optimizer, **SMALL
        ) as recorder,
    ):
        take_step(training, 0)
        recorder.flush()
    assert not hasattr(raised.value, "__notes__")


# --- errors in the beginning --------------------------------------------------------


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("sketch_bits", 1000, r"sketch_bits: expected a power of two .*, got 1000"),
    ("sketch_bits", 4, r"sketch_bits: expected a power of two from 8 .*, got 4"),
    ("sketch_bits", 64.0, r"sketch_bits: expected a power of two .*, got 64.0"),
    ("probes", 100, r"probes: expected a power of two .*, got 100"),
    ("basis", -1, r"basis: expected an integer of at least 0, got -1"),
    ("basis", 2.5, r"basis: expected an integer of at least 0, got 2.5"),
    ("seed", -1, r"seed: expected an integer from 0 .*, got -1"),
    ("seed", 1 << 64, r"seed: expected an integer from 0 .*, got 18446744073709551616"),
    ("exact", 1, r"exact: expected true or false, got 1"),
    ("steps_per_epoch", 0, r"steps_per_epoch: expected an integer of at least 1"),
    ("reference_every", 0, r"reference_every: expected an integer of at least 1"),
    ("total_steps", -3, r"total_steps: expected an integer of at least 1.*got -3"),
    ("flush_rows", 0, r"`flush_rows` must be at least 1 and .*, got 0"),
]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    OUT_OF_RANGE,
    ids=[f"{option}={value}" for option, value, _ in OUT_OF_RANGE],
)
def test_options_out_of_range(option: str, value: Any, message: str, tmp_path: Path):
    training = regression()
    with pytest.raises(ValueError, match=message):
        Recorder(
            tmp_path / "run",
            training.model,
            training.optimizer,
            **{option: value},
        )
    assert not (tmp_path / "run").exists()
    assert hooks(training.optimizer) == 0


def test_all_options_out_of_range_are_listed(tmp_path: Path):
    training = regression()
    with pytest.raises(ValueError, match=r"(?s)seed: .*basis: "):
        Recorder(
            tmp_path / "run", training.model, training.optimizer, seed=-1, basis=-1
        )


def test_numbers_of_steps_may_be_numpy_integers(tmp_path: Path):
    record(tmp_path / "run", regression(), 2, steps_per_epoch=np.int64(2), **SMALL)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_existing_path_is_never_overwritten(kind: str, tmp_path: Path):
    path = tmp_path / "run"
    path.mkdir() if kind == "directory" else path.write_text("precious")
    training = regression()
    with pytest.raises(FileExistsError, match=r"run exists already.* choose a new"):
        Recorder(path, training.model, training.optimizer, **SMALL)
    assert hooks(training.optimizer) == 0
    assert path.is_dir() or path.read_text() == "precious"


def test_directories_above_the_store_are_made(tmp_path: Path):
    path = tmp_path / "some" / "where" / "run"
    training = regression()
    Recorder(str(path), training.model, training.optimizer, **SMALL).close()
    assert open_run(path).status == "complete"


def test_a_model_without_parameters(tmp_path: Path):
    optimizer = regression().optimizer
    with pytest.raises(ValueError, match="The model has no parameters"):
        Recorder(tmp_path / "run", nn.Tanh(), optimizer)


def test_an_optimizer_of_another_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"4 of the 4 tensors .* are not parameters"):
        Recorder(tmp_path / "run", nn.Linear(2, 2), regression().optimizer)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (None, "NoneType"),
        ([], "no optimizer"),
        (nn.Linear(2, 2), "Linear"),
        ([regression().optimizer, "sgd"], "str"),
        (iter([nn.Parameter(torch.ones(2))]), "Parameter"),
    ],
    ids=["nothing", "none", "model", "text", "parameters"],
)
def test_what_is_no_optimizer(optimizer: Any, found: str, tmp_path: Path):
    with pytest.raises(TypeError, match=f"must be a torch.optim.Optimizer .* {found}"):
        Recorder(tmp_path / "run", regression().model, optimizer)
    assert not (tmp_path / "run").exists()


def test_an_optimizer_without_hooks(tmp_path: Path):
    class Outer(optim.Optimizer):
        def __init__(self, inner: optim.Optimizer) -> None:
            self.optimizer, self.param_groups = inner, inner.param_groups

    training = regression()
    with pytest.raises(TypeError, match=r"Outer has no hooks.*`optimizer.optimizer`"):
        Recorder(tmp_path / "run", training.model, Outer(training.optimizer))
    assert not (tmp_path / "run").exists()


def test_what_is_no_model(tmp_path: Path):
    training = regression()
    parameters: Any = training.model.named_parameters()
    with pytest.raises(TypeError, match=r"`model` must be .*, got generator"):
        Recorder(tmp_path / "run", parameters, training.optimizer)


@pytest.mark.parametrize("kind", ["lazy", "meta"])
def test_parameters_without_elements_yet(kind: str, tmp_path: Path):
    model = nn.LazyLinear(2) if kind == "lazy" else nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"2 parameters, 'weight' .*no elements yet"):
        Recorder(tmp_path / "run", model, torch.optim.SGD(model.parameters()))


def test_complex_parameters(tmp_path: Path):
    m = Module(z=nn.Parameter(torch.zeros(2, dtype=torch.complex64)), x=vector(3))
    with pytest.raises(NotImplementedError, match=r"Complex parameters .*\['z'\]"):
        Recorder(tmp_path / "run", m, sgd(m))


def test_parameters_whose_elements_lie_elsewhere(tmp_path: Path):
    from torch.testing._internal.two_tensor import TwoTensor

    part = vector(4)
    model = Module(sharded=nn.Parameter(TwoTensor(part.detach(), part.detach())))
    with pytest.raises(
        NotImplementedError, match=r"'sharded'.* are of the kind TwoTensor"
    ):
        Recorder(tmp_path / "run", model, sgd(model))


def test_a_parameter_that_changes_its_shape_is_refused(tmp_path: Path):
    training = regression()
    recorder = Recorder(
        tmp_path / "run", training.model, training.optimizer, steps_per_epoch=4, **SMALL
    )
    take_step(training, 0)
    weight = next(training.model.parameters())
    weight.grad, weight.data = None, weight.data[:1].clone()
    with pytest.raises(ValueError, match=r"has the shape \(1, .* but had \("):
        training.optimizer.step()
    with pytest.warns(UserWarning, match="have changed since the last optimizer step"):
        recorder.close()
    assert open_run(tmp_path / "run").n_steps == 1


def test_a_parameter_without_memory_is_refused(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    next(training.model.parameters()).untyped_storage().resize_(0)
    refused = pytest.raises(ValueError, match="has no memory at the optimizer's step")
    with refused, recorder:
        training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 1


def test_a_choice_of_precision_for_all_stays_one_for_all():
    backends: Any = torch.backends
    before = backends.fp32_precision, backends.cuda.matmul.fp32_precision
    try:
        backends.cuda.matmul.fp32_precision = "none"  # as the choice for all
        backends.fp32_precision = "tf32"
        with quiet(torch.device("cpu")):
            assert backends.cuda.matmul.fp32_precision == "ieee"
        assert backends.cuda.matmul.fp32_precision == "tf32"
        backends.fp32_precision = "ieee"
        assert backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision, backends.cuda.matmul.fp32_precision = before


def test_parameters_on_several_devices(tmp_path: Path):
    m = Module(a=vector(2), b=nn.Parameter(torch.zeros(2, device="meta")))
    with pytest.raises(NotImplementedError, match=r"on 2 devices, \['cpu', 'meta'\]"):
        Recorder(tmp_path / "run", m, sgd(m))


# --- memory -------------------------------------------------------------------------

MEMORY_SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import nn
from trajstore.recording.recorder import Recorder


def peak():
    # ru_maxrss would begin with what the process that started this one had.
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def step(model, optimizer):
    optimizer.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()


def train(path, size):
    model = nn.ParameterList([nn.Parameter(torch.ones(size // 4)) for _ in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    before = peak()
    with Recorder(path, model, optimizer, steps_per_epoch=2, flush_rows=2):
        for _ in range(10):
            step(model, optimizer)
        looped = peak()
    return looped - before, peak() - before


train(sys.argv[1] + "/warm-up", 400)
size = 1 << 24
print(*(n / 4 / size for n in train(sys.argv[1] + "/run", size)))
"""


@pytest.fixture(scope="module")
def vectors_used(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """Peak of memory in float32 vectors: at the last step, and at the end."""
    if sys.platform != "linux":
        pytest.skip("peaks of memory are read where Linux tells them")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, tmp_path_factory.mktemp("memory")],
        check=True,
        capture_output=True,
        text=True,
    )
    looped, ended = map(float, run.stdout.split())
    return looped, ended


@pytest.mark.slow
def test_memory_stays_below_six_vectors(vectors_used: tuple[float, float]):
    # Three are kept; codes of references on their way to the disk come and go.
    looped, ended = vectors_used
    assert 3 < looped < 6
    assert ended < 6


def test_training_keeps_torchs_threads_to_itself(tmp_path: Path):
    """A second team of OpenMP threads would slow down every loop of the training."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        training = regression()
        with Recorder(tmp_path / "run", training.model, training.optimizer) as recorder:
            assert recorder._background.call(torch.get_num_threads) == 1
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as executor:
                assert executor.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_more_steps_than_were_planned_are_warned_of(tmp_path: Path):
    training = regression()
    recorder = Recorder(
        tmp_path / "run", training.model, training.optimizer, total_steps=2, **SMALL
    )
    for step in range(3):
        take_step(training, step)
    with pytest.warns(
        UserWarning, match="3 steps were recorded, but `total_steps` was 2"
    ):
        recorder.close()


@pytest.mark.parametrize("name", ["steps_per_epoch", "total_steps", "step"])
def test_numbers_of_steps_are_integers(name: str, tmp_path: Path):
    training = regression()
    options: dict[str, Any] = {name: 28.0}
    with pytest.raises(TypeError, match=f"`{name}` must be an integer, got 28.0"):
        Recorder(tmp_path / "run", training.model, training.optimizer, **options)
