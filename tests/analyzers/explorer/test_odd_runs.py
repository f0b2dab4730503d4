"""Test that runs with little in them have a page."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bokeh")

import trajstore
from analyzers.explorer.page import collect, path_map, static_page
from tests.analyzers.explorer.browser import CHROMIUM, browser_page
from trajstore.reading.run import Run


def record(
    path: Path, n_steps: int, *, has_loss: bool = True, lr: float = 0.1, **options: Any
) -> Run:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"steps_per_epoch": 4} | options
    with trajstore.Recorder(path, model, optimizer, **options) as recorder:
        for _ in range(n_steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            loss.backward()
            if has_loss:
                recorder.log(loss=loss)
            optimizer.step()
    return trajstore.open_run(path)


CASES: dict[str, dict[str, Any]] = {
    "one step": {"n_steps": 1},
    "two steps": {"n_steps": 2},
    "one epoch": {"n_steps": 4},
    "no loss": {"n_steps": 12, "has_loss": False},
    "no basis": {"n_steps": 12, "basis": 0},
    "exact": {"n_steps": 12, "exact": True},
    "no epochs": {"n_steps": 12, "steps_per_epoch": None, "reference_every": 5},
    "at rest": {"n_steps": 12, "lr": 0.0},
    "not a number": {"n_steps": 12, "lr": 1e30},
}


def page_of(case: dict[str, Any], folder: Path) -> str:
    """Record a run and return its page; the recorder may warn of what the run lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = record(folder / "run.zarr", **case)
        return static_page(collect([run], pca=path_map([run])), title="odd")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_page_is_written(case: dict[str, Any], tmp_path: Path):
    text = page_of(case, tmp_path)
    facts = re.search(r'id="explorer-config">(.*?)</script>', text, re.DOTALL)
    assert facts is not None
    # Numbers that are not finite would be no JSON.
    config = json.loads(facts[1], parse_constant=pytest.fail)
    assert config["runs"][0]["steps"] == case["n_steps"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_pages_open_without_complaints(tmp_path: Path):
    with browser_page() as browser:
        for name, case in CASES.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "page.html").write_text(page_of(case, folder), "utf-8")
            browser.open((folder / "page.html").as_uri())
            assert browser.complaints == [], name
