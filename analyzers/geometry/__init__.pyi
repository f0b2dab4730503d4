from .average_of_epochs import read_reference
from .losses import replayed
from .stored import result_group

__all__ = [
    "read_reference",
    "replayed",
    "result_group",
]
