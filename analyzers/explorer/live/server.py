"""Serve the page of a run that is being recorded, and follow the commits of the recorder."""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.models import ColumnDataSource
from bokeh.server.server import Server

from analyzers.explorer.contents.curves import geometry_curves
from analyzers.explorer.contents.stored_geometries import stored_geometries
from analyzers.explorer.live.alerts import Alert, find_alerts
from analyzers.explorer.live.figures import (
    FIGURES,
    LiveModels,
    live_columns,
    live_figures,
)
from analyzers.explorer.live.geometry_job import GeometryJob, parse_target
from analyzers.explorer.live.readings import Readings, expected_steps
from analyzers.explorer.page import collect, fill_document, page_title, path_map
from analyzers.explorer.views.geometry import epoch_columns
from trajstore.cli.command_line import nearest
from trajstore.format.run_spec import SchemaError
from trajstore.format.shown import shown as printable
from trajstore.reading.run import Run, open_run
from trajstore.store.holder import WRITER
from trajstore.store.location import is_remote, locate
from trajstore.store.opening import is_run_directory

HOST: Final = "127.0.0.1"
"""Address of the page: this machine, and no other."""

MAX_STEP_POINTS: Final = 20_000
"""Largest number of buckets of the steps of a geometry that is computed for the page."""


class Follower:
    """Read every commit of a run in a thread, and collect alerts.

    Attributes
    ----------
    readings : Readings
        Everything read so far; replaced columns, so that a reader may keep the old ones.
    alerts : list of Alert
        Every alert so far, one of each kind.
    version : int
        Number that grows whenever there is something new.
    lock : Lock
        Held while `readings` and `alerts` change.
    """

    def __init__(
        self,
        readings: Readings,
        *,
        interval: float,
        report: Callable[[Alert], None],
    ) -> None:
        self.readings, self.lock = readings, Lock()
        self.alerts: list[Alert] = []
        self.version = 0
        self._interval, self._report = interval, report
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Read once, and go on reading in a thread."""
        self.readings.skip_windows()
        self.read()
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=30)

    def read(self) -> bool:
        """Read what is new, report new alerts, and return whether anything has changed."""
        with self.lock:
            is_new = self.readings.update()
            new_alerts = self._find_alerts()
            self.version += is_new or bool(new_alerts)
        for alert in new_alerts:
            self._report(alert)
        if is_new:
            self._measure()
        return is_new

    def _measure(self) -> None:
        with self.lock:
            try:
                self.version += self.readings.measure_windows()
            except (OSError, ValueError, KeyError):
                return  # The store was resumed meanwhile; the next reading tells more.

    def _find_alerts(self) -> list[Alert]:
        found = find_alerts(
            self.readings.columns,
            size=self.readings.size,
            free=self.readings.free,
            total=expected_steps(self.readings.run),
        )
        known = {alert.kind for alert in self.alerts}
        new = [alert for alert in found if alert.kind not in known]
        self.alerts += new
        return new

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.read()
            except (OSError, ValueError, KeyError) as error:
                # A store may be replaced, or its disk may be away for a while.
                self._report_once(str(error))

    def _report_once(self, text: str) -> None:
        with self.lock:
            if any(alert.kind == "store" for alert in self.alerts):
                return
            alert = Alert("store", self.readings.n_steps, printable(text))
            self.alerts.append(alert)
            self.version += 1
        self._report(alert)


class Session:
    """One open page: it shows what the follower reads, and computes what its user asks for."""

    def __init__(self, document: Document, follower: Follower) -> None:
        self.document, self.follower = document, follower
        self.models = LiveModels()
        self._version = -1
        self._job: GeometryJob | None = None
        with follower.lock:
            self.run = follower.readings.run
        contents = collect([self.run], pca=path_map([self.run]))
        self._shown = contents.shown[0]
        self._groups = [one.group for one in stored_geometries(self.run)]
        figures = live_figures(self.models)
        fill_document(
            document,
            contents,
            title=page_title(contents.shown),
            live_figures=figures,
            live_models=self.models.all,
            live_facts=[(name, title, note) for name, title, note, _, _ in FIGURES],
        )
        self._home = figures[0]
        self.models.request.on_change("data", self._on_request)
        document.add_periodic_callback(self.show, 500)
        self.show()

    def show(self) -> None:
        """Send what is new to the page."""
        with self.follower.lock:
            version = self.follower.version
            facts = self.follower.readings.facts()
            alerts = list(self.follower.alerts)
            is_new = version != self._version
            curves = live_columns(self.follower.readings) if is_new else None
        self.models.facts.data = {name: [value] for name, value in facts.items()}
        if curves is not None:
            self._version = version
            self.models.curves.data = dict(curves)
            self.models.alerts.data = {
                "kind": [a.kind for a in alerts],
                "step": [a.step for a in alerts],
                "text": [printable(a.text) for a in alerts],
            }
        self._show_job()

    def _on_request(self, _attr: str, _old: Any, new: Any) -> None:
        """Start the computation that the page asks for, unless another one is running."""
        if not len(new["kind"]) or (self._job is not None and not self._job.is_done):
            return
        kind, value = str(new["kind"][0]), str(new["value"][0])
        text = printable(f"{kind} {value}")
        job = GeometryJob(self.run, text)
        self._job = job
        try:
            reference = parse_target(kind, value, self.run)
        except (OSError, ValueError, KeyError) as error:
            job.error = str(error.args[0] if isinstance(error, KeyError) else error)
        else:
            job.start(reference)
        self._show_job()

    def _show_job(self) -> None:
        """Show the progress of a computation, and its result when it is there."""
        job = self._job
        if job is None:
            return
        state, target = "running", ""
        if job.error:
            state, target = "failed", ""
        elif job.group:
            state, target = "done", self._add_geometry(job.group)
        self._tell(job, state, target)
        if job.is_done:
            self._job = None

    def _tell(self, job: GeometryJob, state: str, target: str) -> None:
        self.models.job.data = {
            "text": [printable(job.error or job.text)],
            "share": [job.share],
            "state": [state],
            "target": [target],
        }

    def _add_geometry(self, group: str) -> str:
        """Add a computed geometry to the models of the page, and return its label."""
        found = [one for one in stored_geometries(self.run) if one.group == group]
        curves = geometry_curves(self._shown, found[0], most=MAX_STEP_POINTS)
        assert curves is not None
        if group not in self._groups:
            self._groups.append(group)
        i = self._groups.index(group)
        key = self._shown.key
        epochs = ColumnDataSource(
            name=f"{key}-epochs-{i}", data=epoch_columns(self._shown, curves.by_epoch)
        )
        steps = ColumnDataSource(name=f"{key}-steps-{i}", data=curves.by_step)
        names = {epochs.name, steps.name}
        kept = [m for m in self._home.tags if m.name not in names]
        self._home.tags = [*kept, epochs, steps]
        return curves.label


def serve(follower: Follower, *, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `started` is called with its address."""
    server = start_server(follower, port=port)
    started(f"http://localhost:{server.port}/")
    server.io_loop.start()


def start_server(follower: Follower, *, port: int) -> Any:
    """Start to serve the page on this machine; port 0 chooses a free one."""

    def open_page(document: Document) -> None:
        Session(document, follower)

    application = Application(FunctionHandler(open_page))
    server = Server({"/": application}, port=port, address=HOST)
    server.start()
    return server


def wait_for_steps(
    store: str, *, say: Callable[[str], None], seconds: float = 1.0
) -> Run:
    """Return a run when it exists and has its first steps; say what is missing."""
    said = ""
    while True:
        found = open_if_there(store)
        if found is not None and found.n_steps:
            return found
        text = (
            f"Waiting for the first steps of {found.location}."
            if found is not None
            else _absence(locate(store))
        )
        if text != said:
            say(text)
        said = text
        time.sleep(seconds)


def open_if_there(store: str) -> Run | None:
    """Open a run; return None if there is none yet, or if a recorder has just begun one."""
    try:
        return open_run(store)
    except FileNotFoundError:
        return None
    except SchemaError:
        place = Path(locate(store))
        if (place / WRITER).is_file() and not (place / "zarr.json").exists():
            return None
        raise


def _absence(location: str) -> str:
    """Say that there is no store at a location, so that a typing error is noticed."""
    text = f"There is no store at {location} yet. Waiting for it; Ctrl-C ends."
    folder = Path(location).parent
    if is_remote(location):
        return text
    if not folder.is_dir():
        return f"{text} Its folder {folder} does not exist, either."
    others = [path.name for path in folder.iterdir() if is_run_directory(path)]
    if near := nearest(Path(location).name, others):
        text += f" Its folder has other stores{near}."
    return text
