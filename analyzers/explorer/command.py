"""Sub-command that writes a page of runs."""

import gc
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from tyro.conf import Positional, arg

import analyzers
import trajstore
from analyzers import explorer, geometry
from analyzers._reporting import figures_directory, say
from trajstore import store as storage

if TYPE_CHECKING:
    from trajstore.reading.run import Run

ALLOCATIONS: Final = 100_000
"""Number of new objects after which Python looks for garbage; 700 by default."""


def explore(
    stores: Positional[tuple[str, ...]],
    *,
    reference: str | None = None,
    layers: bool = False,
    out: Path | None = None,
    show: Annotated[bool, arg(name="open")] = False,
) -> None:
    """Write one HTML page that shows runs: path, geometry, layers, comparison, conditions.

    The page needs no network and no server. Geometry that is not stored yet is computed and
    stored next to the runs.

    Parameters
    ----------
    stores : tuple of str
        Paths or URLs of trajectory stores, such as those of several seeds. The first run is
        the one that others are compared with.
    reference : str, optional
        The target x*, as traj-analyze geometry takes it. Default: the last iterate; without a
        finite one, the last epoch or window that starts with a finite anchor. The page lets you choose among
        all targets whose results are stored.
    layers : bool, default: False
        Also compute gamma of every layer, if it is not stored yet.
    out : Path, optional
        The file to write. Default: explorer.html in RUN.figures, next to the first run.
    show : bool, default: False
        Open the page in a browser.
    """
    with _rare_collections():
        runs = [trajstore.open_run(store) for store in stores]
        for run in runs:
            _compute(run, reference, layers=layers)
        contents = explorer.collect(runs, pca=explorer.path_map(runs))
        page = explorer.static_page(contents, title=explorer.page_title(contents.shown))
    path = out or storage.inside(figures_directory(runs[0]), "explorer.html")
    path.write_text(page, "utf-8")
    say(f"Page: {path} ({len(page.encode()) / 1e6:.1f} MB)")
    if show:
        webbrowser.open(path.resolve().as_uri())


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for garbage rarely in this block."""
    # Imports and models of a page make many small objects that all live on; looking through them
    # again and again takes a fifth of the time.
    thresholds = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _compute(run: "Run", reference: str | None, *, layers: bool) -> None:
    """Compute the geometry of a run relative to a target, unless it is stored."""
    if run.n_steps == 0:
        raise ValueError(
            f"{run.location} holds no steps yet; there is nothing to show. Wait until the "
            "recorder has written some, or follow the run with traj-store watch."
        )
    target = geometry.read_reference(reference or geometry.default_reference(run), run)
    analyzers.store_geometry(run, reference=target)
    if layers:
        analyzers.store_geometry(run, reference=target, layers=True)
