"""Every snippet of the pages is executed, and every command that they show exists."""

import re
import shlex
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib.pyplot as plt
import numpy as np
import pytest

import trajstore

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = {
    "traj-analyze": "analyzers.cli",
    "traj-store": "trajstore.cli.main",
    "traj-train": "train.cli",
}
EXECUTED = {
    "checking": "docs/_ext/executed_pages.py",
    "comparing": "tests/test_docs.py",
    "integrations": "tests/test_integrations_page.py",
    "meaning": "docs/_ext/executed_pages.py",
    "querying": "tests/test_docs.py",
    "sharpness": "tests/test_docs.py",
    "tangent-kernel": "tests/test_docs.py",
    "tutorial": "docs/_ext/executed_pages.py",
}
"""Files that name the pages whose snippets they execute."""

HERE = {
    *("clusters", "deep-linear", "figures", "null-models", "resuming", "trackers"),
    "zigzag",
}
"""Pages whose snippets are executed by this module."""


def snippets(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


def test_no_snippet_hides_in_a_list():
    """Snippets that are indented, such as those of an item of a list, are not executed."""
    hidden = [
        page.stem
        for page in PAGES
        if re.search(r"^ +```python", page.read_text(), re.MULTILINE)
    ]
    assert hidden == []


def test_a_test_executes_the_snippets_of_every_page():
    pages = {page.stem for page in PAGES if snippets(page)}
    assert pages == EXECUTED.keys() | HERE
    for name, file in EXECUTED.items():
        assert f"{name}.md" in (ROOT / file).read_text()


def test_python_is_marked_as_python():
    """Only marked blocks are executed."""
    for page in PAGES:
        text = re.sub(
            r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        indented = re.findall(
            r"^    (import \w+|from \w+ import .*)$", text, re.MULTILINE
        )
        # Recipes for schedulers that no test can start.
        untested = ("dask_jobqueue", "dask_kubernetes", "distributed")
        assert [
            line for line in indented if line.split()[1].split(".")[0] not in untested
        ] == []


def run_snippets(page: str, part: slice, **names: Any) -> dict[str, Any]:
    for code in snippets(ROOT / f"docs/{page}.md")[part]:
        exec(compile(code, page, "exec"), names)
    return names


ALL, FIRST = slice(None), slice(1)


def test_the_snippet_on_zigzags_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_run: Path
):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    names = run_snippets("zigzag", ALL)
    assert names["by_tensor"].sizes == {"step": 60, "layer": 4}
    assert np.isfinite(names["lags"].cosine).all()


def test_the_snippet_on_clusters_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_run: Path
):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    names = run_snippets("clusters", ALL)
    assert np.isfinite(names["geometry"].gamma.values[:-1]).all()
    assert (tmp_path / "run.analysis.zarr").exists()


def test_the_snippet_on_deep_linear_networks_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch")
    from train.protocols.record import record
    from train.workloads.catalogue import settings_of

    monkeypatch.chdir(tmp_path)
    settings = replace(settings_of("deep-linear-2"), max_steps=60, lr=0.1)
    record(settings, Path("run.zarr"), exact=True)
    names = run_snippets("deep-linear", ALL)
    assert names["modes"].sizes["step"] == 60
    assert float(names["largest"].max()) < 0.1


def test_the_snippets_on_figures_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example_run: Path
):
    for name in ("run", "walk", "sgd", "adam"):
        shutil.copytree(example_run, tmp_path / f"{name}.zarr")
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(  # as in the example run
        torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3)
    )
    data = torch.randn(64, 20), torch.randint(3, (64,))
    names = {"model": model, "dataset": torch.utils.data.TensorDataset(*data)}
    run_snippets("figures", ALL, run=trajstore.open_run("run.zarr"), **names)
    plt.close("all")
    assert (tmp_path / "rsi.pdf").stat().st_size > 5_000


def test_the_snippet_on_null_models_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")

    def make_model() -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3)
        )

    monkeypatch.chdir(tmp_path)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters())  # as on the page
    inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"steps_per_epoch": 12, "total_steps": 60}
    with trajstore.Recorder("run.zarr", model, optimizer, **options):
        for _ in range(60):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    names = run_snippets("null-models", ALL, make_model=make_model)
    assert names["excess"].sizes == {"step": 60}
    assert np.isfinite(names["excess"].excess[:-1]).all()


def test_the_first_snippet_on_trackers_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorders = []
    recorder = trajstore.Recorder
    monkeypatch.setattr(
        trajstore,
        "Recorder",
        lambda *args, **options: recorders.append(recorder(*args, **options)),
    )
    run_snippets(
        "trackers", FIRST, trajstore=trajstore, model=model, optimizer=optimizer
    )
    [made] = recorders
    made.close()
    assert (tmp_path / "run.zarr").exists()


def test_the_other_snippets_on_trackers_make_reporters():
    pytest.importorskip("torch")
    pytest.importorskip("lightning")
    wandb = Mock()
    names = run_snippets(
        "trackers",
        slice(1, None),
        Trainer=dict,
        WandbLogger=object,
        wandb=wandb,
        k=5,
        loss=0.5,
    )
    wandb.log.assert_called_once_with({"train/step": 5, "train/loss": 0.5})
    assert [each.every for each in names["report_to"]] == [10, 500]
    assert len(names["trainer"]["callbacks"]) == 1


def shown_commands() -> list[str]:
    """Return the command lines of scripts in the pages and in README."""
    lines = [
        line.strip().removeprefix("$ ")
        for page in [*PAGES, ROOT / "README.md"]
        for line in re.findall(r"^(?:    |\$ ).+", page.read_text(), re.MULTILINE)
    ]
    return sorted({line for line in lines if line.split()[0] in SCRIPTS})


def test_commands_and_options_of_the_pages_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    helps: dict[tuple[str, str], str] = {}
    commands = shown_commands()
    assert len(commands) >= 35
    for line in commands:
        script, command, *arguments = shlex.split(line, comments=True)
        if command.startswith("-"):
            continue
        module = import_module(SCRIPTS[script])
        assert command in module.COMMANDS, line
        if (script, command) not in helps:
            helps[script, command] = ""
            workload = ["digits-mlp"] if command in {"run", "two-run"} else []
            for words in ([command], [command, *workload]):
                monkeypatch.setattr("sys.argv", [script, *words, "--help"])
                with pytest.raises(SystemExit, match="0"):
                    module.main()
                helps[script, command] += capsys.readouterr().out
        for argument in arguments:
            if argument.startswith("--") and "tyro" not in argument:
                option = argument.partition("=")[0]
                assert re.search(rf"(?<!\S){option}\b", helps[script, command]), line


@pytest.mark.parametrize("exists", [False, True])
def test_the_snippet_on_resuming_trains_without_a_recording(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.chdir(tmp_path)
    if exists:
        Path("run.zarr").mkdir()
    given = {"trajstore": trajstore, "model": model, "optimizer": optimizer}
    names = run_snippets("resuming", ALL, **given)
    assert (names["recorder"] is None) == exists
