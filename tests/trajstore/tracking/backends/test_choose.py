"""Test the choice of a backend; see also tests/trajstore/recording/test_cuda.py."""

import pytest

torch = pytest.importorskip("torch")

from trajstore.tracking.backends.choose import CHOICE, choose_backend
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.eager import EagerBackend

CPU = torch.device("cpu")


def test_compiled_loops_measure_whole_parameters_on_a_cpu():
    assert choose_backend(CPU, is_whole=True) is CPUBackend
    assert choose_backend(CPU, is_whole=False) is EagerBackend


def test_the_environment_chooses_plain_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CHOICE, "eager")
    assert choose_backend(CPU, is_whole=True) is EagerBackend
    monkeypatch.setenv(CHOICE, "numba")
    with pytest.raises(ValueError, match="expected 'eager' or nothing, got 'numba'"):
        choose_backend(CPU, is_whole=True)
