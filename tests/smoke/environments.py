"""Make environments, install trajstore in each of them with pip, and run the smoke checks.

    python tests/smoke/environments.py lowest newest bare extras --python 3.11 3.12

uv finds or fetches the interpreters, and the lowest versions. PyTorch is installed first and alone,
once for each interpreter, and hard links take it into every environment that needs it: give its
requirement with ``--torch``; an index of CPU builds belongs in ``PIP_EXTRA_INDEX_URL`` and
``UV_INDEX``. Without ``--torch``, environments have no torch, and the checks of recording are
skipped. ``--record`` adds what was installed to ``benchmarks/results/installations.json``, from
which docs/compatibility.md is written.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "installations.json"

NEED_TORCH = ("record", "train", "curvature", "optimizers", "integrations")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
EXTRAS = ("analyze", "remote", "data", *TRACKERS, "triton", *NEED_TORCH)

KINDS = ("lowest", "newest", "bare", "extras")

SHOWN = ("torch", "numba", "numpy", "xarray", "zarr", "dask", "matplotlib", "scipy")
"""Packages whose versions are recorded."""

# Most of the modules that would be compiled are never imported.
INSTALL = ("-m", "pip", "install", "--quiet", "--no-compile")

# Variables such as PYTHONPATH would let the environments see this source tree.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA"))}


def run(*command: object) -> str:
    """Run a command, stop at the first failure, and return what it printed."""
    print("+", *command, flush=True)
    done = subprocess.run(
        list(map(str, command)), check=False, text=True, capture_output=True, env=CLEAN
    )
    print(done.stdout + done.stderr, flush=True)
    done.check_returncode()
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this source tree."""
    run("uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, python: str, torch: str) -> Path:
    """Make an environment, with PyTorch if a requirement is given, and return its interpreter."""
    interpreter = folder / "bin" / "python"
    if not torch:
        run("uv", "venv", "--clear", "--quiet", "--seed", "--python", python, folder)
        return interpreter
    # PyTorch is several gigabytes, so it is installed once, and linked.
    base = folder.parent / f"torch-{python}"
    if not base.exists():
        made = make_environment(base, python, "")
        run(made, *INSTALL, torch)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True, copy_function=os.link)
    return interpreter


def check(
    wheel: Path, kind: str, extras: str, python: str, torch: str, folder: Path
) -> dict[str, str]:
    """Install the wheel with these extras into a new environment, check it, return versions."""
    environment = folder / "-".join([kind, extras.replace(",", "-") or "none", python])
    # The version of torch that is installed first stays.
    pinned = [torch] if torch and set(NEED_TORCH) & set(extras.split(",")) else []
    interpreter = make_environment(environment, python, torch if pinned else "")
    install = (interpreter, *INSTALL)
    if kind == "lowest":
        # The lowest version of a dependency is the lowest that has a wheel for the interpreter.
        lowest = ("--resolution", "lowest-direct", "--only-binary", ":all:")
        named = [word for extra in extras.split(",") for word in ("--extra", extra)]
        versions, torches = environment / "lowest.txt", environment / "torch.txt"
        torches.write_text("\n".join(pinned))
        run(
            *("uv", "pip", "compile", "--quiet", "--python", interpreter, *lowest),
            *(ROOT / "pyproject.toml", *named, "-c", torches, "-o", versions),
        )
        run(*install, "--only-binary", ":all:", "-r", versions)
        run(*install, "--no-deps", wheel)
    else:
        run(*install, f"trajstore[{extras}] @ {wheel.as_uri()}", *pinned)
    run(interpreter, "-I", ROOT / "tests" / "smoke" / "smoke.py", *extras.split(","))
    listed = run(interpreter, "-m", "pip", "list", "--format", "json")
    versions_of = {each["name"]: each["version"] for each in json.loads(listed)}
    shutil.rmtree(environment)
    return {name: versions_of[name] for name in SHOWN if name in versions_of}


def extras_of(kind: str, torch: str) -> tuple[str, ...]:
    """Return the extras of each environment of a kind."""
    if kind == "bare":
        return ("",)
    if kind == "extras":
        return tuple(e for e in EXTRAS if torch or e not in NEED_TORCH)
    return ("analyze,remote,data" + (",train" if torch else ""),)


def record(kind: str, extras: str, python: str, versions: dict[str, str]) -> None:
    """Add an installation to the results, in place of an older one of the same kind."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    key: dict[str, object] = {
        "kind": kind,
        "python": python,
        "system": f"{platform.system()} {platform.machine()}",
    }
    found = {"extras": extras, "with_torch": "torch" in versions}
    if kind == "extras":
        key |= found
    rows = [row for row in rows if any(row[k] != v for k, v in key.items())]
    rows.append({**key, **found, "versions": versions})
    rows.sort(key=lambda row: (KINDS.index(row["kind"]), row["extras"], row["python"]))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


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
    parser.add_argument("--only", nargs="+", help="extras to check, instead of all")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for python in given.python:
            for kind in given.kinds:
                for extras in extras_of(kind, given.torch):
                    if given.only and kind == "extras" and extras not in given.only:
                        continue
                    place = (kind, extras, python)
                    try:
                        versions = check(wheel, *place, given.torch, given.folder)
                    except subprocess.CalledProcessError:
                        failed.append(" ".join(place))
                        continue
                    if given.record:
                        record(*place, versions)
            shutil.rmtree(given.folder / f"torch-{python}", ignore_errors=True)
    sys.exit(f"Failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
