"""Functional updates, which make new tensors: what the recorder knows between two steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N = 5
FIRST = slice(0, 6)


def iterate(k: int) -> np.ndarray:
    return np.asarray(0.9**k * np.arange(1.0, 7.0))


class Loop:
    """Gradient descent on |x|^2 / 2, whose steps make new mappings."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.parameters = {"x": torch.arange(1.0, 7.0)}
        self.recorder = Recorder(path, self.parameters, None, exact=True, **options)

    def step(self, *, in_block: Any = None) -> None:
        """Take a step and keep the new mapping, which the recorder does not have yet."""
        gradients = dict(self.parameters)
        with self.recorder.step(gradients, self.parameters):
            if in_block is not None:
                in_block()
            new = {n: p - 0.1 * gradients[n] for n, p in self.parameters.items()}
        self.parameters = new

    def in_place(self) -> None:
        """Take a step that updates the recorder's mapping."""
        gradients = dict(self.parameters)
        with self.recorder.step(gradients, self.parameters):
            new = {n: p - 0.1 * gradients[n] for n, p in self.parameters.items()}
            self.parameters.update(new)


def norms() -> np.ndarray:
    moves = np.diff([iterate(k) for k in range(N + 1)], axis=0)
    return np.asarray(np.linalg.norm(moves, axis=1))


@pytest.mark.filterwarnings("ignore:The parameters after the last step are not known")
@pytest.mark.parametrize("what", ["snapshot", "measure"])
def test_iterates_that_are_not_known_yet_are_refused(what: str, tmp_path: Path):
    loop = Loop(tmp_path / "run")
    method = getattr(loop.recorder, what)
    for x in loop.parameters.values():
        x.grad = x.clone()
    method("before")
    for _ in range(3):
        loop.step()
    with pytest.raises(
        ValueError, match=r"parameters after step 2, which are not known"
    ):
        method("after")

    def after() -> None:
        for x in loop.parameters.values():
            x.grad = x.clone()
        method("after")

    loop.step(in_block=after)
    loop.recorder.close()
    run = open_run(tmp_path / "run")
    if what == "snapshot":
        np.testing.assert_allclose(run.stored.vector("snapshots/1", FIRST), iterate(3))
    else:
        assert run.measured("after").n_steps == 1


def test_snapshots_of_a_mapping_that_is_updated_in_place_are_current(tmp_path: Path):
    loop = Loop(tmp_path / "run")
    for _ in range(3):
        loop.in_place()
    loop.recorder.snapshot("after")
    loop.recorder.flush()
    loop.recorder.close()
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(
        run.stored.vector("snapshots/0", FIRST), iterate(3), rtol=1e-6
    )
    np.testing.assert_allclose(run.steps.update_norm, norms()[:3], rtol=1e-5)


def test_snapshots_of_the_recorders_mapping_are_current(tmp_path: Path):
    """Without hooks, the mapping given to the recorder tells the tensors."""
    parameters = {"x": torch.arange(1.0, 7.0)}
    with Recorder(tmp_path / "run", parameters, None, exact=True) as recorder:
        for _ in range(3):
            x = parameters["x"]
            with recorder.step({"x": x}):
                parameters["x"] = x - 0.1 * x
        recorder.snapshot("after")
    found = open_run(tmp_path / "run").stored.vector("snapshots/0", FIRST)
    np.testing.assert_allclose(found, iterate(3), rtol=1e-6)


@pytest.mark.parametrize("how", ["flush", "state_dict", "journal"])
def test_updates_that_are_written_too_early_are_nan(how: str, tmp_path: Path):
    loop = Loop(tmp_path / "run", journal=how == "journal")
    write = loop.step if how == "journal" else getattr(loop.recorder, how)
    if how != "journal":
        loop.step()
    with pytest.warns(UserWarning, match=r"so its update is recorded as NaN"):
        write()
    for _ in range(N - 2):
        loop.step()
    loop.in_place()
    loop.recorder.close()
    expected = norms()
    expected[: N - 1 if how == "journal" else 1] = np.nan
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(run.steps.update_norm, expected, rtol=1e-5)


def test_epochs_of_functional_updates_begin_with_the_next_step(tmp_path: Path):
    loop = Loop(tmp_path / "run")
    loop.step()
    loop.recorder.start_epoch()
    loop.in_place()
    loop.recorder.close()
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(run.steps.epoch, [0, 1])
    np.testing.assert_allclose(run.steps.update_norm, norms()[:2], rtol=1e-5)
