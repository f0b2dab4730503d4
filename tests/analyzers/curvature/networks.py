"""Networks trained and recorded for slow tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trajstore.reading.run import Run, open_run


def record_network(path: Path, name: str, **changes: Any) -> Run:
    """Train a workload with changed settings and return its run."""
    pytest.importorskip("sklearn")
    from train.protocols.record import record
    from train.workloads.catalogue import settings_of

    options: dict[str, Any] = {"sketch_bits": 1024, "probes": 256}
    if name == "digits-tanh":
        options["reference_every"] = 50
    record(replace(settings_of(name), **changes), path, **options)
    return open_run(path)
