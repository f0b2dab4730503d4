"""Test ``analyzers.no_wrong_turns.runs``."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trajstore
from analyzers.no_wrong_turns import runs as choose
from analyzers.no_wrong_turns.runs import TrainedRun
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


def run(n_params: int = 1, note: str = "", **different: Any) -> TrainedRun:
    """Return a stub of a run with the attributes that the selections read."""
    stub: Any = SimpleNamespace(
        attrs={"training": BASE | different, "data": note},
        layout=SimpleNamespace(n_params=n_params),
    )
    return choose.trained(stub)


def values(runs: list[TrainedRun], factor: str) -> list[Any]:
    return [run.settings[factor] for run in runs]


def test_runs_of_a_sweep_differ_in_one_setting():
    batch_sizes = [run(batch_size=b, lr=b / 1000) for b in (512, 64, 256)]
    others = [
        run(batch_size=128, seed=1),
        run(batch_size=1024, optimizer="adam"),
        run(batch_size=2048, workload="cifar-mlp"),
        run(batch_size=4096, control="random-labels"),
        run(batch_size=8192, full_batch=True),
    ]
    chosen = choose.sweep([*others, *batch_sizes], "batch_size")
    assert values(chosen, "batch_size") == [64, 256, 512]


def test_sweep_with_most_values_is_chosen():
    few = [run(seed=s, workload="digits-mlp") for s in (1, 1, 2, 2)]
    many = [run(seed=s) for s in (3, 1, 2)]
    assert choose.sweep([*few, *many], "seed") == [many[1], many[2], many[0]]


def test_settings_that_do_not_matter_may_differ():
    runs = [
        run(epochs=10, data_dir="/a"),
        run(epochs=20, measure_every=100, device="cpu"),
    ]
    assert choose.sweep(runs, "epochs") == runs


def test_one_value_is_not_a_sweep():
    assert choose.sweep([run(), run()], "seed") == []
    assert choose.sweep([], "seed") == []


def test_optimizers_and_controls_have_an_order():
    runs = [run(optimizer=o) for o in ("adam", "momentum", "sgd")]
    assert values(choose.sweep(runs, "optimizer"), "optimizer") == [
        "sgd",
        "momentum",
        "adam",
    ]
    names = ("random-walk", "noise-gradients", "none", "label-noise", "random-labels")
    controls = [run(control=c) for c in names]
    assert values(choose.sweep(controls, "control"), "control") == [
        "none",
        "random-labels",
        "label-noise",
        "noise-gradients",
        "random-walk",
    ]


def test_deep_linear_networks_do_not_represent_other_models():
    solved = [run(workload=f"deep-linear-{depth}", seed=depth) for depth in (2, 3, 4)]
    assert choose.plain_runs(solved) == []
    assert choose.models(solved) == []
    assert choose.data_sets([*solved, plain := run()]) == [plain]


def test_learning_rate_is_named_where_it_tells_runs_apart():
    runs = [
        run(optimizer="sgd"),
        *(run(optimizer="adam", lr=lr) for lr in (1e-4, 1e-3)),
    ]
    labels = [label for label, _ in choose.labelled_sweep(runs, "optimizer")]
    assert labels == ["sgd", "adam, lr 0.0001", "adam, lr 0.001"]


def test_base_run_is_the_run_that_the_others_vary():
    base = run()
    runs = [run(seed=1), run(batch_size=64, lr=0.005), base, run(optimizer="adam")]
    assert choose.base_run(runs) is base


def test_models_belong_to_the_data_set_with_most_workloads():
    names = ("digits-mlp", "cifar-mlp", "cifar-resnet18", "digits-resnet", "cifar-x")
    chosen = choose.models([run(workload=name) for name in names])
    assert values(chosen, "workload") == ["cifar-mlp", "cifar-resnet18", "cifar-x"]
    assert choose.models([run(), run(seed=1)]) == []


def test_data_sets_have_one_run_each_and_no_counter_examples():
    names = ("digits-resnet", "digits-resnet", "digits-mlp", "alm", "cifar-mlp")
    chosen = choose.data_sets([run(workload=name) for name in names])
    assert values(chosen, "workload") == ["cifar-mlp", "digits-resnet"]


def test_mlp_and_resnet_are_similar_in_training_and_size():
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
    assert choose.mlp_and_resnet(runs) == {"mlp": mlp, "resnet": wide}
    assert choose.mlp_and_resnet(runs[:-1]) == {}
    assert choose.mlp_and_resnet([others[-1], mlp]) == {}


def test_depths_and_widths_are_read_from_names():
    names = ("152-half", "152", "18", "18-2", "50")
    runs = {n: run(workload=f"imagenet-resnet{n}") for n in names}
    found = choose.depths(list(runs.values()))
    assert found == [runs["18"], runs["50"], runs["152"]]
    assert choose.widths(list(runs.values())) == {
        "imagenet-resnet18-2": (runs["18"], runs["18-2"]),
        "imagenet-resnet152-half": (runs["152"], runs["152-half"]),
    }
    assert choose.depths([runs["18"]]) == []


def test_deep_and_wide_models_are_compared_with_the_standard():
    names = ("digits-resnet-deep", "digits-resnet-wide", "digits-resnet", "digits-mlp")
    deep, wide, standard, mlp = (run(workload=name) for name in names)
    runs = [deep, wide, standard, mlp]
    assert choose.depths(runs) == [standard, deep]
    assert choose.widths(runs) == {"digits-resnet-wide": (standard, wide)}


@pytest.mark.parametrize(
    ("data", "note", "title"),
    [
        ("true", "CIFAR-10", "cifar"),
        ("embedded", "", "cifar (embedded data)"),
        ("true", "embedded stand-in: digits", "cifar (embedded data)"),
    ],
)
def test_stand_ins_are_named(data: str, note: str, title: str):
    assert run(note=note, data=data).title == title


def test_runs_are_described_by_their_workloads():
    runs = [run(), run(seed=1), run(workload="alm")]
    assert choose.describe(runs) == "3 runs: 1 of alm, 2 of cifar-resnet18"
    assert choose.describe([]).startswith("no complete run")


def test_runs_are_found_in_directories_below(
    stores: Path, paper_runs: dict[str, Run], tmp_path: Path
):
    expected = sorted(run.location for run in paper_runs.values())
    assert [found.run.location for found in choose.find_runs(stores)] == expected
    [one] = choose.find_runs(stores / "sweep" / "base.zarr")
    assert one.run.location == paper_runs["base"].location


def test_runs_without_training_settings_are_left_out(example_run: Path, tmp_path: Path):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    assert choose.find_runs(tmp_path) == []


@pytest.mark.parametrize(
    "workload", ["<script>x</script>", "$\\frac$", "[a](b)", "\x1b[2J"]
)
def test_settings_with_markup_are_left_out_with_a_warning(
    tmp_path: Path, workload: str
):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"workload": workload, "data": "embedded", "control": "none"}
    options: Any = {"attrs": {"training": settings}, "steps_per_epoch": 2}
    with trajstore.Recorder(tmp_path / "run.zarr", model, optimizer, **options):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(2)).sum().backward()
            optimizer.step()
    with pytest.warns(UserWarning, match="are not those of traj-train. It is left out"):
        assert choose.find_runs(tmp_path) == []


def test_other_zarr_stores_are_left_out_with_a_warning(stores: Path, tmp_path: Path):
    import zarr

    shutil.copytree(stores / "sweep" / "sm.zarr", tmp_path / "sm.zarr")
    zarr.create_group(tmp_path / "sm.analysis.zarr")
    zarr.create_group(tmp_path / "weather.zarr")
    with pytest.warns(UserWarning, match=r"weather.zarr: not a trajectory store"):
        found = choose.find_runs(tmp_path)
    assert [Path(one.run.location).name for one in found] == ["sm.zarr"]


def test_a_missing_directory_is_reported_in_one_sentence(tmp_path: Path):
    with pytest.raises(NotADirectoryError, match=r"no directory '.*none' to find runs"):
        choose.find_runs(tmp_path / "none")
