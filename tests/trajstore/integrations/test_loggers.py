"""Test that callbacks report to the loggers of their trainers."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tests.trajstore.integrations.by_hand import SMALL, flat, make_loader
from tests.trajstore.integrations.test_lightning import Module
from tests.trajstore.integrations.test_lightning import (
    make_trainer as lightning_trainer,
)
from tests.trajstore.integrations.test_lightning import pytestmark as quiet
from tests.trajstore.integrations.test_transformers import (
    Regression,
)
from tests.trajstore.integrations.test_transformers import (
    make_trainer as transformers_trainer,
)
from tests.trajstore.trackers.lists import ListSink
from trajstore.integrations import lightning as for_lightning
from trajstore.integrations import loggers
from trajstore.integrations import transformers as for_transformers
from trajstore.reading.run import open_run
from trajstore.trackers import Reporter

pytestmark = [
    *quiet,
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
]


def fit(path: Path, logger: Any, **options: Any) -> Any:
    """Train with Lightning, and return the parameters."""
    torch.manual_seed(0)
    module = Module()
    callback = for_lightning.TrajectoryCallback(path, **SMALL, **options)
    trainer = lightning_trainer(callback, logger=logger, log_every_n_steps=1)
    trainer.fit(module, make_loader())
    return flat(module.parameters())


def test_lightning_loggers_get_values(tmp_path: Path):
    logger = CSVLogger(tmp_path / "logs", flush_logs_every_n_steps=1)
    reporter = Reporter(to="trainer", every=3)
    with_reports = fit(tmp_path / "run", logger, report_to=reporter, flush_rows=2)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("trajectory/loss")]
    steps = open_run(tmp_path / "run").steps
    expected = np.arange(0, steps.sizes["step"], 3)
    assert [int(row["step"]) for row in rows] == expected.tolist()
    losses = [float(row["trajectory/loss"]) for row in rows]
    np.testing.assert_array_equal(losses, steps["loss"].values[expected])
    norms = [float(row["layer_grad_norm/net.0.weight"]) for row in rows]
    squares = steps["grad_sq"].sel(layer="net.0.weight").values[expected]
    np.testing.assert_allclose(norms, np.sqrt(squares.astype(float)), rtol=1e-12)
    plain = fit(tmp_path / "plain", CSVLogger(tmp_path / "other"))
    np.testing.assert_array_equal(with_reports, plain)


def test_lightnings_tensorboard_gets_values(tmp_path: Path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    logger = TensorBoardLogger(tmp_path / "logs")
    fit(tmp_path / "run", logger, report_to=Reporter(to="trainer", every=2))
    events = accumulator.EventAccumulator(logger.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    found = events.Scalars("trajectory/grad_norm")
    norms = open_run(tmp_path / "run").steps["grad_norm"].values[::2]
    assert [event.step for event in found] == list(range(0, 2 * len(norms), 2))
    np.testing.assert_array_equal([e.value for e in found], norms.astype(np.float32))
    # The trainer's own values are in the same files.
    assert events.Scalars("last_loss")


class Failing(CSVLogger):
    """A logger that does not accept reports."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "trajectory/loss" in metrics:
            raise ConnectionError("no answer")
        super().log_metrics(metrics, step)


def test_an_error_of_a_logger_is_a_warning(tmp_path: Path):
    logger = Failing(tmp_path / "logs")
    with pytest.warns(UserWarning, match="ConnectionError.*no answer") as caught:
        fit(tmp_path / "run", logger, report_to=Reporter(to="trainer", every=1))
    assert len([w for w in caught if "no answer" in str(w.message)]) == 1
    assert open_run(tmp_path / "run").status == "complete"


def test_a_trainer_without_loggers_is_a_warning(tmp_path: Path):
    with pytest.warns(UserWarning, match="the trainer has no logger"):
        fit(tmp_path / "run", False, report_to="trainer")
    assert open_run(tmp_path / "run").status == "complete"


def train(path: Path, folder: Path, **options: Any) -> Any:
    """Train with transformers, and return the parameters."""
    torch.manual_seed(0)
    model = Regression()
    callback = for_transformers.TrajectoryCallback(path, **SMALL, **options)
    transformers_trainer(folder, model, callback).train()
    return flat(model.parameters())


def test_transformers_trackers_get_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sink, opened = ListSink(), []

    def open_sink(address: str) -> ListSink:
        opened.append(address)
        return sink

    monkeypatch.setattr(loggers, "open_sink", open_sink)

    class Arguments:
        output_dir = str(tmp_path / "out")
        report_to = ("tensorboard", "wandb", "kubeflow")

    monkeypatch.setattr(
        for_transformers,
        "transformers_sinks",
        lambda _args: loggers.transformers_sinks(Arguments)[:1],
    )
    reporter = Reporter(to="trainer", every=2)
    with_reports = train(tmp_path / "run", tmp_path / "a", report_to=reporter)
    assert opened == [
        f"tensorboard:{tmp_path / 'out' / 'runs' / 'trajectory'}",
        "wandb",
    ]
    losses = open_run(tmp_path / "run").steps["loss"].values[::2]
    found = [values["trajectory/loss"] for _, values in sink.received]
    np.testing.assert_array_equal(found, losses)
    np.testing.assert_array_equal(with_reports, train(tmp_path / "b", tmp_path / "c"))


def test_other_destinations_are_kept(tmp_path: Path):
    sink = ListSink()
    report_to = [Reporter(to=sink, every=2), Reporter(to="trainer", every=3)]
    [first, second] = loggers.with_trainer(report_to, [ListSink()])
    assert first is report_to[0]
    assert (second.every, second.to is sink) == (3, False)
