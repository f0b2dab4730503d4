"""The package `analyzers`, reached through `trajstore`.

``import analyzers`` finds a file ``analyzers.py`` next to a script before the package, because
Python searches the script's folder first. ``from trajstore import analyzers`` always finds the
package. A script that imports both files cannot be helped, because there is one name for them.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType


def _package() -> ModuleType:
    """Return the package that is installed in the same folder as trajstore."""
    spec = PathFinder.find_spec("analyzers", [str(Path(__file__).parents[1])])
    if spec is None or spec.loader is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The package analyzers is not installed next to trajstore; install trajstore "
            "again.",
            name="analyzers",
        )
    loaded = sys.modules.get("analyzers")
    if loaded is None:
        loaded = module_from_spec(spec)
        sys.modules["analyzers"] = loaded
        spec.loader.exec_module(loaded)
    elif Path(loaded.__file__ or "") != Path(spec.origin):
        raise ImportError(
            f"The name analyzers is taken by {loaded.__file__}, which was imported earlier; "
            "rename that file, or import trajstore.analyzers before it.",
            name="analyzers",
        )
    return loaded


sys.modules[__name__] = _package()
