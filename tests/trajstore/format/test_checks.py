"""Test lists of checks, and sealed documents."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajstore.format import checks as module
from trajstore.format.arrays import ArraySpec, StoredArray
from trajstore.format.checks import (
    CheckList,
    LostChecksError,
    RootChecks,
    check_of,
    is_sealed,
    open_sizes,
    seal,
    seal_is_intact,
)
from trajstore.format.run_spec import SchemaError

SEGMENT = 4


@pytest.fixture(autouse=True, scope="module")
def _small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEGMENT", SEGMENT)
        yield


def rows(n: int, n_last: int = 1) -> StoredArray:
    """Return an array of `n` rows, whose rows fill `n_last` chunks each."""
    spec = ArraySpec(
        dims=("step", "x"), dtype="int8", inner=(n_last,), chunk=(1, 1), code="none"
    )
    return StoredArray(spec, n)


def reopened(written: CheckList, files: dict[str, bytes], n_last: int) -> CheckList:
    """Return the list that a reader decodes from a root document."""
    array = rows(len(written) // n_last, n_last)
    stored = RootChecks({"x": array}, {"x": written.text()}, {}).of("x")
    assert stored is not None
    return CheckList("x", files.__getitem__, n_last=n_last, levels=stored.open)


@settings(max_examples=60)
@given(
    n_last=st.integers(1, 5),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["extend", "replace", "truncate"]), st.integers(0, 40)
        ),
        max_size=8,
    ),
)
def test_a_list_reads_back_after_every_commit(
    n_last: int, changes: list[tuple[str, int]]
):
    files: dict[str, bytes] = {}
    written = CheckList("x", files.__getitem__, n_last=n_last)
    expected, numbers = list[int](), iter(range(1, 10_000))
    for change, n in changes:
        if change == "extend":
            new = [next(numbers) for _ in range(n * n_last)]
            written.extend(new)
            expected += new
        elif change == "replace" and expected:
            new = [next(numbers) for _ in range(n_last)]
            written.replace_last(new)
            expected[-n_last:] = new
        elif change == "truncate":
            n_kept = min(n * n_last, len(expected))
            written.truncate(n_kept)
            del expected[n_kept:]
        files |= written.seal()
        written.written()
        assert [written[i] for i in range(len(written))] == expected
        found = reopened(written, files, n_last)
        assert [found[i] for i in range(len(found))] == expected


def test_the_root_document_holds_few_of_many_checks():
    files: dict[str, bytes] = {}
    written = CheckList("x", files.__getitem__, n_last=3)
    for i in range(5000):
        written.extend([i])
        files |= written.seal()
    assert len(written) == sum(
        SEGMENT**k * n for k, n in enumerate(open_sizes(5000, 3))
    )
    assert sum(open_sizes(5000, 3)) < 3 + 7 * SEGMENT
    assert len(written.text()) < 200


@pytest.mark.parametrize("kept", [None, 0, 15])
def test_lost_segments_are_named(kept: int | None):
    files: dict[str, bytes] = {}
    written = CheckList("x", files.__getitem__, n_last=1)
    written.extend(range(30))
    files |= written.seal()
    [key] = [key for key in files if key.startswith("x/checks/0/2-")]
    damaged = dict.fromkeys(files, b"") if kept is None else files.copy()
    damaged[key] = b"" if kept is None else files[key][:kept]
    found = CheckList(
        "x",
        damaged.__getitem__,
        n_last=1,
        levels=[np.array(x) for x in written._levels],
    )
    with pytest.raises(LostChecksError, match="x/checks/") as error:
        found[2 * SEGMENT]
    assert (error.value.key == key) == (kept is not None)
    assert found[29] == 29


@pytest.mark.parametrize("text", [None, 3, "", "AAAA", "AAAAAAAAAAA=A", "!!!!!!!!!!!="])
def test_checks_of_another_number_are_refused(text: object):
    with pytest.raises(SchemaError, match=r"checks: x: "):
        RootChecks({"x": rows(2)}, {"x": text}, {}).of("x")


def test_a_check_can_be_extended():
    values = np.random.default_rng(0).random((10, 3))
    for n in range(11):
        assert check_of(values[n:], check_of(values[:n])) == check_of(values)
    assert check_of(np.array([3], "f4")) != check_of(np.array([3], "f8"))


DOCUMENT = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {"format_version": 2, "spec": {"seed": 0}},
}


def test_any_changed_byte_breaks_the_seal():
    text = seal(DOCUMENT)
    assert is_sealed(text)
    assert seal_is_intact(text)
    attributes = json.loads(text)["attributes"]
    assert attributes.pop("checksum") == text.split(b'"')[11].decode()
    assert {**json.loads(text), "attributes": attributes} == DOCUMENT
    for i in range(len(text)):
        for byte in {text[i] ^ 1 << k for k in range(8)} | set(b"0123456789"):
            changed = text[:i] + bytes([byte]) + text[i + 1 :]
            if changed != text:
                assert not (is_sealed(changed) and seal_is_intact(changed))
        assert not seal_is_intact(text[:i])
