"""Make environments with uv, install trajstore in each of them, and run the smoke checks.

    python tests/smoke/environments.py lowest newest bare extras --python 3.11 3.12

PyTorch is installed first and alone, because installers would otherwise fetch its CUDA build: give
its requirement with ``--torch``, such as the CPU build of a wheel index in ``UV_INDEX``; without
it, environments have no torch, and the checks of recording are skipped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

EXTRAS = ("analyze", "record", "remote", "train", "curvature", "data")
NEED_TORCH = {"record", "train", "curvature"}

KINDS = ("lowest", "newest", "bare", "extras")


def run(*command: object) -> None:
    """Run a command, and stop at the first failure."""
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True)


def check(kind: str, extras: str, python: str, torch: str, folder: Path) -> None:
    """Install trajstore with the given extras into a new environment, and check it."""
    name = "-".join([kind, extras.replace(",", "-") or "none", python])
    environment = folder / name
    run("uv", "venv", "--clear", "--quiet", "--python", python, environment)
    interpreter = environment / "bin" / "python"
    install = ("uv", "pip", "install", "--quiet", "--python", interpreter)
    if torch and NEED_TORCH & set(extras.split(",")):
        run(*install, torch)
    resolution = "lowest-direct" if kind == "lowest" else "highest"
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    # The version of torch that was installed first stays.
    pinned = [torch] if torch and NEED_TORCH & set(extras.split(",")) else []
    run(*install, "--resolution", resolution, target, *pinned)
    run(interpreter, "-I", ROOT / "tests" / "smoke" / "smoke.py")


def main() -> None:
    """Check the environments that are named in the arguments."""
    parser = argparse.ArgumentParser(description="Check trajstore in new environments.")
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", nargs="+", default=[own])
    parser.add_argument(
        "--torch", default="", help="requirement, such as torch==2.13.0"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-smoke")
    given = parser.parse_args()
    whole = "analyze,remote" + (",train" if given.torch else "")
    for python in given.python:
        for kind in given.kinds:
            chosen = {"bare": ("",), "extras": EXTRAS}.get(kind, (whole,))
            for extras in chosen:
                if given.torch or not NEED_TORCH & set(extras.split(",")):
                    check(kind, extras, python, given.torch, given.folder)


if __name__ == "__main__":
    main()
