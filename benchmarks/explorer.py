"""Measure pages of `traj-analyze explore`: their size, and the time to write and open them.

Takes the paths of recorded runs, and draws the picture of the documentation from the first:

    traj-train run digits-resnet --out run.zarr
    traj-train run digits-resnet --seed 1 --out seed1.zarr
    traj-train run digits-resnet --optimizer adam --lr 0.001 --out adam.zarr
    python benchmarks/explorer.py run.zarr seed1.zarr adam.zarr

A page is written in this process, and three times by the command in a new process, which imports
everything. It is opened three times in Chromium without a network, until it is drawn. Medians
count. The last page is that of a synthetic run of 450,000 steps and 62 layers, which takes 3
GB of disk; its results are computed before the time is taken.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import tyro
from saving import RESULTS, save_results
from synthetic import write_run
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers.explorer.page import collect, page_title, path_map, static_page

ROOT: Final = Path(__file__).parent.parent
PICTURE: Final = ROOT / "docs/images/explorer.png"
LONG: Final = {"n_params": 60_000, "n_steps": 450_000, "steps_per_epoch": 1000}


def measure(stores: list[Path], page: Path) -> dict[str, Any]:
    """Write the page of runs whose results are stored, open it, and return what it takes."""
    runs = [trajstore.open_run(store) for store in stores]
    for run in runs:
        analyzers.store_geometry(run)
    started = time.perf_counter()
    contents = collect(runs, pca=path_map(runs))
    text = static_page(contents, title=page_title(contents.shown))
    page.write_text(text, "utf-8")
    written = time.perf_counter() - started
    command = statistics.median(_seconds_of_command(stores, page) for _ in range(3))
    opened, complaints = [], 0
    for _ in range(3):
        with _browser() as browser:
            opened.append(browser.open(page.as_uri()))
            complaints += len(browser.complaints) + len(browser.requests)
    return {
        "runs": len(runs),
        "steps": max(run.n_steps for run in runs),
        "layers": max(len(run.layout.names) for run in runs),
        "bytes": page.stat().st_size,
        "seconds to write": written,
        "seconds of the command": command,
        "seconds to open": statistics.median(opened),
        "complaints and requests": complaints,
    }


def _seconds_of_command(stores: list[Path], page: Path) -> float:
    """Return the time of ``traj-analyze explore`` in a new process, with its imports."""
    program = "from analyzers.cli import main; main()"
    command = [sys.executable, "-c", program, "explore", *stores, "--out", page]
    started = time.perf_counter()
    subprocess.run([*map(str, command), "--quiet"], check=True)
    return time.perf_counter() - started


def _browser() -> Any:
    """Return a browser that the tests drive as well."""
    return import_module("tests.analyzers.explorer.browser").browser_page()


def take_picture(page: Path) -> None:
    """Save a picture of the upper part of a page."""
    with _browser() as browser:
        browser.open(page.as_uri(), width=1200, height=1450)
        browser.run("new Promise(done => setTimeout(done, 500))")
        PICTURE.parent.mkdir(exist_ok=True)
        browser.picture(PICTURE, is_whole=False)


def main(
    stores: Positional[tuple[Path, ...]],
    *,
    long: Path | None = None,
    skip_long: bool = False,
) -> None:
    """Measure the pages of one run, of all runs, and of a long run, which may exist already."""
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        if long is None and not skip_long:
            long = Path(folder, "long.zarr")
            write_run(long, bits=1024, with_scalars=True, **LONG)
        saved = RESULTS / "explorer.json"
        rows = json.loads(saved.read_text()) if saved.exists() else {}
        pages = {"one run": stores[:1], f"{len(stores)} runs": stores}
        if long is not None:
            pages["a long run"] = (long,)
        for name, chosen in pages.items():
            rows[name] = measure([*chosen], page)
            if name == "one run":
                take_picture(page)
        save_results(rows, "explorer")
        shutil.rmtree(Path(folder, "long.zarr"), ignore_errors=True)


if __name__ == "__main__":
    tyro.cli(main)
