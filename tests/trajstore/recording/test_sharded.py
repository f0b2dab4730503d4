"""Models that ranks share, compared with the same training in one process."""

import json
from pathlib import Path

import numpy as np
import pytest

import analyzers
from trajstore.reading.run import Run, open_run
from trajstore.reading.verify import problems

pytest.importorskip("torch")

from tests.trajstore.recording.warm_process import WarmProcess

N_STEPS = 20


@pytest.fixture(scope="module")
def trained(
    warm_process: WarmProcess, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Directory of the stores of `sharded_training` and the exit codes of its ranks."""
    directory = tmp_path_factory.mktemp("sharded")
    finished = warm_process.run(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from sharded_training import main\n"
        f"main(Path({str(directory)!r}), {N_STEPS})\n"
        "import os; os._exit(0)\n"
    )
    assert finished.code == 0, finished.errors
    return directory


def errors(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.glob("errors-*"))


@pytest.fixture(scope="module")
def stores(trained: Path) -> dict[tuple[str, int], Path]:
    """Stores by kind of division and number of ranks."""
    codes = json.loads((trained / "codes.json").read_text())
    for name in ("one", "two", "four", "less"):
        assert not any(codes[name]), errors(trained / name)
    names = {1: "one", 2: "two", 4: "four"}
    found = {("whole", 1): trained / "one" / "whole.zarr"}
    return found | {
        (kind, n): trained / names[n] / f"{kind}.zarr" for kind, n in DIVIDED
    }


DIVIDED = [
    ("ddp", 2),
    ("fsdp", 2),
    ("joined", 2),
    ("tensor", 2),
    ("fsdp", 4),
    ("both", 4),
    ("pipeline", 2),
]
same_layout = pytest.mark.parametrize("division", DIVIDED[:-1])
every_division = pytest.mark.parametrize("division", DIVIDED)

Stores = dict[tuple[str, int], Path]


def pair(stores: Stores, division: tuple[str, int]) -> tuple[Run, Run]:
    return open_run(stores["whole", 1]), open_run(stores[division])


@same_layout
@pytest.mark.parametrize("name", ["signs", "references/codes", "window", "epoch"])
def test_integers_are_the_same(division: tuple[str, int], name: str, stores: Stores):
    whole, run = pair(stores, division)
    assert run.layout == whole.layout
    np.testing.assert_array_equal(
        run.stored.array(name)[:], whole.stored.array(name)[:]
    )


@every_division
def test_tables_and_scalars_are_the_same(division: tuple[str, int], stores: Stores):
    whole, run = pair(stores, division)
    left_out = ["wall_time", "window"]
    if division[0] == "ddp":
        # Under DistributedDataParallel, this is the loss of one part of the batch.
        left_out.append("loss")
    expected = whole.steps.drop_vars(left_out).load()
    found = run.steps.sel(layer=expected.layer).drop_vars(left_out).load()
    assert set(found) == set(expected)
    for name, values in expected.items():
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5 * scale)


@same_layout
@pytest.mark.parametrize("of", ["gradient", "update", "again"])
def test_gamma_is_the_same(division: tuple[str, int], of: str, stores: Stores):
    runs = pair(stores, division)
    if division[0] == "joined" and of != "gradient":
        pytest.skip("other random signs, without the measurement of updates")
    if of != "gradient":
        runs = runs[0].measured(of), runs[1].measured(of)
    whole, run = (analyzers.path_geometry(r).compute() for r in runs)
    np.testing.assert_allclose(run.gamma, whole.gamma, rtol=0, atol=1e-4)
    np.testing.assert_allclose(run.distance, whole.distance, rtol=1e-4)


def test_gamma_of_a_pipeline_is_within_its_error(stores: Stores):
    """The tensors have another order in a pipeline, and therefore other random signs."""
    whole, run = (
        analyzers.path_geometry(r).compute() for r in pair(stores, ("pipeline", 2))
    )
    before_end = slice(0, N_STEPS - 2)
    error = np.hypot(whole.gamma_stderr, run.gamma_stderr)
    z = ((run.gamma - whole.gamma) / error)[before_end]
    assert 0.5 < z.std() < 1.5
    assert np.abs(z).max() < 4


@every_division
@pytest.mark.parametrize("name", ["final", "snapshots/0"])
def test_iterates_are_the_same(division: tuple[str, int], name: str, stores: Stores):
    whole, run = (
        r.layout.unflatten(r.stored.vector(name, slice(0, r.layout.size)))
        for r in pair(stores, division)
    )
    assert whole.keys() == run.keys()
    for layer, values in whole.items():
        np.testing.assert_allclose(run[layer], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "whole"), [("", "fsdp"), ("-joined", "joined")])
def test_a_rank_that_dies_leaves_a_sound_store(
    kind: str, whole: str, stores: Stores, trained: Path
):
    name = f"dying{kind}"
    codes = json.loads((trained / "codes.json").read_text())[name]
    assert codes[1] == 9
    assert codes[0] != 0
    # The process that is left tells that it lost the other one.
    assert "RuntimeError" in (trained / name / "errors-0").read_text()
    run, expected = (
        open_run(trained / name / f"{name}.zarr"),
        open_run(stores[whole, 2]),
    )
    assert run.status in {"failed", "interrupted"}
    assert not run.has_final
    assert 12 <= run.n_steps <= 13
    assert not list(problems(run))
    known = slice(0, run.n_steps - 1)
    for array in ("signs", "tables"):
        np.testing.assert_array_equal(
            run.stored.array(array)[known], expected.stored.array(array)[known]
        )
    # The update of the last step is that of all ranks, or unknown.
    last = run.steps.update_norm[-1].item()
    assert np.isnan(last) or last == expected.steps.update_norm[run.n_steps - 1]


@pytest.mark.parametrize("step", [9, 12], ids=["within-a-window", "at-a-window"])
def test_resumed_equals_uninterrupted(step: int, stores: Stores, trained: Path):
    assert "have changed since the last optimizer step" not in errors(trained / "two")
    path = trained / "two" / f"resumed-at-{step}.zarr"
    expected, run = open_run(stores["fsdp", 2]), open_run(path)
    for name in ("signs", "scales", "tables", "references/codes", "probe_scales"):
        np.testing.assert_array_equal(
            run.stored.array(name)[:], expected.stored.array(name)[:]
        )
    whole = slice(0, run.layout.size)
    np.testing.assert_array_equal(
        run.stored.vector("final", whole), expected.stored.vector("final", whole)
    )
    again, expected = (r.measured("again") for r in (run, expected))
    np.testing.assert_array_equal(
        again.stored.array("signs")[:], expected.stored.array("signs")[:]
    )


@pytest.mark.parametrize("ranks", ["two", "four"])
def test_another_number_of_ranks_continues_a_recording(
    ranks: str, stores: Stores, trained: Path
):
    """Two ranks save a checkpoint that four load, and the reverse."""
    whole, run = (
        open_run(stores["whole", 1]),
        open_run(trained / ranks / "saved-at-15.zarr"),
    )
    assert (run.n_steps, run.status) == (N_STEPS, "complete")
    for name in ("signs", "references/codes", "window"):
        np.testing.assert_array_equal(
            run.stored.array(name)[:], whole.stored.array(name)[:]
        )
    # Energies are stored in float16.
    close = {"tables": 1e-5, "scales": 1e-5, "references/energies": 1e-3}
    for name, rtol in close.items():
        found, expected = (
            np.asarray(r.stored.array(name)[:], np.float64) for r in (run, whole)
        )
        atol = rtol * float(np.nanmax(np.abs(expected)))
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
    # Those of the window in which the recording was resumed are known.
    assert np.isfinite(found).all()


def test_options_that_divided_models_lack(stores: Stores, trained: Path):
    message = (trained / "two" / "refused.txt").read_text()
    assert (
        "recorded with exact=True or offload=True; leave out these options" in message
    )
