"""Test that W&B, MLflow and trackio keep what they receive, without a network."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import trajstore
from tests.trajstore.trackers.lists import train
from trajstore.trackers import Reporter

ATTRS = {"lr": 0.1, "data": {"name": "random"}}

pytestmark = [
    pytest.mark.slow,
    # Libraries that we do not control.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:Nothing more is reported"),
]


def recorded_losses(path: Path, to: Any) -> list[float]:
    train(path, report_to=Reporter(to=to, every=3), attrs=ATTRS)
    losses: list[float] = trajstore.open_run(path).steps["loss"].values[::3].tolist()
    return losses


def test_mlflow_keeps_metrics_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)  # for artifacts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    losses = recorded_losses(tmp_path / "run.zarr", f"mlflow:{uri}")
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert json.loads(run.data.params["trajectory.lr"]) == 0.1
    assert json.loads(run.data.params["trajectory.data.name"]) == "random"
    found = client.get_metric_history(run.info.run_id, "trajectory/loss")
    assert [metric.step for metric in found] == [0, 3, 6, 9]
    assert [metric.value for metric in found] == losses
    assert "layer_grad_norm/0.weight" in run.data.metrics


def test_mlflow_uses_the_active_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        with mlflow.start_run() as active:
            recorded_losses(tmp_path / "run.zarr", "mlflow")
            run = mlflow.get_run(active.info.run_id)
            assert run.info.status == "RUNNING"
            assert "trajectory/loss" in run.data.metrics
    finally:
        mlflow.set_tracking_uri(None)


def test_names_that_mlflow_refuses_stay_different():
    pytest.importorskip("mlflow")
    from trajstore.trackers.mlflow import MAX_NAME, _safe

    names = ["a.b/c-d e", "a\nb", "a b!", "a b?", "$x$", "é", "x" * 300, "x" * 301, ""]
    safe = [_safe(name) for name in names]
    assert safe[0] == names[0]
    assert len({*safe}) == len(names)
    assert max(map(len, safe)) <= MAX_NAME


def test_trackio_keeps_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # before the first import
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    from trajstore.trackers.trackio import Trackio

    project = f"test-{tmp_path.name}"
    losses = recorded_losses(tmp_path / "run.zarr", Trackio(project))
    [name] = SQLiteStorage.get_runs(project)
    logs = [
        log for log in SQLiteStorage.get_logs(project, name) if "trajectory/loss" in log
    ]
    assert [log["step"] for log in logs] == [0, 3, 6, 9]
    assert [log["trajectory/loss"] for log in logs] == losses


class FakeRun:
    """The methods of a run of W&B that the sink calls."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.config = self
        self.settings: dict[str, Any] = {}
        self.axes: dict[str, str | None] = {}
        self.is_finished = False

    def update(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
        assert allow_val_change
        self.settings |= values

    def define_metric(
        self, name: str, step_metric: str | None = None, **_: Any
    ) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.is_finished = True


def test_wandb_uses_a_run_that_is_open(tmp_path: Path):
    pytest.importorskip("wandb")
    from trajstore.trackers.wandb import WeightsAndBiases

    run = FakeRun()
    losses = recorded_losses(tmp_path / "run.zarr", WeightsAndBiases(run=run))
    assert [row["trajectory/step"] for row in run.logged] == [0, 3, 6, 9]
    assert [row["trajectory/loss"] for row in run.logged] == losses
    assert run.axes["layer_*"] == run.axes["trajectory/*"] == "trajectory/step"
    assert run.settings["trajectory"]["lr"] == 0.1
    assert not run.is_finished


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in the format of LevelDB, after a header of 7 bytes."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if (left := -position % 32768) < 7 and left:
            position += left  # the padding of a block
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in {1, 4}:  # a whole record, or the last part of one
            yield record
            record = b""


def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    losses = recorded_losses(tmp_path / "run.zarr", "wandb:project")
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
    assert [json.loads(row["trajectory/step"]) for row in rows] == [0, 3, 6, 9]
    found = [json.loads(row["trajectory/loss"]) for row in rows]
    np.testing.assert_array_equal(found, losses)
