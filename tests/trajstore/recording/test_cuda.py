"""Recording on CUDA devices; the tests need no device if possible."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder, open_run
from trajstore.format.arrays import table_columns
from trajstore.recording import session
from trajstore.recording.host_copies import HostCopies
from trajstore.recording.loops import watch
from trajstore.tracking.backends import choose
from trajstore.tracking.backends.choose import SWITCH, choose_backend
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.eager import EagerBackend

SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64}

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Training:
    """A small network that learns from data on its device."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 3))
        self.model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.inputs = torch.randn(16, 40, device=device)

    def backward(self) -> Any:
        self.optimizer.zero_grad()
        loss = (self.model(self.inputs) - self.inputs[:, :3].sin()).square().mean()
        loss.backward()
        return loss

    def record(self, path: Path, **options: Any) -> Recorder:
        return Recorder(path, self.model, self.optimizer, **SMALL, **options)


class WatchedCopies(HostCopies):
    """Host copies that note each call's thread, and check that a fetch follows a mark."""

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        self.calls: list[tuple[str, bool]] = []
        self._is_marked = self._is_after = False

    def _note(self, name: str) -> None:
        is_training = threading.current_thread() is threading.main_thread()
        self.calls.append((name, is_training))

    def mark(self) -> None:
        self._note("mark")
        self._is_marked = True

    @contextmanager
    def after_mark(self) -> Iterator[None]:
        self._note("after_mark")
        assert self._is_marked
        self._is_after = True
        yield
        self._is_after = False

    def fetch(self, tensors: Any) -> Any:
        self._note("fetch")
        assert self._is_after
        return super().fetch(tensors)


def test_results_are_fetched_in_the_writers_thread_behind_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "HostCopies", WatchedCopies)
    training = Training("cpu")
    with training.record(
        tmp_path / "run", steps_per_epoch=3, flush_rows=2, updates=True
    ) as made:
        copies: Any = made._session.copies
        for step in range(9):
            made.log(loss=training.backward())
            training.optimizer.step()
            if step == 4:
                made.snapshot("middle")
                made.measure("whole")
    assert set(copies.calls) == {
        ("mark", True),
        ("after_mark", False),
        ("fetch", False),
    }
    assert open_run(tmp_path / "run").n_steps == 9


@pytest.mark.parametrize("call", ["step", "measure", "take_gradient", "log"])
def test_a_captured_call_is_refused(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training("cpu")
    with training.record(tmp_path / "run") as made:
        calls = {
            "step": training.optimizer.step,
            "measure": lambda: made.measure("whole"),
            "take_gradient": made.take_gradient,
            "log": lambda: made.log(loss=1.0),
        }
        training.backward()
        with monkeypatch.context() as patch:
            patch.setattr(watch, "is_capturing", lambda _device: True)
            with pytest.raises(
                RuntimeError, match="while a CUDA graph was being captured"
            ):
                calls[call]()
        training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 1


def test_a_captured_step_ends_the_recording_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training("cpu")
    with training.record(tmp_path / "run", on_error="warn"):
        training.backward()
        training.optimizer.step()
        monkeypatch.setattr(watch, "is_capturing", lambda _device: True)
        with pytest.warns(UserWarning, match=r"ended before step 1.*CUDA graph"):
            training.optimizer.step()
        training.optimizer.step()
    assert open_run(tmp_path / "run").n_steps == 1


def test_plain_torch_measures_where_triton_is_missing_unwanted_or_fails(
    monkeypatch: pytest.MonkeyPatch,
):
    device = torch.device("cuda")
    assert choose_backend(torch.device("cpu"), is_whole=True) is CPUBackend
    assert choose_backend(torch.device("mps"), is_whole=True) is EagerBackend

    monkeypatch.setenv(SWITCH, "0")
    assert choose_backend(device, is_whole=True) is EagerBackend
    monkeypatch.delenv(SWITCH)

    monkeypatch.setattr(choose, "find_spec", lambda _name: None)
    assert choose_backend(device, is_whole=True) is EagerBackend

    monkeypatch.setattr(choose, "find_spec", lambda _name: True)
    monkeypatch.setattr(choose, "_is_too_old", lambda _device: True)
    assert choose_backend(device, is_whole=True) is EagerBackend

    monkeypatch.setattr(choose, "_is_too_old", lambda _device: False)
    # The trial of Triton fails if Triton or a device is missing.
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match=r"Triton fails on cuda.*plain torch"):
            assert choose_backend(device, is_whole=True) is EagerBackend


# --- tests that need a device --------------------------------------------------------


def columns_of(path: Path) -> dict[str, Any]:
    steps = open_run(path).steps
    times = {"wall_time"}
    return {str(n): v.values for n, v in steps.items() if n not in times}


def test_offloading_changes_nothing_on_a_cpu(tmp_path: Path):
    for name, offload in (("here", False), ("there", True)):
        training = Training("cpu")
        options = {"steps_per_epoch": 4, "updates": True, "offload": offload}
        with training.record(tmp_path / name, **options):
            for _ in range(10):
                training.backward()
                training.optimizer.step()
    here, there = (columns_of(tmp_path / name) for name in ("here", "there"))
    for name, values in here.items():
        np.testing.assert_array_equal(there[name], values, err_msg=name)


class TestOnDevice:
    pytestmark = on_gpu

    def test_offloaded_vectors_take_no_device_memory(self, tmp_path: Path):
        stores = {}
        for offload in (False, True):
            training = Training("cuda")
            training.backward()
            training.optimizer.step()
            before = torch.cuda.memory_allocated()
            path = stores[offload] = tmp_path / str(offload)
            options = {"steps_per_epoch": 4, "updates": True, "offload": offload}
            with training.record(path, **options) as made:
                for _ in range(10):
                    training.backward()
                    training.optimizer.step()
                    made.measure("again")
                taken = torch.cuda.memory_allocated() - before
            assert (taken == 0) == offload
        here, there = (columns_of(stores[offload]) for offload in (False, True))
        for name, values in here.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(there[name], values, rtol=1e-4, atol=1e-5)

    def test_the_training_is_not_changed(self, tmp_path: Path):
        plain, recorded = Training("cuda"), Training("cuda")
        with recorded.record(tmp_path / "run", steps_per_epoch=4):
            for _ in range(10):
                recorded.backward()
                recorded.optimizer.step()
        for _ in range(10):
            plain.backward()
            plain.optimizer.step()
        pairs = zip(plain.model.parameters(), recorded.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_recorded_norms_and_losses_are_those_of_the_training_run(
        self, tmp_path: Path
    ):
        training = Training("cuda")
        norms, losses = [], []
        with training.record(tmp_path / "run", steps_per_epoch=4, flush_rows=3) as made:
            for _ in range(10):
                loss = training.backward()
                made.log(loss=loss)
                losses.append(loss.item())
                norms.append(
                    [p.grad.double().norm().item() for p in training.model.parameters()]
                )
                training.optimizer.step()
        run = open_run(tmp_path / "run")
        np.testing.assert_array_equal(run.steps.loss, losses)
        total = np.linalg.norm(norms, axis=1)
        np.testing.assert_allclose(run.steps.grad_norm, total, rtol=1e-5)

    def test_kernels_and_plain_torch_record_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        pytest.importorskip("triton")
        assert (
            choose_backend(torch.device("cuda"), is_whole=True).__name__
            == "TritonBackend"
        )
        for name in ("fused", "plain"):
            monkeypatch.setenv(SWITCH, "0" if name == "plain" else "1")
            training = Training("cuda")
            with training.record(tmp_path / name, steps_per_epoch=4, updates=True):
                for _ in range(10):
                    training.backward()
                    training.optimizer.step()
        fused, plain = columns_of(tmp_path / "fused"), columns_of(tmp_path / "plain")
        assert fused.keys() == plain.keys()
        for name, values in plain.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    fused[name], values, rtol=1e-4, atol=1e-5, err_msg=name
                )

    @pytest.mark.parametrize("switch", ["0", "1"], ids=["plain", "fused"])
    def test_a_step_waits_for_nothing(
        self, switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv(SWITCH, switch)
        training = Training("cuda")
        with training.record(
            tmp_path / "run", steps_per_epoch=4, flush_rows=5, updates=True
        ) as made:
            for step in range(20):  # several windows and flushes among them
                if step == 2:
                    torch.cuda.set_sync_debug_mode("error")
                made.log(loss=training.backward())
                training.optimizer.step()
                made.measure("whole")
            torch.cuda.set_sync_debug_mode("default")
        assert open_run(tmp_path / "run").n_steps == 20

    def test_the_guard_against_waiting_can_fail(self):
        value = torch.ones(1, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            value.item()
        torch.cuda.set_sync_debug_mode("default")

    def test_training_on_another_stream_is_recorded(self, tmp_path: Path):
        stream, training = torch.cuda.Stream(), Training("cuda")
        stream.wait_stream(torch.cuda.current_stream())
        losses = []
        with training.record(tmp_path / "run", flush_rows=2) as made:
            with torch.cuda.stream(stream):
                for _ in range(8):
                    # The steps below must wait for this work.
                    torch.cuda._sleep(10_000_000)
                    loss = training.backward()
                    made.log(loss=loss)
                    losses.append(loss.detach().clone())
                    training.optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
        expected = torch.stack(losses).double().cpu().numpy()
        np.testing.assert_array_equal(open_run(tmp_path / "run").steps.loss, expected)

    def test_a_captured_step_is_refused(self, tmp_path: Path):
        training = Training("cuda")
        training.optimizer = torch.optim.Adam(
            training.model.parameters(), capturable=True
        )
        with training.record(tmp_path / "run"):
            for _ in range(3):
                training.backward()
                training.optimizer.step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with (
                pytest.raises(
                    RuntimeError, match="while a CUDA graph was being captured"
                ),
                torch.cuda.graph(graph),
            ):
                training.optimizer.step()
        assert open_run(tmp_path / "run").n_steps == 3

    def test_captured_passes_with_a_step_outside_are_recorded(self, tmp_path: Path):
        training = Training("cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training.backward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        training.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = training.backward()
        norms = []
        with training.record(tmp_path / "run", steps_per_epoch=4) as made:
            for _ in range(10):
                graph.replay()
                made.log(loss=loss)
                gradient = [p.grad.reshape(-1) for p in training.model.parameters()]
                norms.append(torch.cat(gradient).double().norm().item())
                training.optimizer.step()
        run = open_run(tmp_path / "run")
        np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-5)
        assert np.all(np.diff(run.steps.loss) < 0)

    def test_tables_of_large_vectors_are_exact(self, tmp_path: Path):
        """Tensors of many sizes have more elements than one wave of programs can process."""
        torch.manual_seed(0)
        sizes = [3, 1024, 70_000, 5_000_000, 17, 1_000_001]
        tensors = {
            str(i): torch.randn(n, device="cuda").requires_grad_()
            for i, n in enumerate(sizes)
        }
        optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
        with Recorder(tmp_path / "run", tensors, optimizer) as made:
            for tensor in tensors.values():
                tensor.grad = torch.randn_like(tensor)
            optimizer.step()
            spec = made._session.spec
        run = open_run(tmp_path / "run")
        column = table_columns(spec)["grad_sq"]
        found = run.stored.rows("tables", slice(0, 1))[0][:, column].reshape(-1)
        expected = [t.grad.double().square().sum().item() for t in tensors.values()]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
