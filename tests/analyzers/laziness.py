"""Assert that an analysis computes nothing while it builds its graph."""

import pytest


def fail_if_computed(*_args: object, **_kwargs: object) -> None:
    """Fail the test; serves as a Dask scheduler."""
    pytest.fail("computed while building the graph")
