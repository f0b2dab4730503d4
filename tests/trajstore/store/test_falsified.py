"""Test that no falsified store gives wrong values, or none, without a word."""

import json
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
from trajstore import open_run
from trajstore.format.document import parse_document
from trajstore.format.run_spec import SchemaError
from trajstore.reading.verify import _document_problems

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


def changed_texts(text: bytes, every: int) -> Iterator[bytes]:
    """Yield a text with one changed bit, or another digit, at every n-th place."""
    for i in range(0, len(text), every):
        new = {text[i] ^ 1 << k for k in range(8)}
        if text[i : i + 1].isdigit():
            new |= set(b"0123456789")
        for byte in sorted(new - {text[i]}):
            yield text[:i] + bytes([byte]) + text[i + 1 :]


def accepted_roots(store: Store, every: int) -> tuple[int, int]:
    """Count the changes of the root document, and the changes that are accepted."""
    text, n, n_accepted = (store.path / "zarr.json").read_bytes(), 0, 0
    for changed in changed_texts(text, every):
        n += 1
        try:
            parse_document(changed)
        except SchemaError:
            continue
        n_accepted += 1
    return n, n_accepted


def unnoticed_documents(store: Store, every: int) -> tuple[int, list[str]]:
    """Count the changes of other documents, and list those that verify does not report."""
    run, n, unnoticed = open_run(store.path), 0, list[str]()
    for name, array in run.stored.document.arrays.items():
        file, expected = store.path / name / "zarr.json", array.metadata()
        text = file.read_bytes()
        for changed in changed_texts(text, every):
            n += 1
            file.write_bytes(changed)
            if list(_document_problems(run, name, expected)):
                continue
            if json.loads(changed) != json.loads(text):
                unnoticed.append(f"{name}: {changed!r}")
        file.write_bytes(text)
    return n, unnoticed


def test_changed_bits_of_the_root_document_are_refused(store: Store):
    n, n_accepted = accepted_roots(store, every=97)
    assert n > 500
    assert n_accepted == 0


@pytest.mark.slow
def test_every_changed_bit_of_a_document_is_noticed(store: Store):
    assert accepted_roots(store, every=1)[1] == 0
    assert unnoticed_documents(store, every=3)[1] == []


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
