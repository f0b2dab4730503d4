"""Test ``traj-analyze explore`` and ``traj-store watch`` on the command line."""

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("bokeh")

import analyzers
from analyzers import cli
from analyzers.explorer.page import collect, static_page
from trajstore import open_run
from trajstore.cli import main as store_cli

Run = Callable[..., str]


@pytest.fixture
def store(example_run: Path, tmp_path: Path) -> Path:
    path: Path = shutil.copytree(example_run, tmp_path / "run.zarr")
    return path


def test_the_page_is_written_next_to_the_run(store: Path, traj_analyze: Run):
    printed = traj_analyze("explore", store)
    page = store.with_suffix(".figures") / "explorer.html"
    assert str(page) in printed.replace("\n", "")
    text = page.read_text("utf-8")
    assert len(text) < 2_000_000
    # Nothing is loaded from elsewhere.
    assert not re.search(
        r"""<(script|link|img)[^>]*(src|href)=["']?(?!data:)\w""", text
    )
    assert (store.with_suffix(".analysis.zarr") / "final").is_dir()


def test_the_command_imports_no_large_library_in_vain(store: Path):
    program = (
        "import sys; from analyzers.cli import main; main(); "
        "sys.exit(str({'matplotlib', 'distributed', 'torch'} & {*sys.modules}))"
    )
    analyzers.store_geometry(open_run(store))
    command = [sys.executable, "-c", program, "explore", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "set()"


def test_the_page_of_a_run_without_results_is_complete(store: Path):
    contents = collect([open_run(store)])
    text = static_page(contents, title="nothing computed")
    assert "<h2>Geometry</h2>" in text
    assert "<h2>Path</h2>" not in text
    assert not store.with_suffix(".analysis.zarr").exists()


def test_runs_of_different_networks_have_no_map(
    store: Path, tmp_path: Path, traj_analyze: Run
):
    import torch

    from trajstore import Recorder

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = tmp_path / "other.zarr"
    with Recorder(other, model, optimizer, steps_per_epoch=3) as recorder:
        for _ in range(9):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    out = tmp_path / "both.html"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        traj_analyze("explore", store, other, "--out", out)
    text = out.read_text("utf-8")
    assert "<h2>Path</h2>" not in text
    assert "<h2>Comparison</h2>" in text


def test_markup_in_names_is_escaped(store: Path):
    markup = "<img src=x onerror=alert(1)>"
    text = static_page(collect([open_run(store)]), title=markup)
    assert markup not in text
    assert "&lt;img src=x" in text


def test_an_unknown_target_is_reported_in_one_sentence(store: Path, refused: Run):
    printed = refused("explore", store, "--reference", "77")
    assert "No anchor at the start of epoch 77" in printed


def test_watch_is_a_command_of_both_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for script, main in (("traj-store", store_cli.main), ("traj-analyze", cli.main)):
        monkeypatch.setattr(sys, "argv", [script, "watch", "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        assert "Follow a run that is being recorded" in capsys.readouterr().out


def test_watch_refuses_an_interval_that_is_not_positive(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["traj-store", "watch", str(store), "--interval", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"^1$"):
        store_cli.main()
    assert "--interval must be a positive number, got 0" in capsys.readouterr().err


def test_without_bokeh_the_extra_is_named(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in [n for n in sys.modules if n.startswith("analyzers.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    for name in [n for n in sys.modules if n.startswith("bokeh.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["traj-store", "watch", str(store)])
    with pytest.raises(SystemExit, match=r"^1$"):
        store_cli.main()
    assert 'pip install "trajstore[analyze]"' in capsys.readouterr().err
