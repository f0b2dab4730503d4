"""Put the views of runs together in one HTML page."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
import xarray as xr
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.models import CustomJS, Range1d
from bokeh.resources import Resources
from jinja2 import DictLoader, Environment, StrictUndefined, Template
from threadpoolctl import threadpool_limits

from analyzers._execution.results import threads_without_client
from analyzers.comparison.path_pca import path_pca
from analyzers.explorer.contents.conditions import Conditions, conditions_of
from analyzers.explorer.contents.curves import (
    STEP_COLUMNS,
    Columns,
    GeometryCurves,
    geometry_curves,
    null_curve,
    scalar_curves,
)
from analyzers.explorer.contents.end_distances import end_distances
from analyzers.explorer.contents.layer_grid import LayerGrid, layer_grid
from analyzers.explorer.contents.shown_run import ShownRun, show_runs
from analyzers.explorer.contents.stored_geometries import stored_geometries
from analyzers.explorer.views.comparison import (
    comparison_view,
    distance_table,
    facts_table,
)
from analyzers.explorer.views.condition import condition_view
from analyzers.explorer.views.geometry import geometry_view
from analyzers.explorer.views.layer import layer_view
from analyzers.explorer.views.map import map_view
from analyzers.explorer.views.style import SIGNED, UNSIGNED
from analyzers.geometry.null import other_updates
from trajstore.format.shown import shown as printable
from trajstore.reading.run import Run

STEP_BYTES: Final = 1_500_000
"""Bytes of step curves that a page holds, over all runs and targets."""

MAX_TARGETS: Final = 8
"""Largest number of targets of a run to choose from."""

MAP_STEPS: Final = 120
"""Number of iterates between the stored ones on the map, for the longest run."""

ASSETS: Final = ("page.html", "page.css", "axes.js", "page.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything about runs that a page shows."""

    shown: Sequence[ShownRun]
    curves: Mapping[str, Sequence[GeometryCurves]]
    scalars: Mapping[str, tuple[Columns, Columns]]
    nulls: Mapping[str, Columns | None]
    grids: Mapping[str, LayerGrid]
    conditions: Mapping[str, Conditions]
    pca: xr.Dataset | None
    distances: Mapping[str, Any] | None


@threads_without_client()
def collect(runs: Sequence[Run], *, pca: xr.Dataset | None = None) -> Contents:
    """Read everything that a page of runs shows; runs must have steps."""
    shown = show_runs(runs)
    stored = {run.key: stored_geometries(run.run)[:MAX_TARGETS] for run in shown}
    n_targets = sum(len(found) for found in stored.values()) + len(shown)
    most = max(500, STEP_BYTES // (STEP_COLUMNS * 4 * max(1, n_targets)))
    curves: dict[str, list[GeometryCurves]] = {}
    scalars, nulls = {}, {}
    for run in shown:
        found = [geometry_curves(run, one, most=most) for one in stored[run.key]]
        curves[run.key] = [one for one in found if one is not None]
        by_epoch, by_step, _ = scalar_curves(run, most=most)
        scalars[run.key] = (by_epoch, by_step)
        nulls[run.key] = null_curve(run)
    return Contents(
        shown=shown,
        curves=curves,
        scalars=scalars,
        nulls=nulls,
        grids={
            run.key: layer_grid(run, {g.reference: g.group for g in stored[run.key]})
            for run in shown
        },
        conditions={run.key: conditions_of(run) for run in shown},
        pca=pca,
        distances=end_distances(shown),
    )


@threads_without_client()
def path_map(runs: Sequence[Run]) -> xr.Dataset | None:
    """Return the principal components of runs of one architecture, None for other runs."""
    try:
        longest = max(run.n_steps for run in runs)
        found = path_pca(runs, every=max(1, longest // MAP_STEPS))
        with threadpool_limits(1, user_api="blas"):
            return found.compute()
    except ValueError as error:
        warnings.warn(f"The page has no path map: {error}", stacklevel=2)
        return None


def fill_document(
    document: Document,
    contents: Contents,
    *,
    title: str,
    live_figures: Sequence[Any] = (),
    live_models: Sequence[Any] = (),
    live_facts: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Add the models and the template of a page to a Bokeh document."""
    # The first figure carries the models that no figure draws.
    shown = contents.shown
    n_epochs = max(run.n_epochs for run in shown)
    pad = 0.012 * n_epochs
    x_range = Range1d(
        -pad, n_epochs + pad, bounds=(-3 * pad, n_epochs + 3 * pad), name="epochs"
    )
    x_range.min_interval = n_epochs * 1e-5
    roots, models, facts = geometry_view(
        shown, contents.curves, contents.scalars, x_range
    )
    active = {
        run.key: next(m for m in models if m.name == f"{run.key}-active")
        for run in shown
    }
    if contents.pca is not None:
        gammas = {
            run.key: contents.curves[run.key][0].by_epoch
            if contents.curves[run.key]
            else None
            for run in shown
        }
        by_epoch = {key: pair[0] for key, pair in contents.scalars.items()}
        root, extra = map_view(shown, contents.pca, by_epoch, gammas)
        roots.append(root)
        models += extra
    layer_roots, extra, layer_facts = layer_view(shown, contents.grids, x_range)
    roots += layer_roots
    models += extra
    compared, extra = comparison_view(shown, contents.nulls, x_range, active)
    roots += compared
    models += extra
    conditions = condition_view(shown, contents.conditions, x_range)
    roots += [figure for figure, _, _ in conditions]
    config = {
        "runs": [_run_facts(run) for run in shown],
        "map": contents.pca is not None,
        "layers": layer_facts,
        "signed": list(SIGNED),
        "unsigned": list(UNSIGNED),
        "live": bool(live_figures),
        **facts,
    }
    roots = [*live_figures, *roots]
    models = [*live_models, *models]
    # Sources that no figure draws travel as tags of a figure: a root must have a place.
    roots[0].tags = models
    with document.models.freeze():
        for root in roots:
            document.add_root(root)
    document.title = title
    document.js_on_event(
        "document_ready",
        CustomJS(code="window.startExplorer(cb_obj.document ?? Bokeh.documents[0])"),
    )
    document.template = page_template()
    document.template_variables.update(
        config=config,
        page_title=title,
        css=asset("page.css"),
        js=asset("axes.js") + asset("page.js"),
        runs=config["runs"],
        panels=facts["panels"],
        has_map=contents.pca is not None,
        has_difference=len(shown) > 1,
        other_optimizers=" or ".join(
            sorted(filter(None, {other_updates(r.run) for r in shown}))
        ),
        table=facts_table(
            shown,
            contents.curves,
            {key: pair[0] for key, pair in contents.scalars.items()},
        ),
        conditions=[
            {"name": figure.name, "title": name, "note": note}
            for figure, name, note in conditions
        ],
        distances=distance_table(contents.distances),
        live=[{"name": n, "title": t, "note": note} for n, t, note in live_facts],
    )


def static_page(contents: Contents, *, title: str) -> str:
    """Return a page that needs neither a network nor a server."""
    document = Document()
    fill_document(document, contents, title=title)
    page: str = file_html(
        document,
        Resources(mode="inline"),
        title=title,
        template=document.template,
        template_variables=document.template_variables,
    )
    return page


def page_title(runs: Sequence[ShownRun]) -> str:
    """Return the title of the page of runs."""
    names = ", ".join(run.name for run in runs[:3])
    return names if len(runs) <= 3 else f"{names} and {len(runs) - 3} more"


def _run_facts(run: ShownRun) -> dict[str, Any]:
    return {
        "key": run.key,
        "name": run.name,
        "color": run.color,
        "status": run.run.status,
        "steps": run.run.n_steps,
        "epochs": run.n_epochs,
        "parameters": run.run.layout.n_params,
        "location": printable(run.run.location),
    }


@cache
def asset(name: str) -> str:
    """Read a file of the page."""
    return files("analyzers.explorer").joinpath("assets", name).read_text("utf-8")


@cache
def page_template() -> Template:
    """Return the template of the page, which escapes everything that is put into it."""
    environment = Environment(
        loader=DictLoader({name: asset(name) for name in ASSETS}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda n: f"{n:,}".replace(",", "\u2009")
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "default": _plain}
    return environment.get_template("page.html")


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")
