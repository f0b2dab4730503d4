"""Test the document that names the writer of a store."""

import json

from trajstore.store.holder import (
    holder_document,
    is_damaged,
    new_holder,
    parse_holder,
)


def test_a_holder_is_read_as_it_was_written():
    holder = new_holder()
    document = holder_document(holder)
    assert parse_holder(document) == holder
    assert not is_damaged(document)


def test_documents_of_earlier_versions_have_no_check():
    assert parse_holder(json.dumps({"host": "a", "pid": 7}).encode()) == {
        "host": "a",
        "pid": 7,
    }


def test_every_changed_bit_is_noticed_or_changes_nothing():
    holder = new_holder()
    document = holder_document(holder)
    n_noticed = 0
    for i in range(8 * len(document)):
        changed = bytearray(document)
        changed[i // 8] ^= 1 << i % 8
        found = parse_holder(bytes(changed))
        n_noticed += is_damaged(bytes(changed))
        # A changed name of the check itself leaves all other contents as they are.
        assert not found or holder.items() <= found.items()
    assert n_noticed > 7.5 * len(document)
