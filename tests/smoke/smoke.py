"""Check an installation without pytest: what is installed works, the rest is named.

Run it with the Python of the environment to check. It uses a temporary folder, and the stores in
``tests/golden/stores`` where torch is missing.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

STORES = Path(__file__).parent.parent / "golden" / "stores"
BIN = Path(sys.executable).parent

COMMANDS = {
    "traj-store": ["info", "verify", "recover", "plan"],
    "traj-analyze": ["geometry", "zigzag", "smoothness", "compare", "paper"],
    "traj-train": ["run", "sweep", "replay", "list"],
}

TRAINING = """
import torch, trajstore
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with trajstore.Recorder("run.zarr", model, optimizer, steps_per_epoch=8) as recorder:
    for step in range(24):
        inputs = torch.randn(32, 8)
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()
        recorder.log(loss=loss)
        optimizer.step()
"""

READING = """
import numpy as np, trajstore
run = trajstore.open_run("run.zarr")
assert run.status == "complete", run.status
assert np.isfinite(run.steps["grad_norm"].values).all()
assert run.steps["loss"].groupby("epoch").mean().size == run.n_epochs
assert set(trajstore.parameters_at(run)) == set(run.layout.names)
"""

ANALYSIS = """
import numpy as np, trajstore
from trajstore import analyzers
run = trajstore.open_run("run.zarr")
geometry = analyzers.path_geometry(run, layers=True)
means = analyzers.epoch_means(geometry).compute()
assert np.isfinite(means["gamma"].values[:-1]).all()
whole = analyzers.path_geometry(run).compute()
assert np.isfinite(whole["gamma"].values[:-1]).mean() > 0.9
analyzers.smoothness(run).compute()
analyzers.zigzag(run).compute()
"""


def has(*modules: str) -> bool:
    """Whether all of these modules are installed."""
    return all(find_spec(module) is not None for module in modules)


def execute(*command: object, status: int = 0) -> str:
    """Run a command, check its exit status and that it prints no traceback, return its text."""
    environment = os.environ | {"COLUMNS": "80", "MPLBACKEND": "agg"}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    text = done.stdout + done.stderr
    shown = " ".join(map(str, command))[:200]
    assert done.returncode == status, f"{shown}: {done.returncode}\n{text}"
    assert "Traceback" not in text, f"{shown}\n{text}"
    print(f"ok: {shown.splitlines()[0]}")
    return text


def expect_missing(extra: str, *command: object) -> None:
    """Check that a command names the extra that installs what it needs."""
    text = execute(*command, status=1)
    assert f'pip install "trajstore[{extra}]"' in text, text


def check_commands() -> None:
    """Check that every help and version is printed, whatever is installed."""
    for script, commands in COMMANDS.items():
        assert "trajstore" in execute(BIN / script, "--version")
        execute(BIN / script, "--help")
        for command in commands:
            execute(BIN / script, command, "--help")
    execute(sys.executable, "-m", "trajstore", "--version")
    assert "nearest" in execute(BIN / "traj-store", "inof", status=2)


def main() -> None:
    """Run all checks."""
    check_commands()
    if has("torch", "numba"):
        execute(sys.executable, "-c", TRAINING)
    else:
        with tarfile.open(STORES / "sketched.tar.xz") as archive:
            archive.extractall(".", filter="data")
        [store] = [path for path in Path().rglob("zarr.json") if path.parent.suffix]
        store.parent.rename("run.zarr")
    execute(sys.executable, "-c", READING)
    execute(BIN / "traj-store", "info", "run.zarr")
    execute(BIN / "traj-store", "verify", "run.zarr")
    execute(BIN / "traj-store", "plan", "--params", "11e6", "--steps", "1000")
    if has("dask", "matplotlib", "scipy"):
        execute(sys.executable, "-c", ANALYSIS)
        execute(BIN / "traj-analyze", "geometry", "run.zarr", "--layers")
        execute(BIN / "traj-analyze", "zigzag", "run.zarr")
        execute(BIN / "traj-analyze", "compare", "run.zarr", "run.zarr")
    else:
        expect_missing("analyze", BIN / "traj-analyze", "geometry", "run.zarr")
    training = (BIN / "traj-train", "run", "digits-mlp", "--out", "new.zarr")
    if has("torch", "numba", "sklearn"):
        execute(*training, "--max-steps", 4)
    else:
        expect_missing("train", *training)
    execute(BIN / "traj-train", "list")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
