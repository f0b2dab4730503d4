"""Record the golden stores of format version 2, and the results of analyses of them.

Run it from the root of the repository, with its packages installed:

    python -m tests.golden.record_v2

As with `record.py`, the stores never change. To add a case, delete the results only.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.golden.record import (
    N_STEPS,
    OPTIONS,
    STEPS_PER_EPOCH,
    Problem,
    archive,
    attrs,
)


def train(recorder: Any, problem: Problem, optimizer: Any, steps: range) -> None:
    """Take steps, with measurements at the start of epochs and a snapshot."""
    for step in steps:
        if step % STEPS_PER_EPOCH == 0:
            recorder.measure("full_batch", loss=problem.backward())
        if step == 13:
            recorder.snapshot("middle")
        recorder.log(loss=problem.backward(problem.examples(step)))
        optimizer.step()


def record(
    path: Path,
    kind: str,
    *,
    n_inputs: int = 6,
    n_hidden: int = 8,
    is_double: bool = False,
    **changes: Any,
) -> None:
    """Record a run of three epochs; `kind` names the optimizer."""
    from torch import optim

    from trajstore import Recorder

    problem = Problem(n_inputs=n_inputs, n_hidden=n_hidden)
    if is_double:
        problem.model.double()
        problem.inputs, problem.targets = (
            problem.inputs.double(),
            problem.targets.double(),
        )
    parameters = problem.model.parameters()
    optimizer: Any = (
        optim.AdamW(parameters, lr=0.01, weight_decay=0.05)
        if kind == "adamw"
        else optim.SGD(parameters, lr=0.05, momentum=0.9)
    )
    options = OPTIONS | {"attrs": attrs(optimizer=kind), "total_steps": N_STEPS}
    with Recorder(path, problem.model, optimizer, **(options | changes)) as recorder:
        train(recorder, problem, optimizer, range(N_STEPS))


def record_resumed(path: Path) -> None:
    """Record a run with a checkpoint at step 10 that is resumed after step 15."""
    from copy import deepcopy

    from torch import optim

    from trajstore import Recorder

    problem = Problem(n_inputs=20, n_hidden=60)
    optimizer = optim.AdamW(problem.model.parameters(), lr=0.01)
    options: dict[str, Any] = OPTIONS | {"attrs": attrs(optimizer="adamw")}
    recorder = Recorder(path, problem.model, optimizer, **options)
    train(recorder, problem, optimizer, range(10))
    states = problem.model.state_dict(), optimizer.state_dict(), recorder.state_dict()
    model, of_optimizer, state = deepcopy(states)
    train(recorder, problem, optimizer, range(10, 15))
    recorder.close()
    problem.model.load_state_dict(model)
    optimizer.load_state_dict(of_optimizer)
    with Recorder(path, problem.model, optimizer, resume=state, **options) as recorder:
        train(recorder, problem, optimizer, range(10, N_STEPS))


def record_by_hand(path: Path) -> None:
    """Record updates without an optimizer."""
    import torch

    from trajstore import Recorder

    problem = Problem()
    with Recorder(path, problem.model, None, attrs=attrs(), **OPTIONS) as recorder:
        for step in range(N_STEPS):
            recorder.log(loss=problem.backward(problem.examples(step)))
            with recorder.step(), torch.no_grad():
                for p in problem.model.parameters():
                    assert p.grad is not None
                    p.sub_(0.05 * p.grad)


def record_until_killed(path: Path) -> None:
    """Record with a journal, and kill this process before the recorder can close."""
    from torch import optim

    from trajstore import Recorder

    problem = Problem()
    optimizer = optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    options: dict[str, Any] = OPTIONS | {"journal": True, "flush_seconds": 3600.0}
    with Recorder(path, problem.model, optimizer, **options) as recorder:
        for step in range(14):
            recorder.log(loss=problem.backward(problem.examples(step)))
            optimizer.step()
            if step == 9:
                recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def record_stores(directory: Path) -> None:
    folded: dict[str, Any] = {"n_inputs": 20, "n_hidden": 60}
    record(directory / "momentum.zarr", "momentum", **folded, updates=True)
    record(directory / "adamw_sums.zarr", "adamw", **folded, sketch_bits=512)
    record(directory / "packed.zarr", "adamw", sketch_bits=4096)
    record(directory / "exact.zarr", "momentum", exact=True)
    record(directory / "float64.zarr", "momentum", is_double=True)
    record(directory / "float64_exact.zarr", "adamw", is_double=True, exact=True)
    record_resumed(directory / "resumed.zarr")
    record_by_hand(directory / "by_hand.zarr")
    command = [sys.executable, "-m", __spec__.name, "killed"]
    ended = subprocess.run([*command, directory / "journal.zarr"], check=False)
    assert ended.returncode == -signal.SIGKILL, ended


def main() -> None:
    """Record everything or, in the process that will be killed, one store."""
    if sys.argv[1:2] == ["killed"]:
        record_until_killed(Path(sys.argv[2]))
    from tests.golden.cases import Stores
    from tests.golden.cases_v2 import CASES, RESULTS, STORES
    from tests.golden.kept import keep

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
        stores = Stores(Path(directory), STORES)
        keep({name: case(stores).compute() for name, case in CASES.items()}, RESULTS)


if __name__ == "__main__":
    main()
