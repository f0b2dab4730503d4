"""Examples in README and docs run, and figures there are the measured figures."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from xarray.backends import plugins

import analyzers
from trajstore import open_run
from trajstore.cli import main as cli
from trajstore.reading.xarray_backend import TrajstoreBackend

ROOT = Path(__file__).parent.parent


def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs/snippets/record.py"))
    results = runpy.run_path(str(ROOT / "docs/snippets/analyse.py"))
    assert (tmp_path / "geometry.png").stat().st_size > 10_000
    assert results["by_layer"].sizes == {"step": 80, "layer": 4}


def test_the_snippet_that_resumes_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        runpy.run_path(str(ROOT / "docs/snippets/resume.py"))
    run = open_run("resumed.zarr")
    assert (run.n_steps, run.status) == (60, "complete")
    assert [resumption["step"] for resumption in run.stored.document.resumes] == [45]


@pytest.mark.parametrize("dies_after", [7, 40], ids=["epoch 0", "epoch 2"])
def test_the_snippet_that_resumes_repeats_the_run_after_it_was_killed(
    dies_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    script = ROOT / "docs/snippets/resume.py"
    killed = (
        "import os, runpy\nfrom torch.nn import functional\n"
        "plain, steps = functional.cross_entropy, iter(range(99))\n"
        "def dying(*args):\n"
        f"    os._exit(9) if next(steps) == {dies_after} else None\n"
        "    return plain(*args)\n"
        "functional.cross_entropy = dying\n"
        f"runpy.run_path({str(script)!r})\n"
    )
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        if folder == "killed":
            done = subprocess.run([sys.executable, "-c", killed], check=False)
            assert done.returncode == 9
        runpy.run_path(str(script))
    whole, resumed = (
        open_run(tmp_path / folder / "resumed.zarr") for folder in ("whole", "killed")
    )
    assert len(resumed.stored.document.resumes) == (dies_after > 15)
    for name in resumed.steps.variables.keys() - {"wall_time"}:
        np.testing.assert_array_equal(whole.steps[name], resumed.steps[name], name)


def test_the_snippet_on_the_alpha_beta_condition_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "docs/snippets/alpha_beta.py"))
    assert names["pairs"].n_steps == 160
    assert names["pairs"].best_alpha >= names["pairs"].best_beta + 0.1
    assert names["grid"]["margin"].shape == (3, 3)


def test_every_guarantee_names_a_test_that_exists():
    page = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", page)
    assert len(named) >= 25
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (
            name
        )
    promises = re.split(r"\n(?=\*\*)", page.partition("## What it takes")[0])[1:]
    assert all("`tests/" in promise for promise in promises)


def test_snippets_of_the_page_on_comparing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_run: Path
):
    pytest.importorskip("torch")
    optimizers = [f"{name}{i}" for name in ("adamw", "sgd", "noise") for i in range(3)]
    walks = [f"{name}-walk" for name in optimizers]
    for name in ("a", "b", "c", *optimizers, *walks):
        shutil.copytree(example_run, tmp_path / f"{name}.zarr")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/comparing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/comparing.md", "exec"), names)
    plt.close("all")
    assert (names["difference"].gamma_difference == 0).all()
    assert names["sgd"] == names["adamw"] == [0.0] * 3
    assert names["apart"].sizes == {"point": 6, "other_point": 6}
    assert names["path"].coordinate_stderr.max() > 0
    assert names["run"].status == "complete"


def test_snippets_of_the_page_on_querying_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_run: Path
):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    # The entry point of a source tree is known only after it is installed again.
    engines = {"trajstore": TrajstoreBackend(), **plugins.list_engines()}
    monkeypatch.setattr(plugins, "list_engines", lambda: engines)
    text = (ROOT / "docs/querying.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/querying.md", "exec"), names)
    plt.close("all")
    run = names["run"]
    np.testing.assert_array_equal(names["third"]["step"], range(36, 48))
    np.testing.assert_array_equal(
        names["means"], run.steps["loss"].values.reshape(5, 12).mean(1)
    )
    assert dict(names["grid"]["loss"].sizes) == {"epoch": 5, "iteration": 12}
    assert (tmp_path / "loss.png").stat().st_size > 5_000


MEASURED = {
    "README.md": "| measured by |",
    "docs/accuracy.md": "| **recorded**, inner epochs |",
    "docs/alpha-beta.md": "| 64, whole gradients |",
    "docs/compatibility.md": "| lowest versions | torch ",
    "docs/costs.md": "| 7,000 M |",
    "docs/deep-linear.md": "| layers |",
    "docs/null-models.md": "| random-walk |",
    "docs/planning.md": "| digits ResNet |",
    "docs/sharpness.md": "| gradient descent, 0.4 |",
    "docs/tangent-kernel.md": "| 512 | 10.0 |",
    "docs/zigzag.md": "| mini-batches, lr 0.3 |",
}
"""Pages with measured figures, and part of a line that each page must contain."""


@pytest.mark.parametrize("page", MEASURED)
def test_figures_of_pages_are_the_measured_ones(
    page: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    filled = runpy.run_path(str(ROOT / "benchmarks/readme.py"))["filled"]
    text = (ROOT / page).read_text()
    assert MEASURED[page] in text
    assert filled(page) == text


def test_the_snippet_of_the_page_on_the_tangent_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/tangent-kernel.md").read_text()
    [block] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/tangent-kernel.md", "exec"), {})
    change = open_run("own.zarr").steps["kernel_change"].dropna("step")
    assert change["step"].values.tolist() == [0, 10, 20, 30]
    assert change[0] == 0 < change[3]


def test_snippets_of_the_page_on_sharpness_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/sharpness.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    if find_spec("curvlinops") is None:
        del blocks[2]
    for block in blocks:
        exec(compile(block, "docs/sharpness.md", "exec"), names)
    run = open_run("own.zarr")
    assert run.measurements == ("same_batch",)
    assert np.isfinite(run.steps["sharpness"].values).sum() == 4
    assert names["edge"].sizes == {"step": 4}
    assert names["same"].sizes == {"step": 40}
    assert names["near"].sizes == names["along"].sizes == {"step": 40}


def plan_commands() -> list[str]:
    lines = (ROOT / "docs/planning.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    traj-store plan ")]


@pytest.mark.parametrize("command", plan_commands())
def test_commands_of_the_page_on_planning_run(
    command: str,
    example_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if "--model" in command:
        pytest.importorskip("torch")
    monkeypatch.chdir(ROOT / "docs/snippets")
    if "--like" in command:
        trial = shutil.copytree(example_run, tmp_path / "trial.zarr")
        analyzers.store_geometry(open_run(trial))
        monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    cli.main()
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "\nsketch_bits=" in printed.out


def test_the_page_on_planning_has_all_its_commands():
    assert len(plan_commands()) == 8


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path):
    text = page.read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    missing = [
        target
        for target in targets
        if not target.startswith(("http", "#", "auto_gallery/"))
        and not (page.parent / target.partition("#")[0]).exists()
    ]
    assert missing == []
