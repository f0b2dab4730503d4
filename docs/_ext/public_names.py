"""List the public names, and the names that the reference documents."""

import ast
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
MODULES = (
    "trajstore",
    "trajstore.curvature",
    "trajstore.evaluation",
    "trajstore.optim",
    "trajstore.trackers",
    "analyzers",
    "analyzers.plots",
)
"""Public modules; other packages list names in ``__all__`` for each other, not for users."""

WITHOUT_LIST = {
    "trajstore.integrations.accelerate.record",
    "trajstore.integrations.checkpoint.RecorderState",
    "trajstore.integrations.lightning.TrajectoryCallback",
    "trajstore.integrations.pytorch_lightning.TrajectoryCallback",
    "trajstore.integrations.transformers.TrajectoryCallback",
}
"""Public names of modules that do not define ``__all__``."""


def public_names() -> set[str]:
    """Return the names in ``__all__`` of public modules, and `WITHOUT_LIST`."""
    names = set(WITHOUT_LIST)
    for name in MODULES:
        module = import_module(name)
        listed = [each for each in module.__all__ if not each.startswith("__")]
        listed = [each for each in listed if not _is_module(module, each)]
        names |= {f"{name}.{each}" for each in listed}
    return names


def modules_of_trajstore() -> set[str]:
    """Return the modules that the stub of trajstore offers as attributes."""
    stub = ast.parse((ROOT / "trajstore/__init__.pyi").read_text())
    return {
        f"trajstore.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module is None
        for alias in node.names
    }


def _is_module(package: ModuleType, name: str) -> bool:
    """Whether a name is a module; the libraries of some classes need not be installed."""
    try:
        return ismodule(getattr(package, name))
    except ModuleNotFoundError:
        return False


def documented_names() -> set[str]:
    """Return the entries of the lists in the reference."""
    names = set()
    for page in (ROOT / "docs/reference").glob("*.rst"):
        module = ""
        in_list = False
        for line in page.read_text().splitlines():
            if line.startswith(".. currentmodule::"):
                module = line.split()[-1]
            elif line.startswith(".. autosummary::"):
                in_list = True
            elif line and not line.startswith(" "):
                in_list = False
            elif in_list and (entry := line.strip()) and not entry.startswith(":"):
                names.add(f"{module}.{entry}")
    return names
