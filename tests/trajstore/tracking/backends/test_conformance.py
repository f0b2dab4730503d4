"""The twins that measure a step: compiled loops and torch agree."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import assert_same, follow
from trajstore.tracking.backends import cpu as steps_cpu
from trajstore.tracking.backends.cpu import StepsOnCPU
from trajstore.tracking.backends.eager import StepsOnDevice


@pytest.fixture(params=[1, 3], ids="threads={}".format)
def threads(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """Work in one part, or in several."""
    before = torch.get_num_threads()
    monkeypatch.setattr(steps_cpu, "BLOCKS_PER_THREAD", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("basis", [0, 1, 2, 3, 4])
def test_twins_agree(basis: int, threads: int):
    ours, theirs = (follow(steps, basis=basis) for steps in (StepsOnCPU, StepsOnDevice))
    assert torch.get_num_threads() == threads
    assert_same(ours, theirs)


@pytest.mark.parametrize("basis", [0, 3])
def test_twins_agree_in_exact_mode(threads: int, basis: int):
    options: dict[str, Any] = {"exact": True, "basis": basis}
    assert_same(follow(StepsOnCPU, **options), follow(StepsOnDevice, **options))


def test_measuring_in_threads_leaves_their_number_to_torch(threads: int):
    steps_cpu._start_threads()
    assert torch.get_num_threads() == threads
