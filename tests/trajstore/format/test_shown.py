"""Test ``trajstore.format.shown``."""

from trajstore.format.shown import shown


def test_characters_that_are_not_printable_become_escapes():
    assert shown("a\x1b[31m\x9b\u202e\ud800\n🙂é") == r"a\x1b[31m\x9b\u202e\ud800\n🙂é"


def test_kept_characters_stay():
    assert shown("a\n\x1b\t", keep="\n\t") == "a\n\\x1b\t"
