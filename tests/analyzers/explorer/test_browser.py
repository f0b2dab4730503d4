"""Test the page in a browser: what it draws, and what hovering, zooming and clicking do."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("bokeh")

import analyzers
import trajstore
from analyzers.explorer.page import collect, path_map, static_page
from tests.analyzers.explorer.browser import CHROMIUM, Page, browser_page
from trajstore.reading.run import Run

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.slow,
]

RUNS = ("a", "b")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> list[Run]:
    """Two runs with stored geometries; the first also with one relative to epoch 3."""
    folder = tmp_path_factory.mktemp("runs")
    for i, name in enumerate(RUNS):
        recorder = partial(trajstore.Recorder, folder / f"{name}.zarr")
        train_small(recorder, sketch_bits=1024, probes=256, seed=i)
    opened = [trajstore.open_run(folder / f"{name}.zarr") for name in RUNS]
    for run in opened:
        analyzers.store_geometry(run)
    analyzers.store_geometry(opened[0], reference=3)
    analyzers.store_geometry(opened[0], layers=True)
    return opened


@pytest.fixture(scope="module")
def page_file(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = static_page(collect(runs, pca=path_map(runs)), title="two runs")
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browser_page() as page:
        yield page


@pytest.fixture
def page(browser: Page, page_file: Path) -> Page:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page_file.as_uri())
    return browser


def data_of(page: Page, source: str, column: str) -> list[float]:
    values = page.run(
        f"JSON.stringify(Array.from(explorer.model({source!r}).data[{column!r}], "
        "v => Number.isFinite(v) ? v : null))"
    )
    return [float("nan") if v is None else float(v) for v in json.loads(values)]


def place_of(page: Page, figure: str, x: float, y: float) -> tuple[float, float]:
    """Return the place in the window of a point of a figure."""
    place = page.run(f"""(async () => {{
        const figure = explorer.model({figure!r});
        const view = Bokeh.index.find_one(figure);
        view.el.scrollIntoView({{block: "center", behavior: "instant"}});
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        const box = view.el.getBoundingClientRect();
        return [box.x + view.frame.x_scale.compute({x}),
                box.y + view.frame.y_scale.compute({y})];
    }})()""")
    return float(place[0]), float(place[1])


def range_of(page: Page) -> tuple[float, float]:
    start, end = page.run("[explorer.range.start, explorer.range.end]")
    return start, end


def tooltip(page: Page) -> str:
    """Return the text of the tooltips in view, which live in shadow trees."""
    text: str = page.run("""(() => {
        const texts = [];
        const visit = (node) => {
            for (const child of node.querySelectorAll("*")) {
                if (child.shadowRoot) {
                    if (child.matches(".bk-Tooltip")) texts.push(child.innerText + " " + [...child.shadowRoot.children].map(c => c.innerText ?? "").join(" "));
                    visit(child.shadowRoot);
                }
            }
        };
        visit(document);
        return texts.join(" ");
    })()""")
    return text


def test_the_page_opens_offline_without_complaints(page: Page):
    page.run("new Promise(done => setTimeout(done, 300))")
    assert page.complaints == []
    assert page.requests == []
    titles = page.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    wanted = ["Path", "Geometry", "Layers × epochs", "Comparison", "Conditions"]
    assert titles == wanted


@pytest.mark.parametrize("width", [1200, 800])
def test_nothing_is_wider_than_the_window(browser: Page, page_file: Path, width: int):
    browser.open(page_file.as_uri(), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    overflowing = browser.run(
        "[...document.querySelectorAll('h1, h2, h3, small, label, .head p')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflow "
        "=== 'visible' && getComputedStyle(e).display !== 'inline')"
        ".map(e => e.textContent)"
    )
    assert overflowing == []


def test_hovering_shows_the_mean_and_its_error(page: Page):
    x, gamma = data_of(page, "r0-active", "x"), data_of(page, "r0-active", "gamma")
    page.hover(*place_of(page, "gamma", x[2], gamma[2]))
    text = tooltip(page)
    assert f"{gamma[2]:.4g}" in text
    assert "±" in text
    assert "a" in text.split()


def test_hovering_over_the_map_shows_step_loss_and_rate(page: Page):
    i = page.run("explorer.model('r0-map').data.kind.lastIndexOf('anchor')")
    first = {c: data_of(page, "r0-map", c)[i] for c in ("pc1", "pc2", "loss")}
    page.hover(*place_of(page, "path-map", first["pc1"], first["pc2"]))
    text = tooltip(page)
    assert f"{first['loss']:.4g}" in text
    assert "0.05" in text


def test_zooming_shows_single_steps_in_all_panels(page: Page, runs: list[Run]):
    y = page.run("explorer.model('gamma-y').end / 2")
    page.drag(place_of(page, "gamma", 1.1, y), place_of(page, "gamma", 2.1, y))
    start, end = range_of(page)
    assert abs(start - 1.1) < 0.05
    assert abs(end - 2.1) < 0.05
    page.settle()
    geometry = analyzers.path_geometry(runs[0]).compute()
    shown = np.array(data_of(page, "r0-rsi-view", "x"))
    steps = np.round(shown * 12).astype(int)
    assert len(steps) > 10
    for end_name in ("low", "high"):
        values = data_of(page, "r0-rsi-view", end_name)
        np.testing.assert_allclose(values, geometry.rsi.values[steps], rtol=1e-6)
    # Each step has its standard error, next to those of the means.
    n_means = len(data_of(page, "r0-active", "x"))
    ends = {e: data_of(page, "r0-gamma-errors", e)[n_means:] for e in ("low", "high")}
    gamma, stderr = geometry.gamma.values[steps], geometry.gamma_stderr.values[steps]
    np.testing.assert_allclose(ends["low"], gamma - stderr, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ends["high"], gamma + stderr, rtol=1e-5, atol=1e-7)
    # The axis of every panel shows what is in view.
    bottom, top = page.run("(r => [r.start, r.end])(explorer.model('rsi-y'))")
    in_view = geometry.rsi.values[steps[1:-1]]
    positive = in_view[in_view > 0]
    assert bottom <= np.quantile(positive, 0.05)
    assert top >= np.quantile(positive, 0.95)


def test_the_scale_of_a_panel_can_be_changed(page: Page):
    types = []
    for scale in ("log", "linear"):
        page.run(
            f"document.querySelector(`[data-panel=gamma] [data-scale={scale}]`).click()"
        )
        page.settle()
        types.append(page.run("explorer.model('gamma').y_scale.type"))
        ticks = page.run("explorer.model('gamma-ticks').ticks.length")
        assert 2 <= ticks <= 12
    assert types == ["LogScale", "LinearScale"]
    assert page.complaints == []


def test_a_selection_of_epochs_is_shared(page: Page):
    page.run(
        "explorer.model('gamma').toolbar.tools.find(t => t.type === 'BoxSelectTool')"
        ".active = true"
    )
    y = page.run("explorer.model('gamma-y').end / 2")
    page.drag(place_of(page, "gamma", 1.2, y), place_of(page, "gamma", 2.8, y))
    epochs = page.run("explorer.model('r0-active').selected.indices")
    assert epochs == [1, 2]
    assert page.run("explorer.model('r1-active').selected.indices") == [1, 2]
    on_map = page.run("explorer.model('r0-map').selected.indices")
    places = np.array(data_of(page, "r0-map", "epoch"))
    assert on_map == np.flatnonzero((places >= 1) & (places < 3)).tolist()
    note = page.run("document.getElementById('map-selection').textContent")
    assert note == "selected: epochs 1 to 2"


def test_another_target_changes_every_panel(page: Page, runs: list[Run]):
    assert page.run(
        "[...document.getElementById('target').options].map(o => o.value)"
    ) == [
        "final",
        "epoch 3",
    ]
    page.run(
        "(s => { s.value = 'epoch 3'; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('target'))"
    )
    page.settle()
    means = analyzers.epoch_means(analyzers.path_geometry(runs[0], reference=3))
    shown = data_of(page, "r0-active", "distance")
    np.testing.assert_allclose(shown, means.distance.values, rtol=1e-6)
    # The second run has no such geometry.
    assert np.isnan(data_of(page, "r1-active", "gamma")).all()


def test_a_click_on_a_row_shows_its_curve(page: Page, runs: list[Run]):
    page.click(*place_of(page, "layer-image", 2.5, 2.5))
    title = page.run("document.getElementById('layer-title').firstChild.textContent")
    assert title == runs[0].layout.names[2]
    means = analyzers.epoch_means(analyzers.path_geometry(runs[0], layers=True))
    layer = means.sel(layer=title)
    for column, name in (("value", "gamma"), ("stderr", "gamma_stderr")):
        values = data_of(page, "layer-curve-data", column)
        np.testing.assert_allclose(values, layer[name].values, rtol=1e-5)


def test_cells_within_two_standard_errors_are_faded(page: Page, runs: list[Run]):
    means = analyzers.epoch_means(analyzers.path_geometry(runs[0], layers=True))
    gamma = means.gamma.transpose("layer", "epoch").values
    stderr = means.gamma_stderr.transpose("layer", "epoch").values
    faded = np.array(data_of(page, "layer-cells", "alpha")) < 0.5
    np.testing.assert_array_equal(faded, (abs(gamma) < 2 * stderr).ravel())


def test_blue_is_positive_and_red_is_negative(page: Page):
    colors = page.run("Array.from(explorer.model('layer-cells').data.color)")
    values = data_of(page, "layer-cells", "value")
    top = float(np.nanmax(np.abs(values)))
    for color, value in zip(colors, values, strict=True):
        if abs(value) > 0.3 * top:
            red, blue = int(color[1:3], 16), int(color[5:7], 16)
            assert (blue > red) == (value > 0)


def test_a_run_can_be_hidden(page: Page):
    page.run("document.querySelector('input[data-run=r1]').click()")
    page.settle()
    visible = page.run(
        "explorer.model('rsi').renderers.filter(r => r.visible).map(r => r.name)"
    )
    assert visible
    assert all(name.startswith("r0-") for name in visible)


def test_differences_have_both_errors(page: Page):
    first, second = (
        {
            c: np.array(data_of(page, f"{r}-active", c))
            for c in ("gamma", "gamma_stderr")
        }
        for r in ("r0", "r1")
    )
    value = data_of(page, "r1-difference", "value")
    np.testing.assert_allclose(value, second["gamma"] - first["gamma"], atol=1e-7)
    stderr = data_of(page, "r1-difference", "stderr")
    wanted = np.hypot(first["gamma_stderr"], second["gamma_stderr"])
    np.testing.assert_allclose(stderr, wanted, rtol=1e-5)


def test_names_from_stores_are_inert(browser: Page, tmp_path: Path, runs: list[Run]):
    markup = "<img src=x onerror=document.title='hacked'>$$\\frac$$</script>"
    names = {markup, "\\(x\\)", "a\x1b[31m", "$$y$$"}
    torch = pytest.importorskip("torch")
    tensors = {name: torch.nn.Parameter(torch.ones(4)) for name in sorted(names)}
    optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
    path = tmp_path / "<b>run<b> $$x$$.zarr"
    attrs = {"training": {markup: markup, "optimizer": markup}}
    with trajstore.Recorder(
        path, tensors, optimizer, steps_per_epoch=4, sketch_bits=64, attrs=attrs
    ) as recorder:
        for step in range(12):
            optimizer.zero_grad()
            sum((step + 1) * (t**2).sum() for t in tensors.values()).backward()
            recorder.log(loss=1.0 / (step + 1))
            if step == 5:
                recorder.snapshot(markup)
            optimizer.step()
    run = trajstore.open_run(path)
    for reference in ("final", markup):
        analyzers.store_geometry(run, reference=reference)
    analyzers.store_geometry(run, layers=True)
    text = static_page(collect([run], pca=path_map([run])), title=run.location)
    (tmp_path / "page.html").write_text(text, "utf-8")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open((tmp_path / "page.html").as_uri())
    browser.click(*place_of(browser, "layer-image", 1.5, 1.5))
    browser.hover(*place_of(browser, "layer-image", 1.4, 1.5))
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert "\x1b" not in text
    assert browser.run("document.title") != "hacked"
    assert browser.run("document.images.length") == 0
    assert browser.complaints == []
    assert browser.requests == []
    options = browser.run("document.getElementById('target').textContent")
    assert markup in options
