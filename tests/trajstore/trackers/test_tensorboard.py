"""Test that TensorBoard reads what the store holds."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorboard")
plt = pytest.importorskip("matplotlib.pyplot")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import analyzers
import trajstore
from tests.trajstore.trackers.lists import train
from trajstore.trackers import Reporter
from trajstore.trackers.tensorboard import TensorBoard


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_events_are_the_steps_of_the_store(tmp_path: Path):
    to = f"tensorboard:{tmp_path / 'logs'}"
    train(tmp_path / "run.zarr", n_steps=20, report_to=Reporter(to=to, every=1))
    run = trajstore.open_run(tmp_path / "run.zarr")
    steps, events = run.steps.compute(), read(tmp_path / "logs")
    cosine = analyzers.zigzag(run, layers=True).cosine.compute()

    def scalars(tag: str) -> tuple[list[int], list[float]]:
        found = events.Scalars(tag)
        return [e.step for e in found], [e.value for e in found]

    for name in ("loss", "lr", "grad_norm", "update_norm", "param_norm"):
        numbers, values = scalars(f"trajectory/{name}")
        assert numbers == list(range(20))
        # TensorBoard keeps float32.
        np.testing.assert_array_equal(values, steps[name].values.astype(np.float32))
    for layer in steps["layer"].values:
        row = steps.sel(layer=layer)
        for name, square in (("grad_norm", "grad_sq"), ("update_norm", "update_sq")):
            _, values = scalars(f"layer_{name}/{layer}")
            expected = np.sqrt(row[square].values.astype(np.float64))
            np.testing.assert_array_equal(values, expected.astype(np.float32))
        numbers, values = scalars(f"layer_adjacent_cosine/{layer}")
        assert numbers == list(range(1, 20))
        expected = cosine.sel(layer=layer).values[1:]
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_later_events_replace_those_of_steps_that_are_taken_again(tmp_path: Path):
    for first, value in ((0, 1.0), (3, 2.0)):
        sink = TensorBoard(tmp_path)
        for step in range(first, 6):
            sink.scalars(step, {"a": value}, time=100.0 * first + step + 1)
        sink.close()
        # Event files are read in the order of their names, which begin with the second.
        [file] = [f for f in tmp_path.iterdir() if not f.name.startswith(("0", "3"))]
        file.rename(tmp_path / f"{first}{file.name}")
    found = [(e.step, e.value) for e in read(tmp_path).Scalars("a")]
    assert found == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300])
def test_any_number_can_be_written(tmp_path: Path, value: float):
    sink = TensorBoard(tmp_path)
    sink.scalars(0, {"a": value}, time=1.0)
    sink.close()
    [event] = read(tmp_path).Scalars("a")
    with np.errstate(over="ignore"):
        np.testing.assert_equal(event.value, np.float32(value))


def test_figures_settings_and_pages_are_written(tmp_path: Path):
    figure = plt.figure(figsize=(3, 2))
    figure.savefig(tmp_path / "a.png", dpi=20)
    plt.close(figure)
    (tmp_path / "page.html").write_text("<html></html>")
    sink = TensorBoard(tmp_path / "logs")
    sink.settings({"lr": 0.1, "data": {"name": "x"}})
    sink.figure("gamma", tmp_path / "a.png", step=7)
    sink.page("explorer", tmp_path / "page.html")
    sink.close()
    events = read(tmp_path / "logs")
    [image] = events.Images("gamma")
    assert (image.step, image.width, image.height) == (7, 60, 40)
    assert image.encoded_image_string == (tmp_path / "a.png").read_bytes()
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert '"lr": 0.1' in texts["settings"]
    assert texts["explorer"] == f"`{tmp_path / 'page.html'}`"


def test_nothing_is_written_without_values(tmp_path: Path):
    sink = TensorBoard(tmp_path / "logs")
    sink.settings({})
    sink.close()
    assert not (tmp_path / "logs").exists()
