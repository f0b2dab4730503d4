"""Save results as JSON below ``benchmarks/results``."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save_results(results: Any, path: str | Path) -> None:
    """Write results to a path, or to the results file with a name such as ``zigzag``."""
    file = path if isinstance(path, Path) else RESULTS / f"{path}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
