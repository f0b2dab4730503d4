from .journal import has_journal, steps_in_journal
from .location import inside, is_remote, name_of, sibling
from .sizes import bytes_below

__all__ = [
    "bytes_below",
    "has_journal",
    "inside",
    "is_remote",
    "name_of",
    "sibling",
    "steps_in_journal",
]
