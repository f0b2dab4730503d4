"""Test ``traj-store watch``: one process records, one watches, and a browser looks on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("bokeh")

import analyzers
import trajstore
from analyzers.explorer.contents.decimation import buckets, means_of_groups
from analyzers.explorer.live.figures import MAX_POINTS
from tests.analyzers.explorer.browser import CHROMIUM, Page, browser_page

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.slow,
]

ENVIRONMENT: Final = os.environ | {
    "PYTHONPATH": str(Path(trajstore.__file__).parents[1]),
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "default",
    "OMP_NUM_THREADS": "1",
}


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )


def wait_for(log: Path, text: str, *, seconds: float = 60) -> str:
    """Wait until a process has printed a text, and return everything it has printed."""
    deadline = time.monotonic() + seconds
    while text not in (printed := log.read_text("utf-8")):
        assert time.monotonic() < deadline, printed
        time.sleep(0.1)
    return printed


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Any]:
    """Return a function that watches a store, and returns the address of the page."""
    processes = []

    def watch(store: Path) -> str:
        log = tmp_path / "watch.log"
        command = ["-m", "trajstore.cli.main", "watch", store, "--interval", "0.5"]
        processes.append(start(*command, log=log))
        printed = wait_for(log, "http://")
        return next(w for w in printed.split() if w.startswith("http://"))

    yield watch
    (tmp_path / "stop").touch()  # ends the training, whatever the test has found
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


def live(page: Page) -> tuple[int, list[float], list[float]]:
    """Return the number of steps, and the places and losses of the live curve."""
    text = page.run("""JSON.stringify([
        explorer.model("live-facts").data.step[0],
        ...["x", "loss"].map(name => Array.from(
            explorer.model("live-curves").data[name],
            v => Number.isFinite(v) ? v : null))])""")
    n_steps, x, loss = json.loads(text)
    return int(n_steps), x, [float("nan") if v is None else v for v in loss]


@pytest.mark.parametrize(
    ("seconds", "flush_seconds"),
    [(20, 1.0), (50, None), (300, 1.0), (300, None)],
    ids=["20", "50-default", "300", "300-default"],
)
def test_a_run_is_followed_and_a_nan_is_reported(
    seconds: int, flush_seconds: float | None, tmp_path: Path, watching: Any
):
    """Without `flush_seconds`, the recorder commits every 30 seconds."""
    store, log = tmp_path / "run.zarr", tmp_path / "train.log"
    program = Path(__file__).parent / "train_slowly.py"
    options = () if flush_seconds is None else (flush_seconds,)
    recorder = start(program, store, tmp_path, *options, log=log)
    deadline = time.monotonic() + 60
    while not (store / "zarr.json").exists():
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.2)
    address = watching(store)
    seen = []
    with browser_page() as page:
        page.open(address)
        alerted, opened = None, time.monotonic()
        while (elapsed := time.monotonic() - opened) < seconds:
            assert recorder.poll() is None, log.read_text("utf-8")
            # Halfway between two commits that no trouble has caused.
            if elapsed > 0.35 * seconds:
                (tmp_path / "nan").touch()
            seen.append(live(page))
            if alerted is None and page.run(
                "document.getElementById('live-alerts').innerText.includes('non-finite')"
            ):
                alerted = time.time()
            time.sleep(0.25)
        assert page.complaints == []
    (tmp_path / "stop").touch()
    assert recorder.wait(timeout=60) == 0, log.read_text("utf-8")
    happened = float(log.read_text("utf-8").split()[0])
    assert alerted is not None
    assert alerted - happened < 5
    printed = (tmp_path / "watch.log").read_text("utf-8")
    assert printed.count("alert (non-finite)") == 1
    # Rows have grown, and every curve is that of the first n steps of the complete run.
    counts = [n for n, _, _ in seen]
    assert counts == sorted(counts)
    # Early commits tell of trouble, and not of every step.
    n_commits = len(set(counts))
    expected = seconds / 5 if flush_seconds else 2
    assert expected <= n_commits
    if flush_seconds is None:
        assert n_commits < 4 + seconds / 20
    losses = trajstore.open_run(store).steps.loss.values
    lengths = sorted({0, *counts})
    for n, x, loss in seen:
        candidates = [n, lengths[max(0, lengths.index(n) - 1)]]
        assert any(is_curve(losses[:k], x, loss) for k in candidates if k), (n, len(x))


def is_curve(losses: np.ndarray[Any, Any], x: list[float], found: list[float]) -> bool:
    """Whether a curve is that of the given losses, in buckets."""
    groups = buckets(len(losses), MAX_POINTS)
    if len(groups.starts) != len(x):
        return False
    wanted = means_of_groups(losses, np.arange(len(losses)) // groups.size)
    return np.allclose(found, wanted, rtol=1e-5, equal_nan=True)


def test_a_target_is_computed_in_the_background(
    tmp_path: Path, watching: Any, train_small: Any
):
    from functools import partial

    store = tmp_path / "run.zarr"
    train_small(partial(trajstore.Recorder, store), sketch_bits=1024, probes=256)
    run = trajstore.open_run(store)
    address = watching(store)
    wanted = {
        ("epoch", "3"): analyzers.path_geometry(run, reference=3),
        ("snapshot", "middle"): analyzers.path_geometry(run, reference="middle"),
        ("mean", "2-4"): analyzers.path_geometry(
            run, reference=analyzers.average_of_epochs(run, range(2, 5))
        ),
        ("run", str(store)): analyzers.path_geometry(run, reference=run),
    }
    with browser_page() as page:
        page.open(address)
        for (kind, value), geometry in wanted.items():
            ask(page, kind, value)
            page.wait_for(
                "document.getElementById('live-job').textContent.startsWith('computed')"
            )
            page.settle()
            means = analyzers.epoch_means(geometry).compute()
            shown = page.run(
                "Array.from(explorer.model('r0-active').data.distance, Number)"
            )
            np.testing.assert_allclose(shown, means.distance.values, rtol=1e-6)
        ask(page, "epoch", "99")
        page.wait_for(
            "document.getElementById('live-job').textContent.includes('No anchor')"
        )
        ask(page, "run", "/nowhere")
        page.wait_for(
            "document.getElementById('live-job').textContent.includes('no trajectory')"
        )
        assert page.complaints == []
    groups = {path.name for path in (tmp_path / "run.analysis.zarr").iterdir()}
    assert {"epoch-3", "snapshot-middle"} <= groups


def ask(page: Page, kind: str, value: str) -> None:
    page.run(f"""(() => {{
        const form = document.getElementById("live-target");
        document.getElementById("live-job").textContent = "";
        form.elements.kind.value = {kind!r};
        form.elements.value.value = {value!r};
        form.requestSubmit();
    }})()""")
