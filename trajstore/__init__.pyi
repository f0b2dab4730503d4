from .epochs import epoch_grid, index_epochs
from .reader import Run, open_run
from .recorder import Recorder
from .schema import SchemaError

__all__ = ["Recorder", "Run", "SchemaError", "epoch_grid", "index_epochs", "open_run"]
