"""Test ``analyzers.no_wrong_turns.claims.engine`` on recorded runs."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from analyzers import path_geometry
from analyzers.no_wrong_turns.claims import engine
from analyzers.no_wrong_turns.claims.engine import Finding, findings
from analyzers.no_wrong_turns.claims.table import CLAIMS
from analyzers.no_wrong_turns.runs import TrainedRun
from trajstore.reading.run import Run


@pytest.fixture(scope="module")
def found(trained_runs: dict[str, TrainedRun]) -> list[Finding]:
    return findings(list(trained_runs.values()))


def of(found: list[Finding], words: str) -> Finding:
    [finding] = [finding for finding in found if words in finding.claim]
    return finding


def middle_gamma(run: Run) -> float:
    """Return the mean of gamma over the middle half of the epochs."""
    gamma = path_geometry(run).gamma.compute()
    first, stop = run.n_epochs // 4, 3 * run.n_epochs // 4
    return float(
        gamma[(run.stored.epochs >= first) & (run.stored.epochs < stop)].mean()
    )


def test_numbers_are_the_mid_run_means(
    found: list[Finding], paper_runs: dict[str, Run]
):
    numbers = of(found, "grows with the batch size").numbers
    for size, name in ((4, "batch-4"), (16, "base"), (64, "batch-64")):
        assert f"{size}: {middle_gamma(paper_runs[name]):.3g} ± " in numbers
    assert numbers.startswith("shapes-resnet: ")


def test_distance_from_the_start_equals_the_distance_of_the_first_step(
    found: list[Finding], paper_runs: dict[str, Run]
):
    numbers = of(found, "Adam ends further").numbers
    for name, run in (("adam", "adam"), ("momentum", "base"), ("sgd", "sgd")):
        distance = float(path_geometry(paper_runs[run]).distance[0])
        assert f"{name}: {distance:.3g} ± " in numbers


def test_errors_of_comparisons_hold_the_spread_over_seeds(
    found: list[Finding],
    paper_runs: dict[str, Run],
    trained_runs: dict[str, TrainedRun],
):
    seeds = [middle_gamma(paper_runs[name]) for name in ("base", "seed-1", "seed-2")]
    spread = np.std(seeds, ddof=1) / np.mean(seeds) * seeds[0]
    # The standard error is written with one digit.
    assert stderr_of(found) >= 0.9 * spread
    agree = of(found, "gamma depends little on the seed").numbers
    assert f"standard deviation {np.std(seeds, ddof=1):.3g} ± " in agree
    alone = findings([trained_runs[name] for name in ("batch-4", "base", "batch-64")])
    assert stderr_of(alone) < 0.9 * spread


def stderr_of(found: list[Finding]) -> float:
    text = of(found, "grows with the batch size").numbers.split("16: ")[1]
    return float(text.split(" ± ")[1].split(",")[0])


def test_batches_of_noisy_least_squares_behave_as_stated(found: list[Finding]):
    assert of(found, "grows with the batch size").verdict == "supported"


def test_every_statement_has_a_figure_and_numbers(found: list[Finding]):
    assert len({finding.claim for finding in found}) == len(found)
    for finding in found:
        assert finding.verdict in {"supported", "contradicted", "inconclusive"}
        assert finding.numbers.endswith(".")


def test_statements_without_runs_say_what_they_need(
    trained_runs: dict[str, TrainedRun],
):
    alone = findings([trained_runs["base"]])
    with_all = findings([trained_runs["base"], trained_runs["sm"]])
    assert len(alone) == len(with_all) == len(findings([]))
    batch = of(alone, "grows with the batch size")
    assert batch.verdict == "inconclusive"
    assert batch.numbers == "Needs runs that differ in the batch size."
    assert all(f.numbers.startswith("Needs ") for f in findings([]))
    assert of(alone, "almost no step").numbers.startswith("Shares: shapes-resnet: ")


@pytest.mark.parametrize(
    ("stderr", "expected"), [(0.1, "supported"), (0.3, "inconclusive")]
)
def test_support_that_errors_hide_is_inconclusive(
    trained_runs: dict[str, TrainedRun],
    geometry_of: Callable[..., xr.Dataset],
    stderr: float,
    expected: str,
):
    [claim] = [claim for claim in CLAIMS if "almost no step" in claim.text]
    geometry = geometry_of(np.full((8, 200), 0.5), stderr=stderr)
    found = engine._finding(claim, [trained_runs["base"]], lambda _: geometry)
    assert found.verdict == expected
