"""Record training codes of others on small data, and compare with plain and exact runs.

``make public-codes`` installs the packages and runs all codes that the package index serves;
``python benchmarks/public_codes NAME ...`` runs the codes of these distributions. With the
environment variable ``CHECKOUTS``, a directory of clones named like their repositories, the
codes of these repositories are run too.
Figures go to ``benchmarks/results/public_codes.json``.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import checkouts
import packages
import torch
from harness import Code, compare
from rich.console import Console
from rich.progress import track

CODES = [*packages.CODES, *checkouts.CODES]
RESULTS = Path(__file__).parent.parent / "results" / "public_codes.json"


def main() -> None:
    """Run the chosen codes, and keep the figures of all others."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    at_hand = CODES if os.environ.get("CHECKOUTS") else packages.CODES
    names = sys.argv[1:]
    chosen = [code for code in at_hand if not names or code.source in names]
    failed = []
    console = Console(stderr=True)
    for code in track(chosen, description="training", console=console):
        try:
            with tempfile.TemporaryDirectory() as directory:
                figures = compare(code, Path(directory))._asdict()
        except Exception as error:  # noqa: BLE001  # the other codes are still run
            failed.append(f"{code.name}: {type(error).__name__}: {error}")
            continue
        results[code.name] = {
            "source": code.source,
            "version": version_of(code),
            "lines": code.lines,
            **figures,
        }
    names = [code.name for code in CODES]
    ordered = {name: results[name] for name in names if name in results}
    ordered |= results
    RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")
    changed = [name for name, figures in results.items() if not figures["same_bits"]]
    for problem in (*failed, *(f"{name}: recording changed bits" for name in changed)):
        console.print(problem, style="red", markup=False, soft_wrap=True)
    sys.exit(bool(failed or changed))


def version_of(code: Code) -> str:
    """Return the version of a distribution, or the commit of a checkout."""
    if "/" not in code.source:
        return version(code.source)
    directory = checkouts.CHECKOUTS / code.source.partition("/")[2]
    command = ["git", "-C", str(directory), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
