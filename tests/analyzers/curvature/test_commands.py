"""Test ``analyzers.curvature.commands``."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from tests.analyzers.stored_results import stored
from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder

N_STEPS, LR = 60, 0.1
TRAINING = {"optimizer": "sgd", "weight_decay": 0.0, "full_batch": True}


def record(path: Path, **training: Any) -> Path:
    """Record gradient descent on a quadratic of sharpness 19, with the threshold 20."""
    torch.manual_seed(0)
    model = nn.ParameterDict({"first": torch.randn(12), "second": torch.randn(30)})
    diagonal = torch.linspace(0.1, 19, 42)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def backward() -> Any:
        optimizer.zero_grad()
        loss = 0.5 * diagonal @ torch.cat([*model.values()]).square()
        loss.backward()
        return loss

    settings = TRAINING | training
    attrs = {"training": {k: v for k, v in settings.items() if v is not None}}
    with Recorder(
        path, model, optimizer, steps_per_epoch=1, exact=True, attrs=attrs
    ) as recorder:
        for step in range(N_STEPS):
            if step % 5 == 0:
                recorder.log(sharpness=19.0 if step < 30 else 21.0)
            recorder.log(loss=backward())
            optimizer.step()
            if step % 2 == 1:
                recorder.measure("same_batch", loss=backward())
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("stability") / "run.zarr")


def table(output: str, header: str) -> list[list[str]]:
    """Return the cells of the rows below a header, up to an empty line."""
    lines = output.splitlines()
    first = [line.split()[:1] for line in lines].index([header])
    rows = lines[first + 1 :]
    rows = rows[: next((i for i, row in enumerate(rows) if not row.strip()), len(rows))]
    assert max(map(len, [lines[first], *rows])) <= 80
    return [row.split() for row in rows]


def test_sharpness_is_compared_with_the_threshold(
    store: Path, traj_analyze: Callable[..., str]
):
    output = traj_analyze("edge-of-stability", store)
    rows = table(output, "step")
    assert rows[0] == ["0", "0", "19", "20", "0.950"]
    assert rows[-1] == ["55", "55", "21", "20", "1.050"]
    assert len(rows) == 12
    words = " ".join(output.split())
    assert "is reached at step 30. Over the 6 evaluations from that step on" in words
    assert "the median ratio is 1.050 and the range 1.050 to 1.050; 100 %" in words
    np.testing.assert_allclose(stored(store, "sharpness").ratio[0], 0.95)
    assert (store.parent / "run.figures" / "sharpness.png").stat().st_size > 10_000


def test_a_threshold_that_is_not_reached_is_reported(
    store: Path, traj_analyze: Callable[..., str]
):
    output = traj_analyze("edge-of-stability", store, "--momentum", "0.5")
    assert "The threshold is not reached: the largest ratio is 0.700." in output


def test_medians_of_smoothness_are_shown(store: Path, traj_analyze: Callable[..., str]):
    output = traj_analyze("smoothness", store, "--layers")
    along = analyzers.smoothness(open_run(store)).compute()
    same = analyzers.smoothness(open_run(store), measurement="same_batch").compute()
    rows = table(output, "steps")
    assert len(rows) == 20
    for i, row in enumerate(rows):
        assert row[:3] == [str(3 * i), "to", str(3 * i + 2)]
        # Each of the steps 3 i to 3 i + 2 is compared with the gradient after it.
        later = slice(3 * i + 1, 3 * i + 3)
        expected = [
            np.nanmedian(data[name].sel(step=later))
            for data in (along, same)
            for name in ("smoothness", "curvature")
        ]
        np.testing.assert_allclose([float(x) for x in row[3:]], expected, rtol=1e-3)
    tensors = dict(table(output, "tensor"))
    by_layer = analyzers.smoothness(
        open_run(store), measurement="same_batch", layers=True
    ).compute()
    for name in open_run(store).layout.names:
        expected_median = float(by_layer.smoothness.sel(layer=name).median())
        np.testing.assert_allclose(float(tensors[name]), expected_median, rtol=1e-3)
    found = stored(store, "smoothness-same_batch")
    np.testing.assert_allclose(found.smoothness, same.smoothness)
    assert "different examples" not in output
    assert (store.parent / "run.figures" / "smoothness.png").stat().st_size > 10_000


def test_smoothness_of_minibatches_is_explained(
    example_run: Path, tmp_path: Path, traj_analyze: Callable[..., str]
):
    copy = shutil.copytree(example_run, tmp_path / "run.zarr")
    output = traj_analyze("smoothness", copy)
    note = "these gradients come from different examples; for gradients of the same examples,"
    assert note in " ".join(output.split())


def test_slack_is_shown_towards_the_end_and_between_neighbours(
    store: Path, traj_analyze: Callable[..., str]
):
    output = traj_analyze("convexity", store)
    towards, neighbours = output.split("Tangents at neighbouring iterates")
    found = stored(store, "convexity-final")
    first = table(towards, "steps")[0]
    assert first[:3] == ["0", "to", "2"]
    np.testing.assert_allclose(float(first[3]), found.slack[:3].mean(), rtol=6e-3)
    np.testing.assert_allclose(float(first[4]), found.slack[:3].min(), rtol=6e-3)
    assert first[5:] == ["0", "%"]
    near = stored(store, "convexity-adjacent")
    last = table(neighbours, "steps")[-1]
    assert last[:3] == ["57", "to", "59"]
    expected = near.slack_back[57:59].mean()
    np.testing.assert_allclose(float(last[7]), expected, rtol=6e-3)
    assert "(plain descent)" in neighbours
    assert (
        store.parent / "run.figures" / "convexity-final.png"
    ).stat().st_size > 10_000


def test_a_lower_loss_at_the_end_is_a_violation(
    tmp_path: Path, traj_analyze: Callable[..., str]
):
    store = record(tmp_path / "run.zarr", full_batch=False)
    output = traj_analyze("convexity", store, "--reference-loss", "-1000")
    assert table(output, "steps")[-1][-2:] == ["100", "%"]
    assert "single steps do not" in " ".join(output.split())
    assert "neighbouring" not in output


def test_full_batches_may_be_declared_after_recording(
    tmp_path: Path, traj_analyze: Callable[..., str]
):
    store = record(tmp_path / "run.zarr", full_batch=None)
    given = ("--reference-loss", "0")
    output = " ".join(traj_analyze("convexity", store, *given).split())
    assert "if every step uses all data, pass --full-batch" in output
    assert "neighbouring" not in output
    # The loss at x* was recorded in the measurement that repeats the batch of the last step.
    output = traj_analyze("convexity", store, "--full-batch")
    assert "Tangents at neighbouring iterates (plain descent)" in output
    assert "single steps do not" not in " ".join(output.split())
    found = stored(store, "convexity-final")
    assert found.attrs["reference_loss"] == pytest.approx(
        float(open_run(store).measured("same_batch").steps["loss"][-1])
    )


def test_smoothness_of_steps_that_use_all_data_needs_no_note(
    example_run: Path, tmp_path: Path, traj_analyze: Callable[..., str]
):
    copy = shutil.copytree(example_run, tmp_path / "run.zarr")
    assert "different examples" not in " ".join(
        traj_analyze("smoothness", copy, "--full-batch").split()
    )


def test_layers_are_shown_separately(store: Path, traj_analyze: Callable[..., str]):
    output = traj_analyze("scale-invariance", store)
    rows = table(output, "tensor")
    found = analyzers.scale_invariance(open_run(store)).compute()
    for row, name in zip(rows, open_run(store).layout.names, strict=True):
        of_layer = found.sel(layer=name)
        assert row[0] == name
        np.testing.assert_allclose(float(row[2]), of_layer.cosine_max, rtol=0.06)
        assert row[3] == "no"
        np.testing.assert_allclose(float(row[4]), of_layer.growth, rtol=6e-3)
        np.testing.assert_allclose(float(row[5]), of_layer.expected_growth, rtol=6e-3)
    assert "0 of 2 tensors are invariant" in output
    other = traj_analyze("scale-invariance", store, "--tolerance", "0.9")
    assert "|cosine| is at most 0.9 in every step" in other
    assert (store.parent / "run.figures" / "invariance.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edge-of-stability", "--optimizer", "sgd"], "--sharpness-every"),
        (["edge-of-stability"], "No sharpness in"),
        (["smoothness", "--measurement", "same_batch"], "--same-batch-every"),
        (["convexity"], "pass --reference-loss"),
        (["scale-invariance", "--tolerance", "2"], "between 0 and 1, got 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_errors_say_in_one_sentence_what_to_do(
    example_run: Path,
    refused: Callable[..., str],
    arguments: list[str],
    message: str,
):
    command, *options = arguments
    assert message in refused(command, example_run, *options)


@pytest.mark.parametrize(
    "arguments", [["scale-invariance"], ["geometry", "--weight-decay", "1"]]
)
def test_a_missing_basis_is_reported_in_one_sentence(
    tmp_path: Path,
    train_small: Callable[..., Any],
    refused: Callable[..., str],
    arguments: list[str],
):
    path = tmp_path / "run.zarr"
    train_small(partial(Recorder, path), basis=0, sketch_bits=64, probes=16)
    command, *options = arguments
    said = refused(command, path, *options)
    assert "recorded with basis=0; record with basis=1 or more." in said
    # The failed command leaves no results behind.
    assert not (tmp_path / "run.analysis.zarr").exists()
