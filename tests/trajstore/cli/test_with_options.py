"""Test that messages of commands name options instead of arguments."""

from typing import Any

import pytest

from trajstore.cli.command_line import with_options


def command(store: str, *, reference: str = "final", min_gap: float = 0.1) -> Any:
    """A command with options of two words."""


CASES = {
    "pass `reference`": "pass --reference",
    "Use reference=3, the last epoch": "Use --reference 3, the last epoch",
    "`min_gap` must be positive": "--min-gap must be positive",
    "run f(reference=3)": "run f(reference=3)",
    "`store` and `other` stay": "`store` and `other` stay",
    "difference=3 and reference = 3": "difference=3 and reference = 3",
}


@pytest.mark.parametrize(("text", "expected"), CASES.items())
def test_arguments_become_options(text: str, expected: str):
    assert with_options(text, command) == expected
    assert with_options(text, None) == text
