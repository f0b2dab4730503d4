from .results import replay_group, results_location, target_slug, write_results
from .target import find_target, read_target
from .verify import all_chunks, problems, protection

__all__ = [
    "all_chunks",
    "find_target",
    "problems",
    "protection",
    "read_target",
    "replay_group",
    "results_location",
    "target_slug",
    "write_results",
]
