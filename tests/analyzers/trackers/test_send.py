"""Test ``analyzers.log`` and the command ``traj-analyze log``."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import analyzers
import trajstore
from analyzers.trackers.command import log as command
from tests.analyzers.trackers.kept import KeepingSink
from trajstore.reading.run import Run, open_run
from trajstore.store.location import OutsideStoreError


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """Return a copy of a run, because results are written next to the store."""
    return open_run(shutil.copytree(example_run, tmp_path / "digits.zarr"))


@pytest.mark.parametrize("every", [1, 7])
def test_steps_are_those_of_the_store(run: Run, every: int):
    sink = KeepingSink()
    sent = analyzers.log(run, to=sink, every=every)
    steps = run.steps.compute()
    cosines = (
        analyzers.zigzag(run, layers=True).cosine.transpose("step", "layer").values
    )
    numbers = list(range(0, run.n_steps, every))
    assert [step for step, _ in sink.received] == numbers
    assert sent == {"steps": len(numbers), "geometries": 0, "figures": 0, "pages": 0}
    assert sink.is_closed
    for step, values in sink.received:
        for name in ("loss", "lr", "grad_norm", "param_norm"):
            assert values[f"trajectory/{name}"] == float(steps[name][step])
        for i, layer in enumerate(run.spec.names):
            norm = np.sqrt(float(steps["grad_sq"][step, i]))
            assert values[f"layer_grad_norm/{layer}"] == pytest.approx(norm, rel=1e-12)
            if step > 0:
                key = f"layer_adjacent_cosine/{layer}"
                assert values[key] == pytest.approx(cosines[step, i], rel=1e-12)


def test_spans_of_steps_fit_together(run: Run, monkeypatch: pytest.MonkeyPatch):
    whole, parts = KeepingSink(), KeepingSink()
    analyzers.log(run, to=whole, every=1)
    monkeypatch.setattr("analyzers.trackers.send.SPAN", 5)
    analyzers.log(run, to=parts, every=1)
    assert whole.received == parts.received


def test_few_steps_are_left_out_by_default(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("analyzers.trackers.send.MAX_REPORTED", 4)
    sink = KeepingSink()
    sent = analyzers.log(run.location, to=sink, layers=False)
    assert 1 < sent["steps"] <= 4
    assert not any("layer" in name for _, values in sink.received for name in values)


def test_geometry_figures_and_pages_are_sent(run: Run, tmp_path: Path):
    geometry = analyzers.store_geometry(run).compute()
    folder = tmp_path / "digits.figures"
    folder.mkdir()
    figure = plt.figure(figsize=(1, 1))
    figure.savefig(folder / "final.png", dpi=20)
    plt.close(figure)
    (folder / "explorer.html").write_text("<html></html>")
    (folder / "notes.txt").write_text("mine")
    sink = KeepingSink()
    sent = analyzers.log(run, to=sink, every=1000)
    assert (sent["geometries"], sent["figures"], sent["pages"]) == (1, 1, 1)
    assert sink.files == [
        ("figures/final", "final.png"),
        ("pages/explorer", "explorer.html"),
    ]
    means = analyzers.epoch_means(geometry).compute()
    found = [item for item in sink.received if "geometry_final/gamma" in item[1]]
    epochs = run.stored.epochs
    ends = [int(np.flatnonzero(epochs == epoch)[-1]) for epoch in means["epoch"].values]
    assert [step for step, _ in found] == ends
    for i, (_, values) in enumerate(found):
        for name in ("gamma", "gamma_stderr", "rsi", "distance", "lolr_stderr"):
            expected = float(means[name][i])
            if np.isfinite(expected):
                assert values[f"geometry_final/{name}"] == pytest.approx(expected)


def test_a_run_without_epochs_sends_ranges_of_steps(
    tmp_path: Path,
):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    path = tmp_path / "run.zarr"
    with trajstore.Recorder(path, weight, optimizer, total_steps=60) as recorder:
        for k in range(60):
            optimizer.zero_grad()
            weight(torch.ones(1, 3) * (k % 3)).square().sum().backward()
            recorder.log(loss=0.0)
            optimizer.step()
    geometry = analyzers.store_geometry(path)
    sink = KeepingSink()
    analyzers.log(path, to=sink, every=1000)
    found = {s: v for s, v in sink.received if "geometry_final/distance" in v}
    means = analyzers.range_means(geometry).compute()
    assert list(found) == means["last_step"].values.tolist() == list(range(2, 60, 3))
    for i, values in enumerate(found.values()):
        distance = values["geometry_final/distance"]
        assert distance == pytest.approx(float(means["distance"][i]))


def test_a_sink_that_fails_is_closed(run: Run):
    sink = KeepingSink()
    sink.fails = True
    with pytest.raises(ConnectionError, match="no answer"):
        analyzers.log(run, to=sink)
    assert sink.is_closed


def test_measurements_are_refused():
    group = SimpleNamespace(is_measurement=True, name="full_batch")

    class Measured(SimpleNamespace):
        steps = None

    measured: Any = Measured(group=group, location="run.zarr")
    with pytest.raises(ValueError, match=r"'full_batch' is a measurement of run\.zarr"):
        analyzers.log(measured, to=KeepingSink())


def test_figures_behind_a_link_are_not_sent(run: Run, tmp_path: Path):
    folder = tmp_path / "digits.figures"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"theirs")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(OutsideStoreError, match="leads through a link"):
        analyzers.log(run, to=KeepingSink())


def test_command_writes_event_files(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command(run.location, to=f"tensorboard:{tmp_path / 'logs'}", every=1)
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    values = [event.value for event in events.Scalars("trajectory/loss")]
    losses = run.steps["loss"].values.astype(np.float32)
    np.testing.assert_array_equal(values, losses)
    printed = capsys.readouterr().out
    assert f"{run.n_steps} steps" in printed
    assert "traj-analyze geometry" in printed
