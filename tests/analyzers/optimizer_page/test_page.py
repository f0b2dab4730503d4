"""The page that compares optimizers, from tiny runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from analyzers.no_wrong_turns.runs import find_runs
from analyzers.optimizer_page.command import optimizers
from analyzers.optimizer_page.measure import compare_optimizers, smallest_pair
from analyzers.optimizer_page.page import write_page
from tests.train.small_workloads import truncate
from train.commands import replay
from train.protocols.record import record
from train.workloads.catalogue import WORKLOADS


@pytest.fixture(scope="module", name="stores")
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Record two optimizers with two seeds each, with losses at the end of each run."""
    directory = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        truncate(patch, "digits-cnn", 64)
        settings = replace(
            WORKLOADS["digits-cnn"].settings,
            width=4,
            epochs=6,
            batch_size=16,
            record_samples=True,
            sharpness_every=6,
            sharpness_examples=16,
        )
        rates: dict[Any, float] = {"adam": 0.01, "sgd": 0.1}
        for optimizer, lr in rates.items():
            for seed in (0, 1):
                path = directory / f"{optimizer}-{seed}.zarr"
                training = replace(settings, optimizer=optimizer, lr=lr, seed=seed)
                record(training, path, exact=True)
                replay(str(path))
        yield directory


def test_runs_are_grouped_by_optimizer(stores: Path):
    compared = compare_optimizers(find_runs(stores))
    assert {name: len(runs) for name, runs in compared.runs.items()} == {
        "sgd": 2,
        "adam": 2,
    }
    assert list(compared.runs) == ["sgd", "adam"]
    for name, of_optimizers in compared.numbers.items():
        for number in of_optimizers.values():
            assert number.value == number.value, name
    # A recorded pair is exact, apart from rounding.
    [run, *_] = compared.runs["sgd"]
    assert smallest_pair(run).stderr < 1e-3


def test_the_page_has_a_figure_a_table_and_verdicts(stores: Path, tmp_path: Path):
    page, _ = write_page(find_runs(stores), tmp_path)
    text = page.read_text()
    [image] = re.findall(r"!\[.*\]\((.*)\)", text)
    assert 5_000 < (tmp_path / image).stat().st_size < 120_000
    assert "| | sgd | adam |" in text
    assert "Learning rates: sgd 0.1, adam 0.01." in text
    assert text.count("| **") >= 6
    assert "means over 2 seeds" in text


def test_one_optimizer_is_refused(stores: Path):
    runs = [run for run in find_runs(stores) if run.settings["optimizer"] == "sgd"]
    with pytest.raises(ValueError, match=r"at least two optimizers .* found none"):
        compare_optimizers(runs)


def test_the_command_prints_numbers_and_verdicts_for_programs(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    optimizers(stores=stores, out=tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == str(tmp_path / "optimizers.md")
    assert found["numbers"]["gamma"]["sgd"]["stderr"] > 0
    verdicts = {statement["verdict"] for statement in found["statements"]}
    assert verdicts <= {"supported", "contradicted", "inconclusive"}
