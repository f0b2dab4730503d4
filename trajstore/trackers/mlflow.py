"""Send values to MLflow."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import mlflow
from mlflow.entities import Metric, Param

MAX_METRICS: Final = 1000
MAX_PARAMS: Final = 100
MAX_PARAM: Final = 6000
"""Largest numbers of values in one request, and largest length of a setting."""

MAX_NAME: Final = 250

NOT_ALLOWED: Final = re.compile(r"[^\w\-./ ]", re.ASCII)
"""Characters that MLflow refuses in names of metrics."""


class MLflow:
    """Send values of a run to an MLflow server or a local store.

    A run that the program has begun in this thread is used, and stays open; otherwise a run
    is begun and ended. Characters that MLflow refuses in names become underscores.

    Parameters
    ----------
    uri : str, optional
        Tracking URI, such as ``sqlite:///mlflow.db`` or ``http://host:5000``. Default: that of
        MLflow's settings.
    run_id : str, optional
        Identifier of the run to use. Default: the active run, if any.
    """

    def __init__(self, uri: str | None = None, *, run_id: str | None = None) -> None:
        active = mlflow.active_run() if not uri and run_id is None else None
        self._run_id = run_id if active is None else active.info.run_id
        self._is_ours = self._run_id is None
        self._uri = uri or None
        self._client: Any = None

    def _opened(self) -> tuple[Any, str]:
        """Return a client and the identifier of the run."""
        if self._client is None:
            self._client = mlflow.MlflowClient(self._uri)
        if self._run_id is None:
            # The experiment that always exists has the identifier 0.
            self._run_id = self._client.create_run("0").info.run_id
        return self._client, self._run_id

    def settings(self, values: Mapping[str, object]) -> None:
        """Keep the settings as parameters of the run.

        Parameters
        ----------
        values : mapping from str to object
            Settings by name. Names of nested settings are joined by dots.
        """
        client, run_id = self._opened()
        params = [
            Param(_safe(name), json.dumps(value)[:MAX_PARAM])
            for name, value in _flat(values, "trajectory.")
        ]
        for i in range(0, len(params), MAX_PARAMS):
            client.log_batch(run_id, params=params[i : i + MAX_PARAMS])

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Send values of a step.

        Parameters
        ----------
        step : int
            Optimizer step.
        values : mapping from str to float
            Values by name.
        time : float
            Seconds since 1970.
        """
        client, run_id = self._opened()
        metrics = [
            Metric(_safe(name), value, int(1000 * time), step)
            for name, value in values.items()
        ]
        for i in range(0, len(metrics), MAX_METRICS):
            client.log_batch(run_id, metrics=metrics[i : i + MAX_METRICS])

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Keep an image as an artifact.

        Parameters
        ----------
        name : str
            Name of the figure; the artifact has the name of the file.
        path : Path
            A PNG file.
        step : int
            Not used.
        """
        del name, step
        client, run_id = self._opened()
        client.log_artifact(run_id, str(path), "figures")

    def page(self, name: str, path: Path) -> None:
        """Keep a page as an artifact.

        Parameters
        ----------
        name : str
            Name of the page; the artifact has the name of the file.
        path : Path
            The page.
        """
        del name
        client, run_id = self._opened()
        client.log_artifact(run_id, str(path))

    def close(self) -> None:
        """End the run, unless the program has begun it."""
        if self._is_ours and self._run_id is not None:
            self._client.set_terminated(self._run_id)


def _safe(name: str) -> str:
    """Return a name that MLflow accepts; different names stay different."""
    safe = NOT_ALLOWED.sub("_", name)[:MAX_NAME].strip(" /.") or "_"
    return (
        safe if safe == name else f"{safe[: MAX_NAME - 9]}_{crc32(name.encode()):08x}"
    )


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield settings with the names of the mappings around them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
