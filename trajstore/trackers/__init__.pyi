from .reporter import Reporter, open_sink
from .sink import Sink

__all__ = ["Reporter", "Sink", "open_sink"]
