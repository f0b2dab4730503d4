"""Test ``analyzers.geometry.command``."""

import io
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import analyzers
import trajstore
from analyzers import cli
from analyzers.geometry import command
from tests.analyzers.geometry.test_null import walked
from trajstore.format.optimizer_facts import GroupFacts

Run = Callable[..., str]


@pytest.fixture
def store(example_run: Path, tmp_path: Path) -> Path:
    """A copy, because results are written next to the store."""
    return Path(shutil.copytree(example_run, tmp_path / "digits.zarr"))


@pytest.fixture(scope="module")
def analysed(
    example_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A store that was analysed with layers, and what was printed."""
    path = tmp_path_factory.mktemp("cli") / "digits.zarr"
    store = Path(shutil.copytree(example_run, path))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "argv", ["traj-analyze", "geometry", str(store), "--layers"])
        cli.main()
    return store, printed.getvalue()


def stored(store: Path, group: str) -> xr.Dataset:
    results = store.with_suffix(".analysis.zarr")
    result: xr.Dataset = xr.open_zarr(results, group=group, consolidated=False)
    return trajstore.index_epochs(result.compute())


def table_rows(output: str, n_epochs: int) -> list[list[str]]:
    lines = [line.split() for line in output.splitlines()]
    [header] = [i for i, line in enumerate(lines) if line[:2] == ["epoch", "gamma"]]
    return lines[header + 1 : header + 1 + n_epochs]


def test_table_shows_the_means_of_every_epoch(analysed: tuple[Path, str]):
    store, output = analysed
    geometry = analyzers.path_geometry(trajstore.open_run(store))
    means = analyzers.epoch_means(geometry).compute()
    for epoch, row in enumerate(table_rows(output, 5)):
        mean = {name: v.item() for name, v in means.isel(epoch=epoch).items()}
        # Printed with three digits or more.
        assert row[0] == str(epoch)
        printed = [float(text.lstrip("±")) for text in row[1:]]
        expected = [
            mean[name]
            for name in (
                "gamma",
                "gamma_stderr",
                "gamma_min",
                "gamma_max",
                "rsi",
                "eb",
                "lolr",
                "distance",
            )
        ]
        np.testing.assert_allclose(printed, expected, rtol=5e-3, atol=6e-4)


def test_table_is_no_wider_than_80_columns(analysed: tuple[Path, str]):
    _, output = analysed
    table = output[output.index("epoch") : output.index("Figures:")]
    assert len(table_rows(output, 5)) == 5
    assert max(map(len, table.splitlines())) <= 80
    # Nothing is cut off.
    assert "…" not in output


def test_layers_have_a_table_of_their_own(analysed: tuple[Path, str]):
    store, output = analysed
    layers = analyzers.path_geometry(trajstore.open_run(store), layers=True)
    middle = analyzers.mid_run(analyzers.epoch_means(layers)).compute()
    table = output[output.index("Layers, mid-run:") : output.index("Figures:")]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    for i, name in enumerate(layers.layer.values):
        _, n, gamma, stderr, *_ = rows[name]
        assert int(n.replace(",", "")) == trajstore.open_run(store).layout.sizes[i]
        np.testing.assert_allclose(float(gamma), middle.gamma[i], atol=6e-5)
        np.testing.assert_allclose(
            float(stderr.lstrip("±")), middle.gamma_stderr[i], atol=6e-5, rtol=0.1
        )


def test_many_layers_are_cut_to_the_largest_and_the_smallest(
    capsys: pytest.CaptureFixture[str],
):
    n = 60
    gamma = np.linspace(-0.3, 0.9, n)
    stderr = np.full(n, 0.01)
    stderr[-1] = 2.0  # unknown
    values = {"gamma": gamma, "gamma_stderr": stderr}
    values |= {name: np.ones(n) for name in ("rsi", "eb", "lolr", "distance")}
    values |= {f"{k}_stderr": np.ones(n) for k in ("rsi", "eb", "lolr", "distance")}
    names = [
        f"model.decoder.layers.{i}.self_attention.projection.weight" for i in range(n)
    ]
    means = xr.Dataset(
        {k: (("epoch", "layer"), v[None]) for k, v in values.items()},
        {"epoch": [0], "layer": names},
    )
    run = SimpleNamespace(layout=SimpleNamespace(sizes=np.full(n, 10**9)))
    title, table, note = command._layer_parts(run, means)  # type: ignore[arg-type]
    assert "10 largest and the 10 smallest gamma of 60" in str(title)
    assert "Layers without a known gamma: 1." in str(note)
    Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert max(map(len, lines)) <= 80
    assert "projection.weight" in lines[1]
    assert "0.8797" in lines[1]
    assert "-0.3000" in lines[-1]


def test_long_table_shows_every_nth_epoch():
    n = 100
    names = ("gamma", "gamma_stderr", "gamma_min", "gamma_max", "rsi", "eb", "lolr")
    variables = {name: ("epoch", np.zeros(n)) for name in (*names, "distance")}
    variables["n_steps"] = ("epoch", np.ones(n, int))
    table = command._table(xr.Dataset(variables, {"epoch": np.arange(n)}))
    assert list(table.columns[0].cells) == [str(e) for e in range(0, n, 3)]
    assert table.caption == "One of every 3 epochs is shown."


def test_results_and_figures_lie_next_to_the_store(
    analysed: tuple[Path, str], example_run: Path
):
    store, _ = analysed
    assert sorted(p.name for p in store.parent.iterdir()) == [
        "digits.analysis.zarr",
        "digits.figures",
        "digits.zarr",
    ]
    run = trajstore.open_run(store)
    for group, layers in (("final", False), ("final-layers", True)):
        expected = analyzers.path_geometry(run, layers=layers)
        xr.testing.assert_identical(stored(store, group), expected.compute())
        figure = store.with_suffix(".figures") / f"{group}.png"
        assert plt.imread(figure).std() > 0.01
    assert plt.get_fignums() == []


def test_store_itself_is_left_as_it_was(analysed: tuple[Path, str], example_run: Path):
    store, _ = analysed
    before = {p.relative_to(example_run): p for p in example_run.rglob("*")}
    after = {p.relative_to(store): p for p in store.rglob("*")}
    assert after.keys() == before.keys()
    for name, path in after.items():
        if path.is_file():
            assert path.read_bytes() == before[name].read_bytes()


def test_printed_code_opens_the_results(analysed: tuple[Path, str]):
    store, output = analysed
    code = output[output.index("import xarray") :]
    source = code.replace("analyzers.epoch_means(g", "result = analyzers.epoch_means(g")
    source = source.replace(
        "analyzers.epoch_means(l", "by_layer = analyzers.epoch_means(l"
    )
    names: dict[str, Any] = {}
    exec(source, names)
    means = analyzers.epoch_means(stored(store, "final"))
    for name in ("gamma", "gamma_stderr"):
        np.testing.assert_allclose(names["result"][name], means[name], rtol=1e-12)
    layers = analyzers.epoch_means(stored(store, "final-layers"))
    np.testing.assert_allclose(names["by_layer"], layers.gamma, rtol=1e-12)


@pytest.mark.parametrize(
    ("argument", "group", "reference"),
    [
        ("middle", "snapshot-middle", "middle"),
        ("3", "epoch-3", 3),
        ("other.zarr", "final%20of%20other.zarr", "other run"),
    ],
    ids=["snapshot", "epoch", "path"],
)
def test_reference_can_be_chosen(
    store: Path, traj_analyze: Run, argument: str, group: str, reference: object
):
    if reference == "other run":
        path = shutil.copytree(store, store.parent / argument)
        argument, reference = str(path), trajstore.open_run(path)
        group = "final-of-other.zarr"
    traj_analyze("geometry", store, "--reference", argument)
    expected = analyzers.path_geometry(
        trajstore.open_run(store),
        reference=reference,  # type: ignore[arg-type]
    )
    xr.testing.assert_identical(stored(store, group), expected.compute())
    assert (store.with_suffix(".figures") / f"{group}.png").exists()


def test_other_directions_can_be_chosen(
    tmp_path: Path, traj_analyze: Run, train_small: Callable[..., Any]
):
    store = tmp_path / "run.zarr"
    train_small(
        partial(trajstore.Recorder, store), updates=True, sketch_bits=256, probes=64
    )
    output = traj_analyze("geometry", store, "--measurement", "update")
    assert "Instead of the gradient: update." in output
    run = trajstore.open_run(store)
    expected = analyzers.path_geometry(run.measured("update"))
    xr.testing.assert_identical(stored(store, "final-of-update"), expected.compute())

    output = traj_analyze("geometry", store, "--weight-decay", "0.1")
    assert "Instead of the gradient: gradient + 0.1 x." in output
    expected = analyzers.path_geometry(run, weight_decay=0.1)
    found = stored(store, "final-of-gradient%20%2B%200.1%20x")
    xr.testing.assert_identical(found, expected.compute())


def test_stores_whose_names_have_dots_do_not_share_results(
    example_run: Path, tmp_path: Path, traj_analyze: Run
):
    shutil.copytree(example_run, tmp_path / "lr0.1")
    traj_analyze("geometry", tmp_path / "lr0.1")
    assert (tmp_path / "lr0.1.analysis.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "warm"], r"No snapshot 'warm' .* it has ['middle']."),
        (["--reference", "77"], "No anchor at the start of epoch 77 "),
        (["--reference", "."], ": not a trajectory store; it has no zarr.json."),
    ],
    ids=["name", "epoch", "directory"],
)
def test_an_unknown_reference_is_reported_in_one_sentence(
    store: Path, refused: Run, arguments: list[str], message: str
):
    printed = refused("geometry", store, *arguments)
    for part in message.split(".*"):
        assert part.strip() in printed
    assert not store.with_suffix(".analysis.zarr").exists()


def test_mean_of_epochs_can_be_the_reference(store: Path, traj_analyze: Run):
    traj_analyze("geometry", store, "--reference", "mean:2:4")
    run = trajstore.open_run(store)
    average = analyzers.average_of_epochs(run, [2, 3, 4])
    expected = analyzers.path_geometry(run, reference=average)
    found = stored(store, "mean-of-epochs-2-4")
    xr.testing.assert_equal(found, expected.compute())
    assert found.attrs["reference"] == "mean of epochs 2-4"


@pytest.mark.parametrize("text", ["mean:4:2", "mean:4", "mean:a:b", "mean:1:2:3"])
def test_a_mean_of_no_epochs_is_reported_in_one_sentence(
    store: Path, refused: Run, text: str
):
    printed = refused("geometry", store, "--reference", text)
    assert printed.startswith(f"traj-analyze: The reference '{text}' is not a mean")


def test_refused_request_leaves_nothing_behind(store: Path, refused: Run):
    refused("geometry", store, "--reference", "warm")
    assert list(store.parent.iterdir()) == [store]


def test_epochs_without_knowledge_of_gamma_are_named():
    errors = ("epoch", [0.1, 0.9, 3.5])
    means = xr.Dataset({"gamma_stderr": errors}, {"epoch": [0, 1, 2]})
    note = command._imprecise(means)
    assert "Gamma is unknown in epoch 2:" in note
    assert "`total_steps`" in note
    assert command._imprecise(means / 4) == ""


def test_steps_without_a_value_are_reported():
    means = xr.Dataset({"n_missing": ("epoch", [0, 2, 0, 1])}, {"epoch": [0, 1, 2, 3]})
    assert "Steps without a value: 3, in epochs 1, 3." in command._missing(means)
    assert command._missing(means * 0) == ""


@pytest.mark.parametrize(
    ("rsi", "eb", "distance"),
    [(1.234e-2, 0.1234, 25.31), (-1.234e-5, 1.234e-5, 1234.5)],
    ids=["moderate", "small"],
)
def test_epoch_takes_one_line(
    capsys: pytest.CaptureFixture[str], rsi: float, eb: float, distance: float
):
    values = {
        "n_steps": 1250,
        "gamma": 0.0123,
        "gamma_stderr": 0.0003,
        "gamma_min": -0.012,
        "gamma_max": 0.046,
        "rsi": rsi,
        "eb": eb,
        "lolr": rsi / eb**2,
        "distance": distance,
    }
    variables = {name: ("epoch", np.full(3, value)) for name, value in values.items()}
    means = xr.Dataset(variables, {"epoch": [98, 99, 100]})
    Console(width=80).print(command._table(means))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("optimizer", "attrs", "expected"),
    [
        ((), {}, "which is larger: analyzers.excess_gamma subtracts it. For other"),
        (
            ("torch.optim.sgd.SGD", 0.0),
            {},
            "larger: analyzers.excess_gamma subtracts it.",
        ),
        (
            ("torch.optim.sgd.SGD", 0.9),
            {},
            "Record a walk through the same optimizer, ",
        ),
        (("torch.optim.adam.Adam", 0.0), {}, "it is no null model of this run."),
        (("torch.optim.adam.Adam", 0.0), {"full_batch": True}, ""),
    ],
)
def test_null_model_of_the_optimizer_is_named(
    optimizer: tuple[Any, ...], attrs: dict[str, Any], expected: str
):
    facts = [
        GroupFacts(name, (0,), ((0, {"momentum": momentum}),))
        for name, momentum in [optimizer][: len(optimizer)]
    ]
    run = walked(np.ones(8), facts)
    run.attrs = attrs
    epochs = xr.Coordinates({"epoch": ("step", np.arange(8) // 2)})
    variables = {
        f"{name}{suffix}": ("step", np.full(8, value))
        for name in ("gamma", "rsi", "eb", "lolr", "distance")
        for suffix, value in (
            ("", 0.01),
            *((f"_{part}", 1e-4) for part in ("stderr", "from_distance", "covariance")),
        )
    }
    geometry = xr.Dataset(variables, epochs | {"step": np.arange(8)}).assign_attrs(
        reference="final", direction="gradient"
    )
    means = analyzers.epoch_means(geometry)
    found = command._walk_line(run, geometry, means)
    assert expected in found
    assert bool(found) == bool(expected)
    if optimizer and optimizer[1]:
        assert found.index("through the same optimizer") < found.index("excess_gamma")


def test_errors_of_all_quantities_are_printed_in_percent(analysed: tuple[Path, str]):
    store, printed = analysed
    _, _, after = printed.partition(
        "Standard errors of these means, in percent of them:"
    )
    rows = [line.split() for line in after.splitlines()[2:]]
    assert rows[0] == ["epoch", "RSI", "EB", "loLR", "distance"]
    means = analyzers.epoch_means(stored(store, "final"))
    for i, row in enumerate(rows[1:6]):
        assert row[0] == str(i)
        for name, cell in zip(("rsi", "eb", "lolr", "distance"), row[1:], strict=True):
            stderr, value = (float(means[n][i]) for n in (f"{name}_stderr", name))
            expected = 100 * stderr / abs(value)
            assert cell == "> 100" or float(cell) == pytest.approx(expected, rel=0.06)


def test_exact_results_have_no_table_of_errors():
    shown = ("rsi", "eb", "lolr", "distance")
    means = xr.Dataset({f"{name}_stderr": ("epoch", [0.0, 0.0]) for name in shown})
    assert command._errors(means) == []
    assert command._percent(0.0, 1.0) == "unknown"
    assert command._percent(-2.0, 0.1) == "5"
    assert command._percent(1.0, 3.0) == "> 100"


@pytest.mark.parametrize(
    ("planned", "status", "is_told"),
    [
        (1000, "complete", True),
        (174, "complete", False),
        (None, "complete", False),
        (1000, "running", False),
    ],
)
def test_steps_that_were_planned_and_not_taken_are_told(
    planned: int | None, status: str, is_told: bool
):
    spec = SimpleNamespace(total_steps=planned)
    run: Any = SimpleNamespace(spec=spec, n_steps=174, status=status)
    found = command._planned(run)
    assert ("total_steps=1,000, and 174 steps" in found) == is_told
    assert bool(found) == is_told
