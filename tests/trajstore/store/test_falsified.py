"""Test that no falsified store gives wrong values, or none, without a word."""

import resource
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.trajstore.store.falsified import (
    DAMAGES,
    KINDS,
    Reading,
    Store,
    damaged,
    files_of,
    judge,
    read,
    record,
    small_chunks,
)

N_PER_DAMAGE: Final = 15
"""Number of falsified files by kind of store and of damage; five kinds and 16 damages."""

MAX_SECONDS: Final = 30.0

MAX_MEMORY: Final = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture(scope="module", params=list(KINDS))
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    return record(request.param, tmp_path_factory.mktemp("falsified"))


@pytest.fixture(scope="module")
def clean(store: Store) -> Reading:
    return read(store.path)


def falsify(store: Store, clean: Reading, n: int, seed: int) -> list[str]:
    """Falsify `n` files with every kind of damage; return what was wrong."""
    rng, faults, counts = np.random.default_rng(seed), list[str](), Counter[str]()
    for name, make in DAMAGES.items():
        keys = files_of(store.path)
        tries = 0
        while counts[name] < n and tries < 20 * n:
            tries += 1
            # Documents are few, and chunks many.
            documents = [k for k in keys if "/c/" not in k]
            pool = documents if rng.random() < 0.2 else keys
            key = pool[rng.integers(len(pool))]
            if (damage := make(store, key, rng)) is None:
                continue
            counts[name] += 1
            before = time.monotonic()
            with damaged(store, damage):
                verdict = judge(read(store.path), clean)
            case = f"{store.kind}: {name} of {key} {damage.text}"
            if verdict.silent_wrong:
                faults.append(
                    f"{case}: wrong without a word: {verdict.silent_wrong[:3]}"
                )
            if verdict.silent_missing:
                faults.append(
                    f"{case}: NaN without a word: {verdict.silent_missing[:3]}"
                )
            if verdict.told_wrong:
                faults.append(f"{case}: wrong with a word: {verdict.told_wrong[:3]}")
            if verdict.unverified:
                faults.append(f"{case}: not found by verify")
            if time.monotonic() - before > MAX_SECONDS:
                faults.append(f"{case}: took more than {MAX_SECONDS} s")
    print(store.kind, sum(counts.values()), dict(counts), *faults, sep="\n")
    return faults


def test_the_clean_store_has_no_problem(store: Store, clean: Reading):
    assert clean.found == []
    assert set(clean.words) <= {"interrupted"}


def test_a_few_falsified_files_are_noticed(store: Store, clean: Reading):
    assert falsify(store, clean, n=1, seed=1) == []


@pytest.mark.slow
def test_every_falsified_file_is_noticed(store: Store, clean: Reading):
    assert falsify(store, clean, n=N_PER_DAMAGE, seed=2) == []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MAX_MEMORY
