"""Test the division of work, the tables and the signs of the Triton backend.

test_conformance.py tests the measurements. Triton's interpreter runs the kernels on tensors in host
memory; its compiler can compile for GPUs that the machine does not have. `conftest.py` selects the
interpreter if there is no GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="only the CUDA builds of torch include Triton")

from tests.trajstore.tracking.backends.test_conformance import (
    assert_measured,
    triton_case,
)
from tests.trajstore.tracking.random_walk import follow
from trajstore.format.layout import Layout
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch_torch import uploads
from trajstore.tracking.backends import triton, triton_tables
from trajstore.tracking.backends.triton import TritonBackend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    triton_case()


@pytest.mark.parametrize("programs", [2, 7])
def test_rows_are_divided_among_programs(
    programs: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(triton, "PROGRAMS_PER_PROCESSOR", programs)
    assert_measured(follow(TritonBackend, device=DEVICE, basis=1))


def test_elements_of_two_bytes_are_read_in_place():
    table = triton_tables.AddressTable(Layout(("a",), ((3,),)), torch.device(DEVICE))
    tensor = torch.ones(3, dtype=torch.bfloat16, device=DEVICE)
    table.update([tensor])
    assert table.table.tolist() == [[tensor.data_ptr()], [1]]


def test_addresses_are_uploaded_only_if_one_has_changed(
    monkeypatch: pytest.MonkeyPatch,
):
    uploaded = []
    upload = uploads.upload

    def counted(array: Any, device: Any) -> Any:
        uploaded.append(array)
        return upload(array, device)

    monkeypatch.setattr(triton_tables, "upload", counted)
    layout = Layout(("a", "b"), ((3,), (2, 5)))
    addresses = triton_tables.AddressTable(layout, torch.device(DEVICE))
    tensors = [torch.ones(3, device=DEVICE), torch.ones(2, 5, device=DEVICE)]
    uploaded.clear()
    assert addresses.update(tensors) == addresses.update(tensors) == 1
    assert len(uploaded) == 1
    assert addresses.update([None, tensors[1]]) == 1
    assert addresses.update([None, None]) == 0
    assert len(uploaded) == 3


@pytest.mark.parametrize("count", [8, 13, 64, 1000, 4096 + 37])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 5, 2**33, 2**62])
def test_signs_equal_the_reference_implementation(count: int, seed: int, step: int):
    signs = torch.empty(count, device=DEVICE)
    triton.draw_signs(signs, seed, step)
    expected = random_signs(count, seed=seed, role=Role.STEP, step=step)
    np.testing.assert_array_equal(signs.cpu().numpy(), expected)


def test_try_out_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch):
    triton.try_out(torch.device(DEVICE))
    monkeypatch.setattr(triton, "draw_signs", lambda out, *_: out.zero_())
    with pytest.raises(RuntimeError, match="random signs are not"):
        triton.try_out(torch.device(DEVICE))


@pytest.mark.parametrize("width", [61, 509, 64891])
def test_segments_cover_every_element_once(width: int):
    shapes = [(1,), (1024,), (700, 30), (1025,), (5,), (3,), (2048,)]
    layout = Layout(tuple(map(str, range(len(shapes)))), tuple(shapes))
    segments, layer_of_sum = triton_tables.segments_of(layout, width)

    assert np.all(np.diff(layer_of_sum) >= 0)
    n_tiles = -(-width // triton_tables.SEGMENT)
    layer_of_element = np.repeat(layout.layer_of_block, 1024)
    counts = np.zeros(len(layer_of_sum), int)
    for i, (first, second, first_sum, border) in enumerate(segments.tolist()):
        row, tile = divmod(i, n_tiles)
        column = tile * triton_tables.SEGMENT
        start = row * width + column
        n = min(triton_tables.SEGMENT, width - column, layout.size - start)
        for element in range(start, start + n):
            is_second = element >= 1024 * border
            assert layer_of_element[element] == (second if is_second else first)
            counts[first_sum + is_second] += 1
    np.testing.assert_array_equal(
        np.bincount(layer_of_sum, counts, len(shapes)), 1024 * layout.blocks
    )


COMPILE = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_absent_gpus(capability: int, tmp_path: Path):
    if sys.platform != "linux":
        pytest.skip("Triton's compiler is available only on Linux")
    # The interpreter is turned off, because this process may use it.
    compiled = subprocess.run(
        [sys.executable, COMPILE, str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    registers = dict(line.split() for line in compiled.stdout.splitlines())
    assert len(registers) == 10
    # The programs of one warp that run simultaneously must fit into 65536 registers.
    max_registers = 65536 // 32 // triton.PROGRAMS_PER_PROCESSOR
    assert int(registers["measure_before"]) <= max_registers
    assert int(registers["measure_before_halves"]) <= max_registers
