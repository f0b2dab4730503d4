"""Send reports to the loggers that a trainer already has."""

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from warnings import warn

from trajstore.trackers.reporter import SINKS, Reporter, ReportTo, open_sink
from trajstore.trackers.sink import Sink

TRAINER: Final = "trainer"
"""Address of the loggers of the trainer."""

THREAD_SAFE: Final = ("TensorBoardLogger", "WandbLogger", "MLFlowLogger")
"""Loggers of Lightning that may be called by another thread while training calls them."""


def with_trainer(report_to: ReportTo, sinks: Sequence[Sink]) -> list[Reporter]:
    """Return reporters, with one for each of the trainer's sinks instead of the trainer."""
    given: Iterable[str | Sink | Reporter] = (
        [report_to] if isinstance(report_to, (str, Reporter, Sink)) else report_to
    )
    reporters = []
    for each in given:
        reporter = each if isinstance(each, Reporter) else Reporter(to=each)
        if reporter.to == TRAINER:
            if not sinks:
                warn(
                    "report_to='trainer' reports nothing: the trainer has no logger that "
                    f"trajstore knows. It knows all of Lightning's, and {', '.join(SINKS)} in "
                    "the `report_to` of transformers.",
                    stacklevel=2,
                )
            reporters += [replace(reporter, to=sink) for sink in sinks]
        else:
            reporters.append(reporter)
    return reporters


class LightningLoggers:
    """A sink that gives values to the loggers of Lightning's trainer.

    Loggers that other threads must not call get their values from `pass_on`.
    """

    def __init__(self, loggers: Sequence[Any]) -> None:
        self._direct = [x for x in loggers if type(x).__name__ in THREAD_SAFE]
        self._others = [x for x in loggers if type(x).__name__ not in THREAD_SAFE]
        self._waiting: deque[tuple[int, dict[str, float]]] = deque()

    def settings(self, values: Mapping[str, object]) -> None:
        """Keep nothing: the trainer has logged its settings."""

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Give values of a step to the loggers; loggers take their own time."""
        for logger in self._direct:
            logger.log_metrics(dict(values), step)
        if self._others:
            self._waiting.append((step, dict(values)))

    def pass_on(self) -> None:
        """Give waiting values to loggers that only the training thread may call."""
        while self._waiting:
            step, values = self._waiting.popleft()
            try:
                for logger in self._others:
                    logger.log_metrics(values, step)
            except Exception as error:  # noqa: BLE001 - reports must not end training
                self._others = []
                self._waiting.clear()
                warn(
                    f"Nothing more is reported to the trainer's loggers: {error!r}. Training "
                    "and recording continue.",
                    stacklevel=2,
                )

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Keep nothing: recordings report no figures."""

    def page(self, name: str, path: Path) -> None:
        """Keep nothing: recordings report no pages."""

    def close(self) -> None:
        """Leave the loggers open, for the trainer."""


def transformers_sinks(args: Any) -> list[Sink]:
    """Return sinks for the trackers to which transformers' trainer reports."""
    # The trainer has begun their runs, which the sinks find. Its TensorBoard writer is out of
    # reach, so events go to a folder below that of the trainer.
    sinks = []
    for kind in args.report_to:
        if kind == "tensorboard":
            folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or getattr(
                args, "logging_dir", None
            )
            folder = folder or str(Path(args.output_dir) / "runs")
            sinks.append(open_sink(f"tensorboard:{Path(folder) / 'trajectory'}"))
        elif kind in SINKS:
            sinks.append(open_sink(kind))
    return sinks
