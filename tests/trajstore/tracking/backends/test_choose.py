"""Test the choice of a backend; see also tests/trajstore/recording/test_cuda.py."""

import pytest

torch = pytest.importorskip("torch")

from trajstore.tracking.backends.choose import CHOICE, choose_backend
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.eager import EagerBackend

CPU = torch.device("cpu")


@pytest.mark.parametrize("is_whole", [True, False])
def test_compiled_loops_measure_parameters_and_shards_on_a_cpu(is_whole: bool):
    assert choose_backend(CPU, is_whole=is_whole) is CPUBackend


def test_the_environment_chooses_plain_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CHOICE, "eager")
    assert choose_backend(CPU, is_whole=True) is EagerBackend
    monkeypatch.setenv(CHOICE, "numba")
    with pytest.raises(ValueError, match="expected 'eager' or nothing, got 'numba'"):
        choose_backend(CPU, is_whole=True)
