"""Rows of gradients that are recorded in addition to the steps, stored and read."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import analyzers
from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import leave
from trajstore import Recorder
from trajstore.tracking.backends.choose import CHOICE

SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64, "steps_per_epoch": 4}
N_STEPS = 12


@pytest.fixture(params=["cpu", "accelerator"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Measure with compiled loops, or with plain torch as on an accelerator."""
    if request.param == "accelerator":
        monkeypatch.setenv(CHOICE, "eager")
    name: str = request.param
    return name


class Training:
    """A regression that keeps the gradients and parameters that a recorder sees."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.seen: list[tuple[Any, Any]] = []
        self.iterates: list[Any] = []

    def backward(self, seed: int) -> None:
        inputs = torch.randn(8, 40, generator=torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad()
        (self.model(inputs) - inputs[:, :3]).square().mean().backward()

    def flat(self, of: str) -> Any:
        parts: list[Any] = [
            p.grad if of == "gradient" else p for p in self.model.parameters()
        ]
        return torch.cat([part.detach().double().flatten() for part in parts]).numpy()

    def measure(self, recorder: Recorder, name: str, seed: int) -> None:
        self.backward(seed)
        self.seen.append((self.flat("gradient"), self.flat("parameters")))
        recorder.measure(name, batch=seed)

    def run(
        self, recorder: Recorder, steps: range, *, every: int = 3, last: bool = True
    ) -> None:
        for step in steps:
            if step % every == 0:
                for seed in (100, 101):
                    self.measure(recorder, "fixed", seed)
            self.backward(step)
            self.iterates.append(self.flat("parameters"))
            self.optimizer.step()
        if last:
            self.measure(recorder, "full", 7)
            self.iterates.append(self.flat("parameters"))


def record(path: Path, **options: Any) -> Training:
    training = Training()
    with Recorder(path, training.model, training.optimizer, **SMALL | options) as rec:
        training.run(rec, range(N_STEPS))
    return training


def pad(run: Any, flat: Any) -> Any:
    """Lay out a vector as in the store."""
    sizes = [int(np.prod(shape)) for shape in run.spec.shapes]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    shaped = [part.reshape(s) for part, s in zip(parts, run.spec.shapes, strict=True)]
    return run.layout.flatten(dict(zip(run.spec.names, shaped, strict=True)))


def test_rows_hold_the_measured_gradients(tmp_path: Path, device: str):
    training = record(tmp_path / "run", exact=True)
    run = open_run(tmp_path / "run")
    assert run.measurements == ("fixed", "full")
    fixed, full = run.measured("fixed"), run.measured("full")
    steps = [0, 0, 3, 3, 6, 6, 9, 9]
    np.testing.assert_array_equal(fixed.steps.step, steps)
    np.testing.assert_array_equal(fixed.steps.epoch, [s // 4 for s in steps])
    np.testing.assert_array_equal(fixed.steps.iteration, [s % 4 for s in steps])
    np.testing.assert_array_equal(fixed.steps.batch, [100, 101] * 4)
    np.testing.assert_array_equal(full.steps.step, [N_STEPS])
    assert full.n_steps == 1

    rows = [(fixed, i) for i in range(8)] + [(full, 0)]
    for (measured, i), (gradient, parameters) in zip(rows, training.seen, strict=True):
        stored = measured.stored.array("gradient")[i]
        np.testing.assert_array_equal(stored, pad(run, gradient).astype("f4"))
        window = int(measured.stored.array("window")[i])
        x = run.stored.anchors.decode(window, slice(0, run.layout.size)).astype("f8")
        x += measured.stored.array("displacement")[i]
        np.testing.assert_allclose(x, pad(run, parameters), atol=1e-6)
        norm = np.linalg.norm(gradient)
        assert float(measured.steps.grad_norm[i]) == pytest.approx(norm, rel=1e-6)


def test_steps_are_recorded_as_without_measurements(tmp_path: Path, device: str):
    """Measurements between steps change neither training nor the rows of steps."""
    training = record(tmp_path / "measured", updates=True)
    plain = Training()
    with Recorder(tmp_path / "plain", plain.model, plain.optimizer, **SMALL) as rec:
        for step in range(N_STEPS):
            plain.backward(step)
            plain.optimizer.step()
        rec.flush()
    assert torch.equal(
        *(
            nn.utils.parameters_to_vector(t.model.parameters())
            for t in (training, plain)
        )
    )
    ours, theirs = open_run(tmp_path / "measured"), open_run(tmp_path / "plain")
    for name in theirs.stored.document.arrays:
        if name != "scalars":
            np.testing.assert_array_equal(
                ours.stored.array(name)[:], theirs.stored.array(name)[:]
            )
    ours_steps, theirs_steps = ours.steps.load(), theirs.steps.load()
    assert ours_steps.drop_vars("wall_time").identical(
        theirs_steps.drop_vars("wall_time").assign_attrs(location=ours.location)
    )


@pytest.mark.parametrize("basis", [0, 3])
def test_updates_are_what_steps_change(tmp_path: Path, device: str, basis: int):
    training = record(tmp_path / "run", exact=True, updates=True, basis=basis)
    run = open_run(tmp_path / "run")
    update = run.measured("update")
    assert update.n_steps == N_STEPS
    whole = slice(0, run.layout.size)
    for k in range(N_STEPS):
        expected = training.iterates[k + 1] - training.iterates[k]
        # Iterates are float32 numbers of magnitude 1.
        stored = update.stored.array("gradient")[k]
        np.testing.assert_allclose(stored, pad(run, expected), atol=3e-7)
        x = run.stored.anchors.decode(
            int(update.stored.array("window")[k]), whole
        ).astype("f8")
        x += update.stored.array("displacement")[k]
        np.testing.assert_allclose(x, pad(run, training.iterates[k]), atol=1e-6)
    tables, steps = update.steps, run.steps
    same = {
        "grad_sq": "update_sq",
        "grad_dot_displacement": "update_dot_displacement",
        "displacement_sq": "displacement_sq",
        "grad_norm": "update_norm",
    }
    if basis:
        same["displacement_dot_basis"] = "displacement_dot_basis"
    for ours, theirs in same.items():
        np.testing.assert_allclose(tables[ours], steps[theirs], rtol=1e-4, atol=1e-7)
    assert "update_sq" not in tables
    assert "update_norm" not in tables


def test_sketches_are_fresh_in_every_row(tmp_path: Path, device: str):
    """The same vector at the same iterate is sketched with different signs each time."""
    training = Training()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        training.backward(0)
        for name in ("a", "a", "b"):
            recorder.measure(name)
        training.optimizer.step()
    run = open_run(tmp_path / "run")
    signs = [
        *run.measured("a").stored.array("signs")[:],
        *run.measured("b").stored.array("signs")[:],
    ]
    signs += [*run.stored.array("signs")[:]]
    assert len({code.tobytes() for code in signs}) == 4
    numbers = [
        *run.measured("a").stored.sign_numbers,
        *run.measured("b").stored.sign_numbers,
        0,
    ]
    assert len(set(numbers)) == 4
    for code, number in zip(signs, numbers, strict=True):
        scales = run.stored.array("scales")[:1]
        decoded = run.stored.sketch.decode(code[None], scales, np.array([number]))
        gradient = pad(run, training.flat("gradient")).astype("f4")
        folded = run.stored.sketch.fold(gradient, decoded.row_signs[0])
        folded = folded[: decoded.buckets.shape[1]]
        # 256 one-bit signs keep the direction, with an expected cosine of sqrt(2 / pi).
        cosine = (decoded.buckets[0] @ folded) / np.linalg.norm(folded)
        assert cosine / np.linalg.norm(decoded.buckets) > 0.6


def test_a_resumed_recording_equals_an_uninterrupted_one(tmp_path: Path, device: str):
    record(tmp_path / "whole", updates=True)
    for checkpoint in (0, 4, 5, 6):
        record_in_two_parts(tmp_path / f"from-{checkpoint}", checkpoint)
        ours, theirs = (
            open_run(tmp_path / name) for name in (f"from-{checkpoint}", "whole")
        )
        arrays = theirs.stored.document.arrays
        assert ours.stored.document.arrays.keys() == arrays.keys()
        for name in arrays:
            if not name.endswith("scalars"):
                found, expected = (run.stored.array(name)[:] for run in (ours, theirs))
                assert found.tobytes() == expected.tobytes(), (checkpoint, name)
        assert list(problems(ours)) == []


def record_in_two_parts(path: Path, checkpoint: int) -> None:
    """Resume a recording at a checkpoint, after which recorded steps are lost."""
    options = SMALL | {"updates": True}
    training = Training()
    first = Recorder(path, training.model, training.optimizer, **options)
    training.run(first, range(checkpoint), last=False)
    state = {
        "model": {k: v.clone() for k, v in training.model.state_dict().items()},
        "optimizer": pickle.loads(pickle.dumps(training.optimizer.state_dict())),
        "recorder": first.state_dict(),
    }
    training.run(first, range(checkpoint, checkpoint + 3), every=1)
    first.flush()
    leave(first)

    resumed = Training()
    resumed.model.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    with Recorder(
        path,
        resumed.model,
        resumed.optimizer,
        **options,
        resume=state["recorder"],
    ) as recorder:
        resumed.run(recorder, range(checkpoint, N_STEPS))


def test_without_a_state_rows_from_the_step_on_are_forgotten(tmp_path: Path):
    record(tmp_path / "run")
    training = Training()
    options = SMALL | {"resume": True, "step": 6}
    with pytest.warns(UserWarning, match="not the result of step 5"):
        recorder = Recorder(
            tmp_path / "run", training.model, training.optimizer, **options
        )
    with recorder:
        recorder.flush()
        run = open_run(tmp_path / "run")
        np.testing.assert_array_equal(
            run.measured("fixed").stored.step_numbers, [0, 0, 3, 3]
        )
        assert run.measured("full").n_steps == 0


def test_a_measured_run_travels(tmp_path: Path):
    record(tmp_path / "run")
    measured = open_run(tmp_path / "run").measured("fixed")
    again = pickle.loads(pickle.dumps(measured))
    assert (again.group.name, again.n_steps) == ("fixed", 8)
    xr.testing.assert_identical(again.steps.load(), measured.steps.load())
    assert "'fixed'" in repr(again)


def test_a_reader_sees_only_rows_written_before_it_opened(tmp_path: Path):
    training = Training()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        training.run(recorder, range(4), last=False)
        recorder.flush()
        early = pickle.dumps(open_run(tmp_path / "run").measured("fixed"))
        training.run(recorder, range(4, N_STEPS))
    assert pickle.loads(early).n_steps == 4
    assert open_run(tmp_path / "run").measured("fixed").n_steps == 8


@pytest.mark.parametrize("name", ["", "update"])
def test_names_that_are_taken_are_refused(tmp_path: Path, name: str):
    training = Training()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL, updates=True
    ) as recorder:
        with pytest.raises(ValueError, match="cannot be called"):
            recorder.measure(name)
        with pytest.raises(ValueError, match="'grad_norm' is reserved"):
            recorder.measure("x", grad_norm=1.0)
        training.run(recorder, range(2))
    assert open_run(tmp_path / "run").n_steps == 2


def test_an_unknown_measurement_is_named(tmp_path: Path):
    record(tmp_path / "run")
    with pytest.raises(KeyError, match=r"No measurement 'foo'.*\['fixed', 'full'\]"):
        open_run(tmp_path / "run").measured("foo")


def test_rows_are_flushed_with_a_journal(tmp_path: Path):
    """Measurements are committed immediately, because a journal keeps only steps."""
    training = Training()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL, journal=True
    ) as recorder:
        training.run(recorder, range(2), last=False)
        assert open_run(tmp_path / "run").measured("fixed").n_steps == 2


def test_attributes_come_back(tmp_path: Path):
    training = Training()
    attrs = {"lr": 0.1, "name": "a", "list": [1, None, True], "deep": {"x": 1}}
    options = SMALL | {"attrs": attrs}
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **options
    ) as rec:
        training.run(rec, range(2), last=False)
        state = rec.state_dict()
    assert open_run(tmp_path / "run").attrs == attrs
    options["attrs"] = {"lr": 0.2}
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **options, resume=state
    ):
        pass
    assert open_run(tmp_path / "run").attrs == attrs | {"lr": 0.2}
    assert json.loads((tmp_path / "run" / "zarr.json").read_text())


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_attributes_that_json_cannot_hold_are_refused(tmp_path: Path, value: Any):
    training = Training()
    with pytest.raises(TypeError, match="`attrs` must be a mapping that JSON"):
        Recorder(
            tmp_path / "run", training.model, training.optimizer, attrs={"x": value}
        )
    assert not (tmp_path / "run").exists()


def test_a_lost_window_number_is_reported(tmp_path: Path):
    record(tmp_path / "run")
    for chunk in (tmp_path / "run" / "measurements/0/window/c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    run = open_run(tmp_path / "run")
    assert [p.place for p in problems(run)] == ["measurements/0/window/c/0"]
    with (
        pytest.warns(UserWarning, match="measurements/0/window/c/0 is missing"),
        pytest.raises(SchemaError, match="windows of the rows are unknown"),
    ):
        analyzers.path_geometry(run.measured("fixed"))
    # The rows of other measurements are not affected.
    geometry = analyzers.path_geometry(run.measured("full"))
    assert np.isfinite(geometry.distance).all()


def test_the_geometry_of_a_measurement_follows_from_its_vectors(tmp_path: Path):
    training = record(tmp_path / "run", exact=True)
    run = open_run(tmp_path / "run")
    geometry = analyzers.path_geometry(run.measured("fixed")).compute()
    end = training.iterates[-1]
    for i, (gradient, x) in enumerate(training.seen[:8]):
        d = x - end
        expected = gradient @ d / np.linalg.norm(gradient) / np.linalg.norm(d)
        assert float(geometry.gamma[i]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("consolidated", [True, False])
def test_any_reader_of_zarr_opens_a_store_with_measurements(
    tmp_path: Path, consolidated: bool
):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, optimizer, **SMALL) as recorder:
        model(torch.ones(3)).sum().backward()
        recorder.measure("other")
        optimizer.step()
    store = zarr.open_group(
        tmp_path / "run.zarr", mode="r", use_consolidated=consolidated
    )
    tables = store["measurements/0/tables"]
    assert isinstance(tables, zarr.Array)
    assert np.isfinite(tables[0]).any()
    assert not list(problems(open_run(tmp_path / "run.zarr")))


def test_a_measurement_without_gradients_is_not_recorded(tmp_path: Path):
    x = torch.zeros(3)
    with Recorder(tmp_path / "run", {"x": x}, None, **SMALL) as rec:
        with pytest.warns(UserWarning, match="no recorded tensor has a gradient"):
            rec.measure("full")
        with rec.step({"x": torch.ones(3)}):
            x -= 0.1
        x.grad = torch.ones(3)
        rec.measure("full")
    measured = open_run(tmp_path / "run").measured("full")
    np.testing.assert_allclose(measured.steps.grad_norm, [3**0.5], rtol=1e-6)
