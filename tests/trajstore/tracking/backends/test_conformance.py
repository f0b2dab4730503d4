"""Test that every backend measures the numbers that NumPy computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import (
    SHAPES,
    Walk,
    expected,
    follow,
    one_rank,
    spec_of,
)
from tests.trajstore.tracking.window_ends import (
    expected_displacements,
    expected_energies,
    expected_sums,
)
from trajstore.format.arrays import table_columns
from trajstore.format.layout import Layout
from trajstore.sketch import vector_forms
from trajstore.tracking.backends.cpu import backend as cpu_backend
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.double import DoubleBackend
from trajstore.tracking.backends.eager import EagerBackend
from trajstore.tracking.backends.protocol import StepBackend
from trajstore.tracking.placement import Piece, Placement
from trajstore.tracking.tracker import Tracker

HAS_GPU = torch.cuda.is_available()


class Case(NamedTuple):
    """A backend, and the setting that it is tested in."""

    backend: type[StepBackend]
    device: str = "cpu"
    threads: int = 1
    is_sharded: bool = False
    float64: bool = False
    is_compact: bool = False


def triton_case() -> Case:
    """Return the Triton backend on a GPU if there is one, else in Triton's interpreter."""
    pytest.importorskip("triton", reason="only the CUDA builds of torch include Triton")
    from trajstore.tracking.backends import triton, triton_tables

    device = "cuda" if HAS_GPU else "cpu"
    # Old versions of the interpreter fail with new releases of NumPy.
    sums = triton_tables.SumsByLayer(np.zeros(3, int), 1, 2, torch.device(device))
    try:
        sums.write(torch.empty(1, 2, device=device))
    except Exception as error:
        if HAS_GPU:
            raise
        pytest.skip(f"Triton's interpreter fails with this NumPy: {error}")
    return Case(triton.TritonBackend, device)


CASES = {
    "cpu": Case(CPUBackend),
    "cpu in threads": Case(CPUBackend, threads=3),
    "cpu, sharded": Case(CPUBackend, is_sharded=True),
    "cpu, compact": Case(CPUBackend, is_compact=True),
    "cpu in threads, compact": Case(CPUBackend, threads=3, is_compact=True),
    "cpu, sharded, compact": Case(CPUBackend, is_sharded=True, is_compact=True),
    "eager": Case(EagerBackend),
    "eager, sharded": Case(EagerBackend, is_sharded=True),
    "double": Case(DoubleBackend, float64=True),
    "double, compact": Case(DoubleBackend, float64=True, is_compact=True),
    "triton": None,
}


def case_of(name: str) -> Case:
    return CASES[name] or triton_case()


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if case_of(request.param).is_compact:
        monkeypatch.setattr(vector_forms, "LEAST_PARAMS", 0)
        monkeypatch.setattr(vector_forms, "LEAST_BLOCKS", 1)
    return str(request.param)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch use n threads, and also measure small nets with n threads."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_backend, "BLOCKS_PER_THREAD", 1)
        torch.set_num_threads(n)
        yield
    assert torch.get_num_threads() == n
    torch.set_num_threads(before)


def take(name: str, **options: Any) -> Walk:
    case = case_of(name)
    with ExitStack() as stack:
        stack.enter_context(threads(case.threads))
        group = stack.enter_context(one_rank()) if case.is_sharded else None
        options["float64"] = case.float64
        return follow(case.backend, device=case.device, group=group, **options)


@cache
def walk_of(name: str, basis: int) -> Walk:
    return take(name, basis=basis)


def assert_measured(walk: Walk) -> None:
    """Check that a walk equals the measurements by NumPy up to rounding."""
    reference = expected(walk)
    # float32 sums of up to 1024 products of size 1, in blocks.
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-3}
    tables = walk.rows["tables"].copy()
    if vector_forms.are_compact(walk.spec) and not walk.spec.float64:
        # The gradient before has 13 bits: its elements are wrong by up to 2^-10, and products
        # with 1024 elements of size 1 by their root of 1024 / 3 times that; 5 times as much is rare.
        column = table_columns(walk.spec)["grad_dot_previous"]
        rounded, exact = tables[..., column], reference.tables[..., column]
        np.testing.assert_allclose(rounded, exact, atol=5 * 2**-10 * (1024 / 3) ** 0.5)
        tables[..., column] = exact
    np.testing.assert_allclose(tables, reference.tables, **close)
    arrival = np.array([anchor.arrival for anchor in walk.anchors])
    np.testing.assert_allclose(arrival, reference.arrival, **close)
    weights = np.array([anchor.weights for anchor in walk.anchors])
    np.testing.assert_allclose(weights, reference.weights, rtol=1e-5)
    if walk.spec.exact:
        return
    np.testing.assert_allclose(walk.rows["probes"], reference.probes, atol=1e-3)
    # Compiled loops may code a number next to the border of two levels as the other level.
    rtol = 1e-5 if walk.spec.bits_per_number < 8 else 3e-4
    np.testing.assert_allclose(walk.rows["scales"], reference.scales, rtol=rtol)
    if walk.spec.bits_per_number == 16:
        # Rounding may move a number to the neighbouring level.
        found, expected_ = (
            np.ascontiguousarray(codes).view(">u2").astype(int)
            for codes in (walk.rows["signs"], reference.signs)
        )
        assert np.abs(found - expected_).max() <= 1
        assert (found != expected_).mean() < 0.02
    else:
        # Codes may differ only for numbers that are between two levels up to rounding.
        assert np.unpackbits(walk.rows["signs"] ^ reference.signs).mean() < 1e-3
    probes = np.array([anchor.probes for anchor in walk.anchors])
    np.testing.assert_allclose(probes, reference.anchor_probes, atol=1e-3)
    if walk.spec.displacement_sum:
        sums = expected_displacements(walk)
        for ended, (codes, scales) in zip(walk.ended, sums, strict=True):
            np.testing.assert_allclose(ended.displacement_scales, scales, rtol=rtol)
            if walk.spec.bits_per_number < 16:
                assert np.unpackbits(ended.displacement_codes ^ codes).mean() < 1e-3
    if not walk.spec.window_folds:
        return
    energies = np.array([ended.energies for ended in walk.ended])
    # Energies are float16.
    np.testing.assert_allclose(energies, expected_energies(walk), rtol=1e-3)
    for ended, (signs, scales) in zip(walk.ended, expected_sums(walk), strict=True):
        np.testing.assert_allclose(ended.sum_scales, scales, rtol=1e-5)
        assert np.unpackbits(ended.sum_signs ^ signs).mean() < 1e-3


@pytest.mark.parametrize("basis", [0, 1, 2, 3, 4])
def test_measurements_equal_the_formulas(name: str, basis: int):
    if name == "triton" and basis not in {0, 3} and not HAS_GPU:
        pytest.skip("the interpreter is slow")
    assert_measured(walk_of(name, basis))


SKETCHES = {
    "1 bit": {"sketch_bits": 2048},
    "2 bits": {"sketch_bits": 4096, "bits_per_number": 2},
    "4 bits": {"sketch_bits": 8192, "bits_per_number": 4},
    "8 bits": {"sketch_bits": 16384, "bits_per_number": 8},
    "16 bits": {"sketch_bits": 32768, "bits_per_number": 16},
    "folded": {"sketch_bits": 512},
    "several blocks": {"sketch_bits": 512, "probes": 512},
}


@pytest.mark.parametrize("sketch", list(SKETCHES))
def test_sketches_of_new_stores_equal_the_formulas(
    name: str, sketch: str, monkeypatch: pytest.MonkeyPatch
):
    if sketch == "several blocks":
        monkeypatch.setattr("trajstore.format.arrays.MAX_BLOCK", 128)
    assert_measured(take(name, sketch_version=2, **SKETCHES[sketch]))


@pytest.mark.parametrize("basis", [0, 3])
def test_exact_mode_stores_the_vectors(name: str, basis: int):
    if name == "triton" and basis and not HAS_GPU:
        pytest.skip("the interpreter is slow")
    walk = take(name, basis=basis, exact=True)
    assert_measured(walk)
    np.testing.assert_array_equal(walk.rows["gradient"], walk.gradients)
    # The first two steps share an anchor: the first parameters.
    displacement = walk.before[1] - walk.before[0]
    recorded = walk.rows["displacement"][1].astype(displacement.dtype)
    np.testing.assert_array_equal(recorded, displacement)


def transposed_copy(tensor: Any) -> Any:
    return tensor.t().contiguous().t()


def negative_view(tensor: Any) -> Any:
    return torch._neg_view(-tensor)


ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "other types": {
        "arrange": {
            "matrix": torch.Tensor.bfloat16,
            "bias": torch.Tensor.half,
            "scalar": torch.Tensor.double,
        }
    },
    "other layouts": {
        "arrange": {"matrix": transposed_copy},
        "arrange_gradient": {
            "matrix": torch.Tensor.to_sparse,
            "bias": negative_view,
        },
    },
}


@pytest.mark.parametrize("arrangement", list(ARRANGEMENTS))
def test_any_tensor_reads_as_float32(name: str, arrangement: str):
    assert_measured(take(name, **ARRANGEMENTS[arrangement]))


def test_the_same_steps_give_the_same_bits_with_measurements_between_them(name: str):
    first, second = walk_of(name, 3), take(name, measures_aside=True)
    for array, values in first.rows.items():
        np.testing.assert_array_equal(second.rows[array], values, err_msg=array)
    for ended, again in zip(first.ended, second.ended, strict=True):
        for values, values_again in zip(ended, again, strict=True):
            np.testing.assert_array_equal(values_again, values)


def test_a_last_bit_of_a_parameter_is_noticed(name: str):
    walk = walk_of(name, 3)
    assert walk.unchanged
    assert not walk.unchanged_after_change


def test_the_previous_gradient_can_be_set_and_forgotten(name: str):
    case = case_of(name)
    shapes = {"a": (3, 5)}
    spec = spec_of(shapes, sketch_bits=64, probes=8, float64=case.float64)
    parameter = torch.zeros(3, 5, device=case.device)
    parameter.grad = torch.full_like(parameter, 2.0)
    layout = Layout(spec.names, spec.shapes)
    tracker = Tracker([parameter], layout, spec, backend=case.backend)
    tracker.start()
    row = {name: values[0] for name, values in tracker.allocate(1).items()}
    column = table_columns(spec)["grad_dot_previous"]

    tracker.previous_gradient = torch.arange(float(layout.size), device=case.device)
    tracker.before_step(0, row)
    # 2 (0 + 1 + ... + 14); the elements in the gaps are not counted.
    assert row["tables"][0, column] == 210
    tracker.forget_previous_gradient()
    tracker.before_step(1, row)
    assert row["tables"][0, column].isnan()


def test_energies_are_those_of_the_blocks(name: str):
    case, shapes = case_of(name), {"a": (50, 61), "b": (7,)}
    if case.float64:
        pytest.skip("no energies are kept in float64")
    spec = spec_of(shapes, sketch_bits=512, energies=True)
    layout = Layout(spec.names, spec.shapes)
    parameters = [torch.zeros(shape, device=case.device) for shape in shapes.values()]
    generator, squares = torch.Generator().manual_seed(1), np.zeros(layout.size)
    with threads(case.threads):
        tracker = Tracker(parameters, layout, spec, backend=case.backend)
        tracker.start()
        row = {name: values[0] for name, values in tracker.allocate(1).items()}
        for step in range(3):
            grads = [torch.randn(p.shape, generator=generator) for p in parameters]
            grads[0][:20] *= 5
            for p, gradient in zip(parameters, grads, strict=True):
                p.grad = gradient.to(case.device)
            flat = layout.flatten(
                {n: g.numpy() for n, g in zip(shapes, grads, strict=True)}
            )
            squares += np.float64(flat) ** 2
            tracker.before_step(step, row)
            tracker.after_step(row)
        energies = tracker.end_window().energies.cpu().numpy()
    blocks = squares.reshape(-1, 1024).sum(1) / [1024, 1024, 1002, 7]
    expected = np.append(blocks[:3] / blocks[:3].max(), 1)
    np.testing.assert_allclose(energies, expected, rtol=1e-3)


def test_a_backend_has_the_members_of_the_protocol_and_no_others(name: str):
    def public(cls: type) -> set[str]:
        return {member for member in dir(cls) if not member.startswith("_")}

    # Backends may set these as instance attributes.
    own = {"anchor", "pieces", "block_energies", "window_folds", "displacement_fold"}
    assert public(case_of(name).backend) | own == public(StepBackend)


def test_a_parameter_of_another_shape_is_refused_by_compiled_loops(name: str):
    case = case_of(name)
    if case.backend is EagerBackend:
        pytest.skip("torch refuses to copy it")
    parameter = torch.ones(5, device=case.device)
    spec = spec_of({"a": (5,)}, sketch_bits=64, float64=case.float64)
    layout = Layout(spec.names, spec.shapes)
    tracker = Tracker([parameter], layout, spec, backend=case.backend)
    parameter.resize_(7)
    with pytest.raises(ValueError, match=r"a has the shape \(7,\), but had \(5,\)"):
        tracker.start()
    assert not tracker.parameters_unchanged_since_step()


def test_measurements_of_ranks_add_up_to_the_whole():
    """One rank holds 12 rows of the matrix, a second rank all other elements."""
    spec = spec_of(SHAPES)
    layout = Layout(spec.names, spec.shapes)
    generator = torch.Generator().manual_seed(5)

    def draw() -> Any:
        return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]

    parameters, gradients = draw(), draw()
    _, _, bias, scalar = Tracker(parameters, layout, spec)._placement.pieces
    offset = int(layout.offsets[0])
    pieces = {
        "first": (Piece((12, 32), (32, 1), offset), None, None, None),
        "second": (Piece((20, 32), (32, 1), offset + 12 * 32), None, bias, scalar),
    }
    rows = {}
    for rank, part in [
        ("whole", slice(None)),
        ("first", slice(12)),
        ("second", slice(12, None)),
    ]:
        placement = Placement(layout, pieces[rank]) if rank in pieces else None
        held = [parameters[0][part].clone(), *(p.clone() for p in parameters[1:])]
        tracker = Tracker(held, layout, spec, placement, backend=EagerBackend)
        tracker.start()
        for p, g in zip(held, [gradients[0][part], *gradients[1:]], strict=True):
            p.add_(0.1)
            p.grad = g
        rows[rank] = {name: v[0] for name, v in tracker.allocate(1).items()}
        tracker.before_step(0, rows[rank])
        tracker.after_step(rows[rank])
    for array in ("tables", "probes"):
        parts = rows["first"][array] + rows["second"][array]
        # float32 sums of up to 1024 products of size 1.
        np.testing.assert_allclose(rows["whole"][array], parts, rtol=1e-5, atol=1e-3)
