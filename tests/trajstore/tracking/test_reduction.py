"""Rows of sharded parameters are completed when the sums over the ranks have arrived."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import one_rank, spec_of
from trajstore.format.arrays import UPDATE_TABLE, table_columns
from trajstore.format.layout import Layout
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.placement import Placement, unsharded
from trajstore.tracking.reduction import Reduction
from trajstore.tracking.tracker import Tracker

SHAPES = {"weight": (40, 50), "bias": (50,)}


def test_sums_are_those_of_the_tensors_when_they_began():
    first, second = torch.arange(3.0), torch.ones(2, 2, dtype=torch.float64)
    large = torch.arange(5.0)
    with one_rank() as group:
        reduction = Reduction([first[1:], second, first[:1]], large, group)
        first.fill_(torch.nan)
        second.fill_(torch.nan)
        reduction.finish()
    assert first.tolist() == [0, 1, 2]
    assert large.tolist() == [0, 1, 2, 3, 4]
    assert second.tolist() == [[1, 1], [1, 1]]


class Late:
    """A sum that has not arrived, or never will."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def is_completed(self) -> bool:
        return self._error is not None

    def wait(self) -> None:
        if self._error is not None:
            raise self._error


class Walk:
    """Two measured steps of parameters that one rank holds, as if others had parts of them."""

    def __init__(self, group: Any) -> None:
        layout = Layout(tuple(SHAPES), tuple(SHAPES.values()))
        generator = torch.Generator().manual_seed(0)
        self.tensors = [torch.randn(s, generator=generator) for s in SHAPES.values()]
        self.spec = spec_of(SHAPES)
        placement = Placement(layout, unsharded(layout).pieces, group)
        self.tracker = Tracker(
            self.tensors, layout, self.spec, placement, backend=CPUBackend
        )
        rows = self.tracker.allocate(2)
        self.rows = [{n: values[i] for n, values in rows.items()} for i in range(2)]
        self.tracker.start()

    def step(self, i: int) -> None:
        for tensor in self.tensors:
            tensor.grad = torch.full_like(tensor, i + 1.0)
        last = self.rows[i - 1] if i else None
        self.tracker.before_step(i, self.rows[i], last=last)
        for tensor in self.tensors:
            tensor.sub_(tensor.grad, alpha=0.25)


def unknown(row: dict[str, Any], walk: Walk, *, update: bool) -> bool:
    """Whether all values of a row are NaN; of its update, or of everything else."""
    columns = table_columns(walk.spec)
    names = [*UPDATE_TABLE] if update else ["grad_sq", "displacement_sq"]
    values = [row["tables"][:, columns[name]] for name in names]
    if not update:
        values += [row["scales"], row["probes"]]
    return all(bool(v.isnan().all()) for v in values)


def test_a_row_is_unknown_until_it_is_finished():
    with one_rank() as group:
        walk = Walk(group)
        walk.step(0)
        assert unknown(walk.rows[0], walk, update=False)
        walk.tracker.finish()
        assert not any(value.isnan().any() for value in map_known(walk.rows[0], walk))
        walk.step(1)
        assert unknown(walk.rows[0], walk, update=True)
        assert unknown(walk.rows[1], walk, update=False)
        walk.tracker.finish()
        square = walk.rows[0]["tables"][:, table_columns(walk.spec)["update_sq"].start]
    np.testing.assert_allclose(square, [2000 / 16, 50 / 16], rtol=1e-5)


def map_known(row: dict[str, Any], walk: Walk) -> list[Any]:
    """Return what is measured before a step."""
    columns = table_columns(walk.spec)
    names = ("grad_sq", "displacement_sq", "grad_dot_previous")
    tables = [row["tables"][:, columns[name]] for name in names]
    return [*tables, row["scales"], row["probes"]]


@pytest.mark.parametrize(
    ("late", "waits"),
    [(Late(), False), (Late(RuntimeError("a rank has ended")), True)],
    ids=["late", "failed"],
)
def test_what_other_ranks_do_not_tell_stays_unknown(
    late: Late, waits: bool, monkeypatch: pytest.MonkeyPatch
):
    with one_rank() as group:
        walk = Walk(group)
        walk.step(0)
        walk.tracker.finish()
        walk.step(1)
        backend: Any = walk.tracker._backend
        reduction = backend._unfinished.reduction
        monkeypatch.setattr(reduction, "_works", [late])
        with pytest.raises(RuntimeError, match=r"have not arrived|has ended"):
            walk.tracker.finish(waits=waits)
        # Nothing is left to wait for.
        walk.tracker.finish()
    assert unknown(walk.rows[0], walk, update=True)
    assert unknown(walk.rows[1], walk, update=False)
    assert not unknown(walk.rows[0], walk, update=False)


def test_the_next_step_tells_that_a_rank_has_ended(monkeypatch: pytest.MonkeyPatch):
    with one_rank() as group:
        walk = Walk(group)
        walk.step(0)
        backend: Any = walk.tracker._backend
        late = Late(RuntimeError("a rank has ended"))
        monkeypatch.setattr(backend._unfinished.reduction, "_works", [late])
        with pytest.raises(RuntimeError, match="a rank has ended"):
            walk.step(1)
    assert unknown(walk.rows[0], walk, update=False)
    assert unknown(walk.rows[0], walk, update=True)
