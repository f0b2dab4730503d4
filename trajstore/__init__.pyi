from .reader import Run, open_run
from .recorder import Recorder
from .schema import SchemaError

__all__ = ["Recorder", "Run", "SchemaError", "open_run"]
