"""Test ``analyzers.no_wrong_turns.runs``."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analyzers.no_wrong_turns import runs as trainings
from trajstore.reading.run import Run

BASE: dict[str, Any] = {
    "workload": "cifar-resnet18",
    "data": "true",
    "data_dir": "/data",
    "epochs": 190,
    "batch_size": 256,
    "optimizer": "momentum",
    "lr": 0.01,
    "schedule": "constant",
    "seed": 0,
    "control": "none",
    "full_batch": False,
    "measure_every": 0,
}


def run(n_params: int = 1, **different: Any) -> Any:
    """What is read of a run here."""
    return SimpleNamespace(
        attrs={"training": BASE | different},
        layout=SimpleNamespace(n_params=n_params),
    )


def values(runs: list[Any], factor: str) -> list[Any]:
    return [trainings.training(run)[factor] for run in runs]


def test_sweep_is_of_runs_that_differ_in_one_setting():
    batch_sizes = [run(batch_size=b, lr=b / 1000) for b in (512, 64, 256)]
    others = [
        run(batch_size=128, seed=1),
        run(batch_size=1024, optimizer="adam"),
        run(batch_size=2048, workload="cifar-mlp"),
        run(batch_size=4096, control="random-labels"),
        run(batch_size=8192, full_batch=True),
    ]
    chosen = trainings.sweep([*others, *batch_sizes], "batch_size")
    assert values(chosen, "batch_size") == [64, 256, 512]


def test_sweep_with_most_values_is_chosen():
    few = [run(seed=s, workload="digits-mlp") for s in (1, 1, 2, 2)]
    many = [run(seed=s) for s in (3, 1, 2)]
    assert trainings.sweep([*few, *many], "seed") == [many[1], many[2], many[0]]


def test_settings_that_do_not_matter_may_differ():
    runs = [
        run(epochs=10, data_dir="/a"),
        run(epochs=20, measure_every=100, device="cpu"),
    ]
    assert trainings.sweep(runs, "epochs") == runs


def test_one_value_is_no_sweep():
    assert trainings.sweep([run(), run()], "seed") == []
    assert trainings.sweep([], "seed") == []


def test_optimizers_and_controls_have_an_order():
    runs = [run(optimizer=o) for o in ("adam", "momentum", "sgd")]
    assert values(trainings.sweep(runs, "optimizer"), "optimizer") == [
        "sgd",
        "momentum",
        "adam",
    ]
    names = ("random-walk", "noise-gradients", "none", "label-noise", "random-labels")
    controls = [run(control=c) for c in names]
    assert values(trainings.sweep(controls, "control"), "control") == [
        "none",
        "random-labels",
        "label-noise",
        "noise-gradients",
        "random-walk",
    ]


def test_networks_that_are_solved_stand_for_no_others():
    solved = [run(workload=f"deep-linear-{depth}", seed=depth) for depth in (2, 3, 4)]
    assert trainings.plain_runs(solved) == []
    assert trainings.models(solved) == []
    assert trainings.data_sets([*solved, plain := run()]) == [plain]


def test_learning_rate_is_named_where_it_tells_runs_apart():
    runs = [
        run(optimizer="sgd"),
        *(run(optimizer="adam", lr=lr) for lr in (1e-4, 1e-3)),
    ]
    labels = [trainings.label(r, "optimizer", runs) for r in runs]
    assert labels == ["sgd", "adam, lr 0.0001", "adam, lr 0.001"]


def test_base_run_is_what_the_others_vary():
    base = run()
    runs = [run(seed=1), run(batch_size=64, lr=0.005), base, run(optimizer="adam")]
    assert trainings.base_run(runs) is base


def test_models_are_those_of_the_data_set_with_most():
    names = ("digits-mlp", "cifar-mlp", "cifar-resnet18", "digits-resnet", "cifar-x")
    chosen = trainings.models([run(workload=name) for name in names])
    assert values(chosen, "workload") == ["cifar-mlp", "cifar-resnet18", "cifar-x"]
    assert trainings.models([run(), run(seed=1)]) == []


def test_data_sets_have_one_run_each_and_no_counter_examples():
    names = ("digits-resnet", "digits-resnet", "digits-mlp", "alm", "cifar-mlp")
    chosen = trainings.data_sets([run(workload=name) for name in names])
    assert values(chosen, "workload") == ["cifar-mlp", "digits-resnet"]


def test_mlp_and_resnet_are_trained_alike_and_of_like_size():
    mlp = run(workload="cifar-mlp", n_params=46, optimizer="sgd", seed=3)
    wide = run(workload="cifar-resnet18-2", n_params=44, optimizer="sgd", seed=3)
    others = [
        run(workload="cifar-resnet18-2", n_params=46),
        run(workload="cifar-resnet18-2", n_params=46, seed=3),
        run(workload="cifar-resnet18", n_params=11, optimizer="sgd", seed=3),
        run(workload="cifar-resnet18-2", n_params=46, optimizer="sgd", full_batch=True),
        run(workload="digits-resnet", n_params=46, optimizer="sgd", seed=3),
    ]
    runs = [*others, wide, mlp]
    assert trainings.mlp_and_resnet(runs) == {"mlp": mlp, "resnet": wide}
    assert trainings.mlp_and_resnet(runs[:-1]) == {}
    assert trainings.mlp_and_resnet([others[-1], mlp]) == {}


def test_depths_and_widths_are_read_from_names():
    names = ("152-half", "152", "18", "18-2", "50")
    runs = {n: run(workload=f"imagenet-resnet{n}") for n in names}
    found = trainings.depths(list(runs.values()))
    assert found == [runs["18"], runs["50"], runs["152"]]
    assert trainings.widths(list(runs.values())) == {
        "imagenet-resnet18-2": (runs["18"], runs["18-2"]),
        "imagenet-resnet152-half": (runs["152"], runs["152-half"]),
    }
    assert trainings.depths([runs["18"]]) == []


def test_deep_and_wide_models_are_compared_with_the_standard():
    names = ("digits-resnet-deep", "digits-resnet-wide", "digits-resnet", "digits-mlp")
    deep, wide, standard, mlp = (run(workload=name) for name in names)
    runs = [deep, wide, standard, mlp]
    assert trainings.depths(runs) == [standard, deep]
    assert trainings.widths(runs) == {"digits-resnet-wide": (standard, wide)}


@pytest.mark.parametrize(
    ("data", "note", "title"),
    [
        ("true", "CIFAR-10", "cifar"),
        ("embedded", "", "cifar (embedded data)"),
        ("true", "embedded stand-in: digits", "cifar (embedded data)"),
    ],
)
def test_stand_ins_are_named(data: str, note: str, title: str):
    one = run(data=data)
    one.attrs["data"] = note
    assert trainings.data_title(one) == title


def test_runs_are_described_by_their_workloads():
    runs = [run(), run(seed=1), run(workload="alm")]
    assert trainings.describe(runs) == "3 runs: 1 of alm, 2 of cifar-resnet18"
    assert trainings.describe([]).startswith("no complete run")


def test_runs_are_found_in_directories_below(
    stores: Path, paper_runs: dict[str, Run], tmp_path: Path
):
    found = trainings.find_runs(stores)
    expected = sorted(run.location for run in paper_runs.values())
    assert [run.location for run in found] == expected
    [one] = trainings.find_runs(stores / "sweep" / "base.zarr")
    assert one.location == paper_runs["base"].location


def test_runs_that_say_nothing_of_their_training_are_left_out(
    example_run: Path, tmp_path: Path
):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    assert trainings.find_runs(tmp_path) == []


def test_other_zarr_stores_are_left_out_with_a_warning(stores: Path, tmp_path: Path):
    import zarr

    shutil.copytree(stores / "sweep" / "sm.zarr", tmp_path / "sm.zarr")
    zarr.create_group(tmp_path / "sm.analysis.zarr")
    zarr.create_group(tmp_path / "weather.zarr")
    with pytest.warns(UserWarning, match=r"weather.zarr: not a trajectory store"):
        found = trainings.find_runs(tmp_path)
    assert [Path(run.location).name for run in found] == ["sm.zarr"]


def test_missing_directory_is_one_sentence(tmp_path: Path):
    with pytest.raises(NotADirectoryError, match=r"no directory '.*none' to find runs"):
        trainings.find_runs(tmp_path / "none")
