"""Test the tracker without a recorder, against float64 arithmetic."""

import itertools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.format.arrays import table_columns
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.tracking.tracker import Tracker

SHAPES = {"matrix": (40, 60), "bias": (60,), "scalar": ()}
"""A tensor of more than one block, a tensor of less than one block, and a scalar."""


def make_tracker(parameters: dict[str, Any], **options: Any) -> tuple[Tracker, Layout]:
    layout = Layout(
        tuple(parameters), tuple(tuple(p.shape) for p in parameters.values())
    )
    document: dict[str, Any] = {
        "names": layout.names,
        "shapes": layout.shapes,
        "seed": 3,
        "sketch_bits": 256,
        "basis": 3,
        "probes": 64,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
    spec = RunSpec.from_json(document | options)
    return Tracker(list(parameters.values()), layout, spec), layout


def random_parameters(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()
    }


def disturb(parameters: dict[str, Any], size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def flat64(parameters: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Concatenate the tensors in float64, without gaps."""
    return np.concatenate([p.double().numpy().ravel() for p in parameters.values()])


def without_gaps(layout: Layout, vector: Any) -> np.ndarray[Any, Any]:
    tensors = layout.unflatten(np.asarray(vector))
    return np.concatenate([t.ravel() for t in tensors.values()])


def test_first_anchor_is_the_parameters_bit_for_bit():
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters)

    first = tracker.start()

    decoded = layout.unflatten(tracker.anchor.numpy())
    assert all(np.array_equal(decoded[n], p.numpy()) for n, p in parameters.items())
    assert not first.codes.any()
    assert torch.equal(first.weights, torch.ones(len(SHAPES)))
    assert first.arrival.isnan().all()


def test_a_moved_anchor_is_within_half_a_level_of_the_parameters():
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters)
    tracker.start()
    before = flat64(parameters)
    disturb(parameters, 0.1, seed=1)

    tracker.move()

    moved = without_gaps(layout, tracker.anchor)
    largest = np.abs(flat64(parameters) - before).max()
    # Half of a 127th of the largest difference, plus float32 rounding.
    assert np.abs(moved - flat64(parameters)).max() <= 0.501 * largest / 127 + 1e-6
    assert not np.array_equal(moved, before)


@pytest.mark.parametrize("basis", [1, 2, 3, 4, 5])
def test_the_basis_is_the_displacements_from_past_anchors(basis: int):
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters, basis=basis)
    anchors = []
    columns = table_columns(tracker._spec)["grad_dot_basis"]
    for window in range(11):
        if window == 0:
            tracker.start()
        else:
            disturb(parameters, 0.1, seed=window)
            tracker.move()
        anchors.append(tracker.anchor.double().numpy().copy())
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape)
        row = {name: rows[0] for name, rows in tracker.allocate(1).items()}
        tracker.before_step(window, row)

        past = [anchors[max(window - (1 << j), 0)] for j in range(basis - 1)]
        vectors = [anchors[-1], *(anchors[-1] - r for r in past)]
        gradient = layout.flatten({n: p.grad for n, p in parameters.items()})
        for i, vector in enumerate(vectors):
            by_layer = layout.unflatten(np.float64(gradient) * vector)
            expected = [product.sum() for product in by_layer.values()]
            # float32 sums of up to 2400 products of size about 1.
            np.testing.assert_allclose(
                row["tables"][:, columns][:, i], expected, rtol=1e-5, atol=1e-4
            )


def test_later_moves_leave_the_returned_anchor_alone():
    parameters = random_parameters()
    tracker, _ = make_tracker(parameters)
    tracker.start()
    disturb(parameters, 0.1, seed=1)
    first = tracker.move()
    copies = [tensor.clone() for tensor in first]
    disturb(parameters, 0.3, seed=2)
    second = tracker.move()

    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    assert not torch.equal(first.codes, second.codes)


def test_a_parameter_that_is_not_finite_leaves_the_anchor_where_it_was():
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters)
    tracker.start()
    before = layout.unflatten(tracker.anchor.numpy().copy())
    parameters["matrix"][3, 4] = torch.nan
    parameters["bias"][7] = torch.inf

    tracker.move()

    after = layout.unflatten(tracker.anchor.numpy())
    assert after["matrix"][3, 4] == before["matrix"][3, 4]
    assert after["bias"][7] == before["bias"][7]


def test_parameters_are_a_copy_in_float32():
    parameters = {"half": torch.randn(5, 3).half(), "double": torch.randn(4).double()}
    tracker, layout = make_tracker(parameters)

    cuts = [0, 3, 1030, layout.size]
    parts = [
        tracker.gathered_parameters()(slice(*cut)) for cut in itertools.pairwise(cuts)
    ]
    expected = layout.flatten({n: p.float().clone() for n, p in parameters.items()})
    disturb(parameters, 1.0, seed=0)

    vector = torch.cat(parts)
    assert vector.dtype == torch.float32
    assert np.array_equal(vector.numpy(), expected)


def change_nothing(parameters: dict[str, Any]) -> None:
    pass


def change_one_entry(parameters: dict[str, Any]) -> None:
    parameters["matrix"][1, 1] += 1e-3


@pytest.mark.parametrize(
    ("change", "unchanged"),
    [(change_nothing, True), (change_one_entry, False)],
    ids=["unchanged", "changed"],
)
def test_changes_of_parameters_since_the_step_are_noticed(
    change: Callable[..., None], unchanged: bool
):
    parameters = random_parameters()
    tracker, _ = make_tracker(parameters)
    tracker.start()
    row = {name: rows[0] for name, rows in tracker.allocate(1).items()}
    tracker.before_step(0, row)
    disturb(parameters, 0.1, seed=5)
    tracker.after_step(row)
    change(parameters)

    assert tracker.parameters_unchanged_since_step() is unchanged


def test_exact_rows_are_the_vectors_themselves():
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters, exact=True)
    tracker.start()
    start = flat64(parameters)
    disturb(parameters, 0.1, seed=1)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape)

    rows = tracker.allocate(1)
    tracker.before_step(0, {name: tensor[0] for name, tensor in rows.items()})

    gradient = flat64({name: p.grad for name, p in parameters.items()})
    assert set(rows) == {"tables", "gradient", "displacement"}
    assert np.array_equal(without_gaps(layout, rows["gradient"][0]), gradient)
    np.testing.assert_allclose(
        without_gaps(layout, rows["displacement"][0]),
        flat64(parameters) - start,
        atol=3e-7,  # float32 rounding of differences below 1
    )


def test_anchor_sq_is_the_squared_norm_of_every_layer():
    parameters = random_parameters()
    tracker, _ = make_tracker(parameters)
    tracker.start()

    expected = [p.double().square().sum().item() for p in parameters.values()]

    np.testing.assert_allclose(tracker.anchor_sq(), expected, rtol=1e-6)


def test_rounding_does_not_pile_up_in_the_basis_after_an_excursion():
    """Displacements are sums of codes, so a window far away must not leave an error."""
    parameters = random_parameters()
    tracker, layout = make_tracker(parameters)
    tracker.start()
    anchors = [tracker.anchor.double().clone()]
    home = {name: p.clone() for name, p in parameters.items()}
    for window in range(1, 9):
        for name, parameter in parameters.items():
            parameter.copy_(1e6 * home[name] if window == 1 else home[name])
        if window != 1:
            disturb(parameters, 0.01, seed=window)
        tracker.move()
        anchors.append(tracker.anchor.double().clone())
    assert all(not torch.equal(a, b) for a, b in pairwise(anchors))
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape)
    row = {name: rows[0] for name, rows in tracker.allocate(1).items()}
    tracker.before_step(8, row)

    displacement = (anchors[8] - anchors[6]).numpy()
    gradient = layout.flatten({n: p.grad for n, p in parameters.items()})
    columns = table_columns(tracker._spec)["grad_dot_basis"]
    expected = np.float64(gradient) @ displacement
    scale = np.linalg.norm(gradient) * np.linalg.norm(displacement)
    measured = row["tables"][:, columns][:, 2].double().sum().item()
    assert abs(measured - expected) <= 1e-3 * scale
