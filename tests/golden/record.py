"""Record the golden stores and the results of every analysis of them.

Run it from the root of the repository, with its packages installed:

    python tests/golden/record.py

The script refuses to overwrite results. Later versions must read the same numbers from the
same stores, so the stores never change. To add a case, delete the results only: the script
then computes all results from the archived stores. Check with `git diff` and the tests
that earlier cases have not changed.
"""

import os
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

STEPS_PER_EPOCH, N_EPOCHS = 8, 3
N_STEPS: Final = STEPS_PER_EPOCH * N_EPOCHS
N_EXAMPLES, BATCH_SIZE = 128, 16

OPTIONS: Final[dict[str, Any]] = {
    "steps_per_epoch": STEPS_PER_EPOCH,
    "sketch_bits": 1024,
    "probes": 64,
}

TRAINING: Final[dict[str, Any]] = {
    "workload": "golden-mlp",
    "data": "embedded",
    "data_dir": None,
    "epochs": N_EPOCHS,
    "batch_size": BATCH_SIZE,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "width": None,
    "seed": 0,
    "control": "none",
    "clip": None,
    "full_batch": False,
    "measure_every": 0,
    "full_gradients": True,
    "same_batch_every": 0,
    "sharpness_every": 0,
    "sharpness_examples": 5000,
    "n_eigenvalues": 1,
    "as_published": False,
    "record_samples": False,
    "max_steps": None,
    "device": "cpu",
    "num_workers": 0,
}
"""The settings that ``traj-train`` writes into `attrs`; stores below change some of them."""


def attrs(**changes: Any) -> dict[str, Any]:
    return {"training": TRAINING | changes, "data": "random inputs, embedded"}


class Problem:
    """A small net and its data; all random seeds are fixed."""

    def __init__(self, *, n_inputs: int = 6, n_hidden: int = 8) -> None:
        import torch
        from torch import nn

        torch.set_num_threads(1)
        torch.manual_seed(1)
        self.model = nn.Sequential(
            nn.Linear(n_inputs, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 3)
        )
        self.inputs = torch.randn(N_EXAMPLES, n_inputs)
        noise = 0.3 * torch.randn(N_EXAMPLES, 3)
        self.targets = self.inputs[:, :3].sin() + noise

    def examples(self, step: int) -> Any:
        import torch

        generator = torch.Generator().manual_seed(step)
        # The last batch of an epoch is smaller.
        n = BATCH_SIZE - 4 if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1 else None
        return torch.randperm(N_EXAMPLES, generator=generator)[: n or BATCH_SIZE]

    def backward(self, examples: Any = slice(None)) -> Any:
        self.model.zero_grad()
        outputs = self.model(self.inputs[examples])
        loss = (outputs - self.targets[examples]).square().mean()
        loss.backward()
        return loss.detach()


def record_sketched(path: Path) -> None:
    """Record with the default basis, momentum, weight decay and every optional array."""
    import torch

    from trajstore import Recorder

    # The first tensor has more elements than a block, 1024.
    problem = Problem(n_inputs=20, n_hidden=60)
    optimizer = torch.optim.SGD(
        problem.model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01
    )
    with Recorder(
        path,
        problem.model,
        optimizer,
        total_steps=N_STEPS,
        updates=True,
        samples=BATCH_SIZE,
        attrs=attrs(optimizer="momentum", weight_decay=0.01, record_samples=True),
        **OPTIONS,
    ) as recorder:
        for step in range(N_STEPS):
            if step % STEPS_PER_EPOCH == 0:
                recorder.measure("full_batch", loss=problem.backward())
            if step == 13:
                recorder.snapshot("middle")
            examples = problem.examples(step)
            recorder.log(loss=problem.backward(examples))
            if step != 3:
                recorder.log_samples(examples)
            if step % 5 == 0:
                recorder.log(accuracy=step / N_STEPS)
            optimizer.step()
            if step % 4 == 1:
                recorder.measure("same_batch", loss=problem.backward(examples))
        recorder.measure("full_batch", loss=problem.backward())


def record_basis_0(path: Path) -> None:
    """Record plain SGD without a basis; the rate falls, and a bias often has no gradient."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with Recorder(
        path,
        problem.model,
        optimizer,
        basis=0,
        reference_every=5,
        attrs=attrs(lr=0.1, schedule="cosine"),
        **OPTIONS,
    ) as recorder:
        for step in range(N_STEPS):
            if step == 17:
                recorder.snapshot("late")
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / N_STEPS)
            recorder.log(loss=problem.backward(problem.examples(step)))
            if step % 7 == 2:
                problem.model[0].bias.grad = None
            optimizer.step()


def record_adamw(path: Path) -> None:
    """Record AdamW with two groups, clipping, epochs begun by hand and one-step windows."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    weights = [p for p in problem.model.parameters() if p.ndim > 1]
    biases = [p for p in problem.model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": 0.1},
            {"params": biases, "weight_decay": 0.0, "lr": 0.02},
        ],
        lr=0.01,
    )
    with Recorder(
        path,
        problem.model,
        optimizer,
        basis=2,
        reference_every=1,
        sketch_bits=512,
        probes=128,
        seed=7,
        updates=True,
        flush_rows=16,
        attrs=attrs(optimizer="adam", lr=0.01, weight_decay=0.1, sharpness_every=3),
    ) as recorder:
        # The run has more windows than lie between two keyframes.
        for step in range(36):
            if step in {10, 24}:
                recorder.start_epoch()
            recorder.log(loss=problem.backward(problem.examples(step)))
            if step % 3 == 0:
                recorder.log(preconditioned_sharpness=150.0 * step)
            recorder.take_gradient()
            torch.nn.utils.clip_grad_norm_(problem.model.parameters(), 0.5)
            optimizer.step()


def record_full_batch(path: Path) -> None:
    """Record gradient descent on all data near the edge of stability; it has branches."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1.5)
    with Recorder(
        path,
        problem.model,
        optimizer,
        attrs=attrs(lr=1.5, full_batch=True, sharpness_every=2),
        **OPTIONS,
    ) as recorder:
        for step in range(N_STEPS):
            if step == STEPS_PER_EPOCH:
                recorder.snapshot("epoch-1")
            if step % 2 == 0:
                recorder.log(sharpness=0.9 + 0.03 * step)
            recorder.log(loss=problem.backward())
            optimizer.step()
            if step % 6 == 5:
                recorder.measure("same_batch", loss=problem.backward())


def record_branch(path: Path, parent: Path, lr_scale: float) -> None:
    """Record a branch that starts at epoch 1 of the full-batch run."""
    import torch

    from trajstore import Recorder, open_run, parameters_at

    run = open_run(parent)
    problem = Problem()
    problem.model.load_state_dict(
        {name: torch.from_numpy(x) for name, x in parameters_at(run, "epoch-1").items()}
    )
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1.5 * lr_scale)
    branch = {
        "parent": parent.name,
        "parent_created": run.stored.document.created,
        "epoch": 1,
        "step": STEPS_PER_EPOCH,
        "lr_scale": lr_scale,
        "start": "a checkpoint",
    }
    with Recorder(
        path,
        problem.model,
        optimizer,
        attrs=attrs(lr=1.5 * lr_scale, full_batch=True) | {"branch": branch},
        **OPTIONS,
    ) as recorder:
        for _ in range(12):
            recorder.log(loss=problem.backward())
            optimizer.step()


def record_exact(path: Path) -> None:
    """Record whole gradients and iterates; momentum without weight decay."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    with Recorder(
        path,
        problem.model,
        optimizer,
        exact=True,
        updates=True,
        attrs=attrs(optimizer="momentum"),
        **OPTIONS,
    ) as recorder:
        for step in range(N_STEPS):
            if step % STEPS_PER_EPOCH == 0:
                recorder.measure("full_batch", loss=problem.backward())
            if step == 13:
                recorder.snapshot("middle")
            examples = problem.examples(step)
            recorder.log(loss=problem.backward(examples))
            optimizer.step()
            if step % 4 == 1:
                recorder.measure("same_batch", loss=problem.backward(examples))
        recorder.measure("full_batch", loss=problem.backward())


def record_resumed(path: Path) -> None:
    """Record a run that fails and is resumed from a checkpoint before its failure."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    model_state: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def take_steps(recorder: Recorder, steps: range) -> None:
        for step in steps:
            if step == 10 and not state:
                parameters = problem.model.state_dict()
                model_state.update({k: v.clone() for k, v in parameters.items()})
                state["optimizer"] = optimizer.state_dict()
                state["recorder"] = recorder.state_dict()
            if step in {4, 12}:
                recorder.snapshot(f"step-{step}")
            recorder.log(loss=problem.backward(problem.examples(step)))
            optimizer.step()

    options = OPTIONS | {"attrs": attrs(optimizer="adam", lr=0.01)}
    with (
        suppress(ZeroDivisionError),
        Recorder(path, problem.model, optimizer, **options) as recorder,
    ):
        take_steps(recorder, range(14))
        raise ZeroDivisionError
    problem.model.load_state_dict(model_state)
    with Recorder(
        path, problem.model, optimizer, resume=state["recorder"], **options
    ) as recorder:
        take_steps(recorder, range(10, N_STEPS))


def record_until_killed(path: Path, kind: str) -> None:
    """Record, and kill this process before the recorder can close."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    options = OPTIONS | {"attrs": attrs(optimizer="momentum"), "flush_seconds": 3600.0}
    if kind == "journal":
        options |= {"journal": True, "samples": BATCH_SIZE}
    if kind == "exact_journal":
        options |= {"journal": True, "exact": True}
    with Recorder(path, problem.model, optimizer, **options) as recorder:
        for step in range(14):
            examples = problem.examples(step)
            recorder.log(loss=problem.backward(examples))
            if "samples" in options:
                recorder.log_samples(examples)
            optimizer.step()
            if step == 9:
                recorder.flush()
        # The last four steps are not in the store, only in the journal if there is one.
        os.kill(os.getpid(), signal.SIGKILL)


def record_killed(path: Path, kind: str) -> None:
    """Record in a process that is killed."""
    command = [sys.executable, __file__, "killed", kind, str(path)]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL, ended


def record_lost(path: Path) -> None:
    """Record a run that is killed and resumed at a step after the last committed step."""
    import torch

    from trajstore import Recorder

    record_killed(path, "lost")
    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    for step in range(13):
        problem.backward(problem.examples(step))
        optimizer.step()
    with Recorder(
        path,
        problem.model,
        optimizer,
        resume=True,
        step=13,
        attrs=attrs(optimizer="momentum"),
        **OPTIONS,
    ) as recorder:
        for step in range(13, N_STEPS):
            recorder.log(loss=problem.backward(problem.examples(step)))
            optimizer.step()


def record_failed(path: Path) -> None:
    """Record a run that ends with an exception in its first epoch."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    with (
        suppress(ZeroDivisionError),
        Recorder(path, problem.model, optimizer, **OPTIONS) as recorder,
    ):
        for step in range(5):
            recorder.log(loss=problem.backward(problem.examples(step)))
            optimizer.step()
        raise ZeroDivisionError


def record_deep_linear(path: Path) -> None:
    """Record a run of ``traj-train``, and store the losses of its batches at x*."""
    program = Path(sys.executable).with_name("traj-train")
    words = (
        "--exact --record-samples --full-gradients --same-batch-every 4 "
        "--sharpness-every 6 --n-eigenvalues 2 --max-steps 20 --lr 0.02 --device cpu"
    )
    run = ["run", "deep-linear-2-random", "--out", path.name, *words.split()]
    for arguments in (run, ["replay", path.name]):
        subprocess.run([program, *arguments], check=True, cwd=path.parent)


def record_stores(directory: Path) -> None:
    record_sketched(directory / "sketched.zarr")
    record_basis_0(directory / "basis_0.zarr")
    record_adamw(directory / "adamw.zarr")
    parent = directory / "full_batch.zarr"
    record_full_batch(parent)
    record_branch(directory / "branch_half.zarr", parent, 0.5)
    record_branch(directory / "branch_tenth.zarr", parent, 0.1)
    record_exact(directory / "exact.zarr")
    record_resumed(directory / "resumed.zarr")
    record_lost(directory / "lost.zarr")
    record_failed(directory / "failed.zarr")
    record_deep_linear(directory / "deep_linear.zarr")
    for kind in ("killed", "journal", "exact_journal"):
        record_killed(directory / f"{kind}.zarr", kind)


def archive(directory: Path, stores: Path) -> None:
    """Pack each store together with its results."""
    for path in sorted(directory.glob("*.zarr")):
        name, is_result = path.name.split(".", 1)[0], "analysis" in path.name
        if not is_result:
            with tarfile.open(stores / f"{name}.tar.xz", "w:xz", preset=9) as members:
                for member in sorted(directory.glob(f"{name}.*zarr")):
                    members.add(member, member.name, filter=without_owner)


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the owner of a file from its entry in an archive."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Record everything or, in the process that will be killed, one store."""
    if sys.argv[1:2] == ["killed"]:
        record_until_killed(Path(sys.argv[3]), sys.argv[2])
    from tests.golden.cases import CASES, STORES, Stores
    from tests.golden.kept import RESULTS, keep

    if RESULTS.exists():
        raise FileExistsError(
            f"{RESULTS} exists; delete it to compute the results again."
        )
    if not STORES.exists():
        with TemporaryDirectory() as directory:
            record_stores(Path(directory))
            STORES.mkdir()
            archive(Path(directory), STORES)
    with TemporaryDirectory() as directory:
        stores = Stores(Path(directory))
        keep({name: case(stores).compute() for name, case in CASES.items()})


if __name__ == "__main__":
    main()
