"""Compact vectors lose few digits of three products, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.recording.resumable import (
    N_STEPS,
    SMALL,
    Training,
    contents,
    record,
)
from tests.trajstore.tracking.random_walk import spec_of
from trajstore.format.arrays import table_columns
from trajstore.format.layout import Layout
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder
from trajstore.sketch import vector_forms
from trajstore.tracking.backends.cpu import vectors
from trajstore.tracking.backends.cpu.compact_words import (
    DISPLACEMENT_BITS,
    GRADIENT_BITS,
    pack,
    unpack,
)
from trajstore.tracking.backends.cpu.compiling import standalone
from trajstore.tracking.tracker import Tracker

N = 700
ROUNDED = {"grad_dot_previous", "update_sq", "update_dot_displacement", "update_norm"}
"""What compact vectors change in `Run.steps`."""


@contextmanager
def compact(*, is_on: bool = True, piece: int = vectors.PIECE) -> Iterator[None]:
    """Let networks of any size have compact vectors, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_forms, "LEAST_PARAMS", 0 if is_on else 1 << 62)
        patch.setattr(vector_forms, "LEAST_BLOCKS", 1)
        patch.setattr(vectors, "PIECE", piece)
        yield


def packed(gradient: Any, displacement: Any) -> tuple[Any, Any, Any]:
    """Return words, scales and the rounded displacement of two vectors."""
    words = np.zeros(len(gradient), np.int32)
    rounded = np.zeros(len(gradient), np.float32)
    *scales, _ = standalone(pack)(gradient, displacement, words, rounded)
    return words, scales, rounded


def unpacked(words: Any, scales: Any) -> tuple[Any, Any]:
    gradient, displacement = np.zeros((2, len(words)), np.float32)
    read: Any = standalone(unpack)
    read(words, *map(np.float32, scales), gradient, displacement)
    return gradient, displacement


def rounded_to(vector: Any, bits: int) -> Any:
    """Round to integers of some bits times a power of two, in float64."""
    most = np.abs(np.float64(vector)).max() / (2 ** (bits - 1) - 0.5)
    scale = 2.0 ** np.ceil(np.log2(most))
    return np.rint(vector / scale) * scale, scale


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e35])
def test_words_hold_rounded_vectors(size: float):
    rng = np.random.default_rng(0)
    gradient, displacement = (size * rng.normal(size=(2, N))).astype(np.float32)
    words, scales, rounded = packed(gradient, displacement)
    found = unpacked(words, scales)
    for vector, bits, got, scale in zip(
        (gradient, displacement),
        (GRADIENT_BITS, DISPLACEMENT_BITS),
        found,
        scales,
        strict=True,
    ):
        expected, expected_scale = rounded_to(vector, bits)
        # The compiled code doubles the scale a little earlier.
        assert scale in {expected_scale, 2 * expected_scale}
        if scale == expected_scale:
            np.testing.assert_array_equal(got, expected)
        assert np.abs(np.float64(got) - vector).max() <= scale / 2
    np.testing.assert_array_equal(found[1], rounded)
    again, _, _ = packed(*found)
    np.testing.assert_array_equal(unpacked(again, packed(*found)[1]), found)


@pytest.mark.parametrize("most", [1 - 2.0**-bits for bits in range(1, 25)])
def test_the_largest_number_does_not_overflow(most: float):
    vector = np.array([most, -most, most / 3], np.float32)
    words, scales, _ = packed(vector, vector)
    for got, scale in zip(unpacked(words, scales), scales, strict=True):
        assert np.abs(got - vector).max() <= scale / 2


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e-34])
def test_what_words_cannot_hold_is_not_a_number(wrong: float):
    good, bad = np.ones(3, np.float32), np.array([0, wrong, 0], np.float32)
    gradient, displacement = unpacked(*packed(bad, good)[:2])
    assert np.isnan(gradient).all()
    np.testing.assert_array_equal(displacement, good)
    gradient, displacement = unpacked(*packed(good, bad)[:2])
    np.testing.assert_array_equal(gradient, good)
    assert np.isnan(displacement).all()


def test_zeros_stay_zeros():
    zeros = np.zeros(5, np.float32)
    np.testing.assert_array_equal(unpacked(*packed(zeros, zeros)[:2]), [zeros, zeros])


def both(path: Path, **options: Any) -> tuple[dict[str, Any], Run, Run]:
    """Record the same training with compact vectors and without; return arrays of the first."""
    with compact(is_on=False):
        record(path / "plain", **options)
    with compact():
        record(path / "compact", **options)
    plain, rounded = open_run(path / "plain"), open_run(path / "compact")
    return contents(rounded), plain, rounded


@pytest.mark.parametrize("options", [{}, {"adam": True}, {"basis": 0}, {"basis": 4}])
def test_only_products_with_the_last_step_are_rounded(
    options: dict[str, Any], tmp_path: Path
):
    arrays, plain, rounded = both(tmp_path, **options)
    for array, stored in contents(plain).items():
        if not array.endswith(("tables", "update_norm")):
            np.testing.assert_array_equal(arrays[array], stored, err_msg=array)
    for name, values in plain.steps.drop_vars("wall_time").items():
        if name not in ROUNDED:
            np.testing.assert_array_equal(
                rounded.steps[name], values, err_msg=str(name)
            )


def test_products_are_wrong_by_the_rounding_of_one_vector(tmp_path: Path):
    _, plain, rounded = both(tmp_path)
    exact, found = plain.steps.load(), rounded.steps.load()
    # Numbers of n bits are wrong by 1 / sqrt(12) of a scale of at most |v| / 2^(n - 2).
    norms = {n: np.sqrt(exact[f"{n}_sq"]) for n in ("grad", "displacement", "update")}
    gradient, displacement = (
        norms[name] / 2 ** (bits - 2) / 12**0.5
        for name, bits in (("grad", GRADIENT_BITS), ("displacement", DISPLACEMENT_BITS))
    )
    expected = {
        "grad_dot_previous": norms["grad"] * gradient.shift(step=1),
        "update_sq": 2 * norms["update"] * displacement,
        "update_dot_displacement": norms["displacement"] * displacement,
    }
    for name, stderr in expected.items():
        error = abs(found[name] - exact[name])
        # The largest of 400 errors; float32 sums add 1e-6 of the norms.
        slack = 1e-6 * np.sqrt(exact.update_sq) * norms["displacement"]
        is_right = (error <= 5 * stderr + slack) | stderr.isnull()
        assert is_right.all(), name
        assert (error.where(stderr.notnull()) > 0).any(), name


def test_a_resumed_recording_differs_in_one_product(tmp_path: Path):
    with compact():
        record(tmp_path / "whole")
        record(tmp_path / "run", range(16), tmp_path / "checkpoint")
        record(tmp_path / "run", range(16, N_STEPS), resume=tmp_path / "checkpoint")
    whole, run = open_run(tmp_path / "whole"), open_run(tmp_path / "run")
    expected, found = contents(whole), contents(run)
    for array, stored in expected.items():
        if array != "tables":
            np.testing.assert_array_equal(found[array], stored, err_msg=array)
    for name, values in whole.steps.drop_vars("wall_time").items():
        same = np.ones(N_STEPS, bool)
        if name == "grad_dot_previous":
            # The factor of the product is computed from the rounded gradient.
            same[16] = False
            np.testing.assert_allclose(run.steps[name][16], values[16], rtol=1e-5)
        np.testing.assert_array_equal(
            run.steps[name][same], values[same], err_msg=str(name)
        )


def test_the_difference_of_almost_equal_gradients_is_known():
    generator = torch.Generator().manual_seed(0)
    n, change = 1 << 15, 1e-2
    first = torch.randn(n, generator=generator) * torch.rand(n, generator=generator)
    second = first + change * torch.randn(n, generator=generator)
    parameter = torch.zeros(n)
    spec = spec_of({"a": (n,)})
    with compact():
        tracker = Tracker([parameter], Layout(spec.names, spec.shapes), spec)
    tracker.start()
    rows = tracker.allocate(2)
    for step, parameter.grad in enumerate([first, second]):
        tracker.before_step(step, {name: values[step] for name, values in rows.items()})
    columns = table_columns(spec)
    squares = rows["tables"][:, 0, columns["grad_sq"].start]
    product = rows["tables"][1, 0, columns["grad_dot_previous"].start]
    found = float(squares.sum() - 2 * product)
    exact = float((second.double() - first.double()).square().sum())
    # Float32 sums lose 1e-6 of |g|^2, 1 / 3 n; a product with a rounding error of 2^-11 would lose
    # 2^-11 |g| of random sign, of which the change has 1 % here.
    assert abs(found - exact) < 1e-2 * exact


def test_pieces_give_the_same_anchors(tmp_path: Path):
    with compact():
        record(tmp_path / "whole")
    with compact(piece=2048):
        record(tmp_path / "pieces")
    whole, pieces = (contents(open_run(tmp_path / n)) for n in ("whole", "pieces"))
    for name, values in whole.items():
        if name in {"references/probes", "references/displacement_codes"}:
            continue
        if values.dtype.kind == "f":
            np.testing.assert_allclose(pieces[name], values, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(pieces[name], values, err_msg=name)
    name = "references/probes"
    np.testing.assert_allclose(pieces[name], whole[name], atol=1e-5)


def test_updates_and_measurements_leave_the_rows_alone(tmp_path: Path):
    def measure(step: int, recorder: Recorder) -> None:
        if step % 5 == 3:
            recorder.measure("same")

    with compact():
        record(tmp_path / "alone")
        record(tmp_path / "both", each=measure, updates=True)
    with compact(is_on=False):
        record(tmp_path / "plain", updates=True)
    alone, together, plain = (
        open_run(tmp_path / n) for n in ("alone", "both", "plain")
    )
    for name, values in alone.steps.drop_vars("wall_time").items():
        np.testing.assert_array_equal(together.steps[name], values, err_msg=name)
    found, expected = (run.measured("update").steps.load() for run in (together, plain))
    np.testing.assert_allclose(found.grad_sq, expected.grad_sq, rtol=1e-4)


def test_what_does_not_move_has_an_update_of_zero(tmp_path: Path):
    training = Training(width=60)
    first: Any = training.model[0].weight

    def stop(step: int, _recorder: Recorder) -> None:
        first.requires_grad_(step < 8)
        if step == 8:
            training.optimizer.state.pop(first)

    with (
        compact(),
        Recorder(
            tmp_path / "run",
            training.model,
            training.optimizer,
            **SMALL,
            steps_per_epoch=6,
        ) as recorder,
    ):
        for step in range(16):
            stop(step, recorder)
            training.optimizer.zero_grad()
            training.model(torch.randn(9, 40)).square().mean().backward()
            training.optimizer.step()
    steps = open_run(tmp_path / "run").steps.load()
    for name in ("update_sq", "update_dot_displacement"):
        values = steps[name].sel(layer="0.weight")
        assert (values[1:8] != 0).all()
        assert (values[8:] == 0).all()
    assert (steps.displacement_sq.sel(layer="0.weight")[9:12] > 0).all()


def test_the_smallest_move_is_noticed():
    parameter = torch.randn(5000)
    spec = spec_of({"a": (5000,)})
    with compact():
        tracker = Tracker([parameter], Layout(spec.names, spec.shapes), spec)
    tracker.start()
    row = {name: values[0] for name, values in tracker.allocate(1).items()}
    parameter += 0.1 * torch.randn(5000)
    tracker.before_step(0, row)
    assert not tracker.has_moved()
    before = parameter[3000].clone()
    parameter[3000] = torch.nextafter(before, torch.tensor(torch.inf))
    assert tracker.has_moved()
    parameter[3000] = before
    assert not tracker.has_moved()
    tracker.forget_displacement()
    tracker.after_step(row)
    column = table_columns(spec)["update_sq"]
    assert row["tables"][0, column].isnan()


def test_a_gradient_that_is_not_finite_spoils_only_its_own_products():
    parameter = torch.zeros(3000)
    spec = spec_of({"a": (3000,)})
    with compact():
        tracker = Tracker([parameter], Layout(spec.names, spec.shapes), spec)
    tracker.start()
    rows = tracker.allocate(4)
    column = table_columns(spec)["grad_dot_previous"].start
    for step, value in enumerate([1.0, torch.inf, 2.0, 3.0]):
        parameter.grad = torch.full((3000,), value)
        tracker.before_step(step, {n: values[step] for n, values in rows.items()})
    found = rows["tables"][:, 0, column].numpy()
    np.testing.assert_array_equal(found, [0, np.inf, np.nan, 18000])


def test_small_tensors_are_held_in_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vector_forms, "LEAST_PARAMS", 0)
    shapes = {"large": (16, 1024), "small": (15, 1024), "bias": (3,)}
    spec = spec_of(shapes)
    layout = Layout(spec.names, spec.shapes)
    parameters = [torch.randn(shape) for shape in shapes.values()]
    tracker = Tracker(parameters, layout, spec)
    tracker.start()
    row = {name: values[0] for name, values in tracker.allocate(1).items()}
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    tracker.before_step(0, row)
    held = layout.unflatten(tracker.previous_gradient.numpy())
    for name, parameter in zip(shapes, parameters, strict=True):
        is_equal = np.array_equal(held[name], parameter.grad.numpy())
        assert is_equal == (name != "large")
    np.testing.assert_allclose(held["large"], parameters[0].grad, atol=2**-9)
    backend: Any = tracker._backend
    words, _, _ = backend._vectors._words
    assert len(words) == vector_forms.n_words(layout) == 16 * 1024 + 2 * 16 * 1024
