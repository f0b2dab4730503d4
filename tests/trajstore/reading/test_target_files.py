"""Test that files of tensors are targets."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trajstore.reading import test_target
from tests.trajstore.reading.test_target import SIZE, flat, values, write_run
from trajstore import Run, parameters_at
from trajstore.reading.results import target_slug
from trajstore.reading.target import find_target, read_target

WARM: dict[str, Any] = test_target.WARM


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("files") / "run.zarr", final=WARM)


def in_torch(path: Path, wrapped: str | None = None) -> Path:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in WARM.items()}
    state: dict[str, Any] = tensors | {"running_mean": torch.ones(7)}
    torch.save({wrapped: state, "step": 3} if wrapped else state, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "pt", "pth", "checkpoint"])
def test_a_file_of_tensors_is_a_target(run: Run, tmp_path: Path, kind: str):
    if kind == "npz":
        path = tmp_path / "best.npz"
        np.savez(path, **WARM, other=np.ones(3))
    elif kind == "checkpoint":
        path = in_torch(tmp_path / "best.pt", wrapped="model")
    else:
        path = in_torch(tmp_path / f"best.{kind}")
    target = read_target(str(path), run)
    for found in (target, find_target(run, str(path)), find_target(run, path)):
        assert found.label == f"file {path.name}"  # type: ignore[union-attr]
        np.testing.assert_array_equal(values(found, SIZE), flat(WARM), strict=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(parameters_at(run, path)["bias"], WARM["bias"])


def test_names_of_files_are_harmless_in_paths_of_results():
    assert target_slug("file best $x$.pt") == "file-best%20%24x%24.pt"


def test_another_file_of_the_name_is_another_target(run: Run, tmp_path: Path):
    path = tmp_path / "best.npz"
    np.savez(path, **WARM)
    first = find_target(run, path).identity
    np.savez(path, **WARM | {"bias": WARM["bias"] + 1})
    assert find_target(run, path).identity != first


def test_a_snapshot_of_the_name_takes_precedence(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    np.savez("best.npz", **{k: v + 1 for k, v in WARM.items()})
    run = write_run(tmp_path / "named.zarr", snapshots={"best.npz": (0, WARM)})
    assert find_target(run, "best.npz").label == "snapshot best.npz"
    assert read_target("best.npz", run) == "best.npz"


def test_files_that_do_not_fit_say_why(run: Run, tmp_path: Path):
    path = tmp_path / "other.npz"
    np.savez(path, weight=np.ones((2, 2)))
    with pytest.raises(
        ValueError, match=r"(?s)no target for .*bias: missing.*must hold"
    ):
        find_target(run, path)


class Evil:
    """An object whose unpickling runs a function."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("executed",)


@pytest.mark.parametrize("ending", ["npz", "pt"])
def test_nothing_in_a_file_is_executed(run: Run, tmp_path: Path, ending: str):
    if ending == "pt":
        pytest.importorskip("torch")
    path = tmp_path / f"evil.{ending}"
    path.write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
        find_target(run, path)


def test_a_file_without_a_mapping_is_refused(run: Run, tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.save(torch.ones(3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds Tensor, expected a mapping"):
        find_target(run, tmp_path / "a.pt")
