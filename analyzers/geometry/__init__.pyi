from .average_of_epochs import read_reference
from .epoch_means import means_for_tables, time_of
from .losses import replayed
from .stored import result_group

__all__ = [
    "means_for_tables",
    "read_reference",
    "replayed",
    "result_group",
    "time_of",
]
