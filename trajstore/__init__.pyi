from .epochs import epoch_grid, index_epochs
from .lock import StoreLockedError
from .reader import Run, open_run
from .recorder import Recorder
from .recovery import recover
from .reference_point import iterate
from .schema import SchemaError

__all__ = [
    "Recorder",
    "Run",
    "SchemaError",
    "StoreLockedError",
    "epoch_grid",
    "index_epochs",
    "iterate",
    "open_run",
    "recover",
]
