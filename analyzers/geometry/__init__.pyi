from .average_of_epochs import read_reference
from .epoch_means import means_for_tables
from .losses import replayed
from .nonfinite_target import default_reference
from .stored import result_group
from .time_axis import by_time, label_of, time_of

__all__ = [
    "by_time",
    "default_reference",
    "label_of",
    "means_for_tables",
    "read_reference",
    "replayed",
    "result_group",
    "time_of",
]
