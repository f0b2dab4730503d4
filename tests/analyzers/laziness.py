"""Assert that an analysis computes nothing while it builds its graph."""

import pytest


def fail_if_computed(*_args: object, **_kwargs: object) -> None:
    """A Dask scheduler that fails the test."""
    pytest.fail("computed while building the graph")
