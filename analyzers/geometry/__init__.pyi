from .average_of_epochs import read_reference
from .epoch_means import means_for_tables
from .losses import replayed
from .nonfinite_target import default_reference
from .null import other_updates, subtract_null
from .stored import result_group
from .time_axis import by_time, label_of, time_of

__all__ = [
    "by_time",
    "default_reference",
    "label_of",
    "means_for_tables",
    "other_updates",
    "read_reference",
    "replayed",
    "result_group",
    "subtract_null",
    "time_of",
]
