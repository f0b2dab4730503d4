"""Fixtures that the tests of recordings share."""

from collections.abc import Iterator

import pytest

from tests.trajstore.recording.warm_process import WarmProcess


@pytest.fixture(scope="session")
def warm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """A process that starts programs without importing torch again."""
    process = WarmProcess(tmp_path_factory.mktemp("warm-process"))
    yield process
    process.close()
