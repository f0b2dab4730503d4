"""Test ``analyzers._renamed``."""

import pytest

from analyzers._renamed import renamed


def new(x: int, *, y: int = 1) -> int:
    return x + y


def test_an_old_name_works_and_warns_of_the_new_one():
    old = renamed(new, "package.old")
    message = r"package\.old is deprecated; use package\.new\."
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert old(2, y=3) == 5
    assert caught[0].filename == __file__
