"""List the public names, and the names that the reference documents."""

import re
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("trajstore", "analyzers")
WITHOUT_LIST = {
    "trajstore.integrations.accelerate.record",
    "trajstore.integrations.lightning.TrajectoryCallback",
    "trajstore.integrations.pytorch_lightning.TrajectoryCallback",
    "trajstore.integrations.transformers.TrajectoryCallback",
}
"""Public names of modules that do not define ``__all__``."""


def public_names() -> set[str]:
    """Return the names in ``__all__`` of packages and of plots, and `WITHOUT_LIST`."""
    names = set(WITHOUT_LIST)
    for package in PACKAGES:
        files = (ROOT / package).rglob("__init__.py")
        for path in [*files, *(ROOT / package).glob("plots.py")]:
            if not re.search(r"__all__\b.* = ", path.read_text()):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = import_module(".".join(parts).removesuffix(".__init__"))
            if module.__name__.rpartition(".")[2].startswith("_"):
                continue
            names |= {
                f"{module.__name__}.{name}"
                for name in module.__all__
                if not _is_module(module, name)
            }
    return names


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
