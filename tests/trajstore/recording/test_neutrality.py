"""A recorded training run equals an unrecorded one."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode

from tests.trajstore.recording.regression import (
    SMALL,
    Training,
    float64,
    record,
    regression,
    take_step,
)
from trajstore.format.layout import Layout
from trajstore.planning.estimate import plan_recording
from trajstore.recording.recorder import Recorder
from trajstore.sketch.vector_forms import LEAST_PARAMS
from trajstore.sketch_torch import waiting
from trajstore.tracking.backends.choose import CHOICE
from trajstore.tracking.precision import no_grad_float32


def adam() -> Training:
    training = regression(dropout=0.3)
    optimizer = torch.optim.Adam(training.model.parameters(), lr=1e-3)
    return training._replace(optimizer=optimizer)


def with_dropout() -> Training:
    return regression(dropout=0.3)


RUNS: dict[str, tuple[Callable[[], Training], bool, str]] = {
    "momentum": (regression, False, "highest"),
    "dropout": (with_dropout, False, "highest"),
    "adam-dropout": (adam, False, "highest"),
    "exact": (with_dropout, True, "highest"),
    "low-precision": (with_dropout, False, "medium"),
}


@pytest.mark.parametrize(("make", "exact", "precision"), RUNS.values(), ids=RUNS.keys())
def test_recording_does_not_change_the_run(
    make: Callable[[], Training], exact: bool, precision: str, tmp_path: Path
):
    def end(recorded: bool) -> tuple[Any, ...]:
        training = make()
        if recorded:
            record(
                tmp_path / "run.zarr",
                training,
                20,
                steps_per_epoch=8,
                total_steps=20,
                exact=exact,
                **SMALL,
            )
        else:
            for step in range(20):
                take_step(training, step)
        state = training.optimizer.state_dict()["state"]
        tensors = list(training.model.parameters())
        for i in sorted(state):
            tensors += [v for _, v in sorted(state[i].items()) if torch.is_tensor(v)]
        return tensors, torch.get_rng_state(), torch.get_float32_matmul_precision()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        (recorded, stream, left), (alone, own_stream, own) = end(True), end(False)
    finally:
        torch.set_float32_matmul_precision(before)

    assert len(recorded) == len(alone) >= 8
    assert all(torch.equal(a, b) for a, b in zip(recorded, alone, strict=True))
    assert torch.equal(stream, own_stream)
    assert left == own == precision


def test_recording_leaves_gradients_and_modes_alone(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        training.loss(0).backward()
        kept = [p.grad for p in training.model.parameters()]
        values = [g.clone() for g in kept]  # type: ignore[union-attr]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            training.optimizer.step()
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()

    for parameter, gradient, value in zip(
        training.model.parameters(), kept, values, strict=True
    ):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert parameter.requires_grad


def test_autocast_around_the_step_does_not_coarsen_the_record(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL):
        training.loss(0).backward()
        expected = [float64(p.grad) for p in training.model.parameters()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            training.optimizer.step()

    squares = [np.square(g).sum() for g in expected]
    # With bfloat16 products the error would be 1e-3.
    np.testing.assert_allclose(open_run(path).steps.grad_sq[0], squares, rtol=1e-6)


@pytest.mark.slow
def test_precision_chosen_for_one_backend_is_left_alone(tmp_path: Path):
    code = (
        "import sys, torch; from torch import nn; from trajstore import Recorder\n"
        "model = nn.Linear(2, 1); opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "matmul = torch.backends.mkldnn.matmul; matmul.fp32_precision = 'bf16'\n"
        "with Recorder(sys.argv[1], model, opt, sketch_bits=64, probes=8):\n"
        "    model(torch.ones(1, 2)).sum().backward(); opt.step()\n"
        "assert matmul.fp32_precision == 'bf16'\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "r"], check=True)


def test_a_choice_of_precision_for_all_stays_one_for_all():
    backends: Any = torch.backends
    before = backends.fp32_precision, backends.cuda.matmul.fp32_precision
    try:
        backends.cuda.matmul.fp32_precision = "none"  # as the choice for all
        backends.fp32_precision = "tf32"
        with no_grad_float32(torch.device("cpu")):
            assert backends.cuda.matmul.fp32_precision == "ieee"
        assert backends.cuda.matmul.fp32_precision == "tf32"
        backends.fp32_precision = "ieee"
        assert backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision, backends.cuda.matmul.fp32_precision = before


class NoSync(TorchDispatchMode):
    """Raise an error if an operator copies a value to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal")
        assert not any(word in name for word in waits), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_steps_and_scalars_do_not_wait_for_the_device(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main = threading.get_ident()
    item = torch.Tensor.item

    def item_elsewhere(self: Any) -> Any:
        assert threading.get_ident() != main
        return item(self)

    monkeypatch.setattr(torch.Tensor, "item", item_elsewhere)
    monkeypatch.setenv(CHOICE, "eager")
    # On the CPU, the backend looks at products, which an accelerator would have to wait for.
    monkeypatch.setattr(waiting, "answers_at_once", lambda _vector: False)
    training = regression()
    with Recorder(
        tmp_path / "run",
        training.model,
        training.optimizer,
        steps_per_epoch=4,
        flush_rows=5,
        exact=exact,
        **SMALL,
    ) as recorder:
        for step in range(14):  # several windows and flushes among them
            training.optimizer.zero_grad()
            loss = training.loss(step)
            loss.backward()
            with NoSync():
                recorder.log(loss=loss, constant=1.0)
                training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 14


def test_the_guard_against_waiting_can_fail():
    with NoSync(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(1).item()


MEMORY_SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import nn
from trajstore.recording.recorder import Recorder


def peak():
    # ru_maxrss would begin with the memory of the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def step(model, optimizer):
    optimizer.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()


def train(path, size):
    model = nn.ParameterList([nn.Parameter(torch.ones(size // 4)) for _ in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    before = peak()
    with Recorder(path, model, optimizer, steps_per_epoch=2, flush_rows=2):
        for _ in range(10):
            step(model, optimizer)
        looped = peak()
    return looped - before, peak() - before


train(sys.argv[1] + "/warm-up", 400)
print(*train(sys.argv[1] + "/run", int(sys.argv[2])))
"""

RETURNS_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""Lets the C library return freed memory at once; otherwise it keeps 0 to 3 vectors, by chance."""


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 20, 1 << 24, 10**8])
def test_memory_is_as_planned(size: int, tmp_path: Path):
    """Three vectors and two codes for each parameter, 14 bytes, are kept, or 10 if compact."""
    if sys.platform != "linux":
        pytest.skip("peaks of memory are read where Linux tells them")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, tmp_path, str(size)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | RETURNS_MEMORY,
    )
    layout = Layout(tuple("abcd"), ((size // 4,),) * 4)
    planned = plan_recording(layout, n_steps=10, steps_per_epoch=2).memory
    # Plans count buffers of 24 MB for rows, which this recording does not need.
    for peak in map(int, run.stdout.split()):
        assert planned - 32e6 < peak < 1.02 * planned
    per_parameter = 14 if size < LEAST_PARAMS else 10
    assert per_parameter * size < planned < 1.01 * per_parameter * size + 40e6


def test_training_keeps_torchs_threads_to_itself(tmp_path: Path):
    """A second team of OpenMP threads would slow down every loop of the training."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        training = regression()
        with Recorder(tmp_path / "run", training.model, training.optimizer) as recorder:
            assert recorder._session.background.call(torch.get_num_threads) == 1
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as executor:
                assert executor.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
