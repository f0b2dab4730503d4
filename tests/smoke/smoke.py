"""Check an installation without pytest: what is installed works, the rest is named.

Run it with the Python of the environment to check, and with the names of the extras that are
installed. It uses a temporary folder, and the stores in ``tests/golden/stores`` where torch is
missing.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

STORES = Path(__file__).parent.parent / "golden" / "stores"
BIN = Path(sys.executable).parent

SCRIPTS = {
    "traj-store": "trajstore.cli.main",
    "traj-analyze": "analyzers.cli",
    "traj-train": "train.cli",
}
"""Modules of the console scripts, which name their commands."""

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

SINK = """
import sys
from trajstore.trackers import open_sink
sink = open_sink(sys.argv[1])
sink.settings({"lr": 0.1})
sink.scalars(0, {"loss/train": 1.0}, time=1.7e9)
sink.close()
"""

CHECKS = {
    "remote": """
import fsspec, obstore.store, zarr
from zarr.storage import ObjectStore
group = zarr.create_group(ObjectStore(obstore.store.MemoryStore()))
group.create_array("a", data=__import__("numpy").arange(3.0))
assert group["a"][2] == 2
""",
    "mlflow": """
import mlflow
from trajstore.trackers import open_sink
open_sink("mlflow:http://localhost:5000")  # connects when it is first used
""",
    "curvature": """
import torch
from trajstore.curvature import curvature_matrix, trace
model = torch.nn.Linear(30, 4)
batches = [(torch.randn(8, 30), torch.zeros(8, 4))]
assert trace(curvature_matrix(model, torch.nn.MSELoss(), batches)) > 0
""",
    "integrations": """
import torch, trajstore
from accelerate import Accelerator
from trajstore.integrations.accelerate import record
from trajstore.integrations.lightning import TrajectoryCallback
from trajstore.integrations.transformers import TrajectoryCallback as OfTransformers
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(3, 1)
prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
with record("accelerated.zarr", accelerator, *prepared) as recorder:
    accelerator.backward(prepared[0](torch.ones(1, 3)).square().mean())
    prepared[1].step()
assert trajstore.open_run("accelerated.zarr").n_steps == 1
import lightning.pytorch as lightning
class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 1)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3)))
lightning.Trainer(
    accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
    enable_progress_bar=False, callbacks=[TrajectoryCallback("lightning.zarr")],
).fit(Module(), loader)
assert trajstore.open_run("lightning.zarr").n_steps == 4
""",
    "data": "import datasets, PIL, tokenizers",
    "triton": "import triton",
}
"""Code that uses what an extra installs."""

SINKS = {
    "tensorboard": "tensorboard:logs",
    "wandb": "wandb:smoke",
    "trackio": "trackio:smoke",
}
"""Addresses of trackers that need no network."""


def has(*modules: str) -> bool:
    """Whether all of these modules are installed."""
    return all(find_spec(module) is not None for module in modules)


def execute(*command: object, status: int = 0) -> str:
    """Run a command, check its exit status and that it prints no traceback, return its text."""
    environment = os.environ | {"COLUMNS": "80", "MPLBACKEND": "agg"}
    environment |= {"WANDB_MODE": "offline", "TRACKIO_DIR": "trackio"}
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
    for script, module in SCRIPTS.items():
        assert "trajstore" in execute(BIN / script, "--version")
        execute(BIN / script, "--help")
        for command in import_module(module).COMMANDS:
            execute(BIN / script, command, "--help")
    execute(sys.executable, "-m", "trajstore", "--version")
    assert "nearest" in execute(BIN / "traj-store", "inof", status=2)


def main(extras: list[str]) -> None:
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
    if not has("obstore"):
        expect_missing("remote", BIN / "traj-store", "info", "s3://bucket/run.zarr")
    training = (BIN / "traj-train", "run", "digits-mlp", "--out", "new.zarr")
    if has("torch", "numba", "sklearn"):
        execute(*training, "--max-steps", 4)
    else:
        expect_missing("train", *training)
    execute(BIN / "traj-train", "list")
    for extra in extras:
        if extra in CHECKS:
            execute(sys.executable, "-c", CHECKS[extra])
        if extra in SINKS:
            execute(sys.executable, "-c", SINK, SINKS[extra])
    if "optimizers" in extras:
        soap = (*training[:-1], "soap.zarr", "--optimizer", "soap")
        execute(*soap, "--max-steps", 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(sys.argv[1:])
