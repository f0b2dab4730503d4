from .average_of_epochs import read_reference
from .epoch_means import means_for_tables
from .losses import replayed
from .nonfinite_target import default_reference
from .null import subtract_null
from .optimizer_text import has_other_updates, optimizer_text
from .stored import result_group
from .time_axis import by_time, label_of, time_of

__all__ = [
    "by_time",
    "default_reference",
    "has_other_updates",
    "label_of",
    "means_for_tables",
    "optimizer_text",
    "read_reference",
    "replayed",
    "result_group",
    "subtract_null",
    "time_of",
]
