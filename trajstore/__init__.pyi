from . import analyzers as analyzers
from . import curvature as curvature
from . import evaluation as evaluation
from . import optim as optim
from ._version import __version__
from .format.run_spec import SchemaError
from .reading.epochs import epoch_grid, index_epochs
from .reading.run import Run, open_run
from .reading.target import iterate, parameters_at
from .recording.recorder import Recorder
from .store.holder import StoreLockedError
from .store.journal import recover

__all__ = [
    "Recorder",
    "Run",
    "SchemaError",
    "StoreLockedError",
    "__version__",
    "epoch_grid",
    "index_epochs",
    "iterate",
    "open_run",
    "parameters_at",
    "recover",
]
