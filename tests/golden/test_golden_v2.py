"""Later versions read and compute the same numbers from stores of format version 2."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden.cases import Stores
from tests.golden.cases_v2 import CASES, EVERY, RESULTS, STORES
from tests.golden.kept import (
    Kept,
    description,
    is_same_arithmetic,
    kept_results,
    numbers,
)
from tests.golden.test_golden import RTOL, RTOL_ELSEWHERE, tolerance


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("golden"), STORES)


@pytest.fixture(scope="module")
def kept() -> dict[str, Kept]:
    return kept_results(RESULTS)


@pytest.fixture(scope="module")
def rtol() -> float:
    return RTOL if is_same_arithmetic(RESULTS) else RTOL_ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_results_stay_the_same(
    name: str, stores: Stores, kept: dict[str, Kept], rtol: float
):
    result = CASES[name](stores).compute()
    assert description(result) == kept[name].description
    for variable, actual in numbers(result).items():
        expected = kept[name].numbers[variable]
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected, err_msg=variable)
            continue
        finite = np.abs(expected[np.isfinite(expected)])
        atol = tolerance(rtol, name, variable) * finite.max(initial=0.0)
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=atol, equal_nan=True, err_msg=variable
        )


@pytest.mark.parametrize("name", EVERY)
def test_stores_are_protected_and_whole(name: str, kept: dict[str, Kept]):
    described = kept[f"{name}/verified"]
    assert described.numbers["version"] == 2
    assert described.description["problems"]["text"] == ""


def test_the_stores_have_every_feature(kept: dict[str, Kept]):
    def fact(store: str, name: str) -> object:
        return kept[f"{store}/verified"].numbers[name].item()

    assert fact("adamw_sums", "window_folds")
    assert fact("momentum", "energies")
    assert fact("packed", "bits_per_number") == 16
    assert fact("float64", "float64")
    assert fact("float64_exact", "float64")


def test_every_kept_result_has_a_case(kept: dict[str, Kept]):
    assert list(kept) == list(CASES)


def test_golden_files_stay_small():
    size = sum(path.stat().st_size for path in Path(STORES).iterdir())
    assert size < 400_000
