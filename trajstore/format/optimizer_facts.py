"""Facts about the optimizers of a run: their classes, and the settings of parameter groups.

Older stores have no such facts. The root document holds them under `OPTIMIZER`, one object
per parameter group. Learning rates change often and are scalars of every step instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any, Final

OPTIMIZER: Final = "optimizer"
"""Key of the facts in the attributes of the root document."""

NUMBERS: Final = ("momentum", "dampening", "weight_decay")
FLAGS: Final = ("nesterov", "maximize", "decoupled_weight_decay")
"""Settings that are recorded, if a parameter group has them."""

MAX_GROUPS: Final = 1 << 14
MAX_CHANGES: Final = 256
"""Largest number of recorded changes of a group's settings; later ones are not known."""

Settings = Mapping[str, float]
"""Settings by name, without those that the group lacks; empty if they are not known."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Facts about one parameter group."""

    optimizer: str  # module and name of the optimizer's class
    tensors: tuple[int, ...]  # indices of the recorded parameters in the group
    settings: tuple[tuple[int, Settings], ...]  # settings from a step on, in order

    def at(self, step: int) -> Settings:
        """Return the settings in a step, empty if they are not known."""
        found: Settings = {}
        for first, settings in self.settings:
            found = settings if first <= step else found
        return found

    def changed(self, step: int, settings: Settings) -> "GroupFacts":
        """Return the facts with other settings from a step on."""
        kept = [change for change in self.settings if change[0] < step]
        if len(kept) == MAX_CHANGES - 1:
            # The last change says that the settings are no longer known.
            settings = {}
        is_new = not kept or dict(kept[-1][1]) != dict(settings)
        if is_new and len(kept) < MAX_CHANGES:
            kept.append((step, dict(settings)))
        return GroupFacts(self.optimizer, self.tensors, tuple(kept))

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable description, the inverse of `parse_facts`."""
        return {
            "class": self.optimizer,
            "tensors": list(self.tensors),
            "settings": [{"step": step, **known} for step, known in self.settings],
        }


def continued(
    before: Sequence[GroupFacts], now: Sequence[GroupFacts], step: int
) -> tuple[GroupFacts, ...]:
    """Continue the facts of a store with the groups of a recorder that resumes at a step."""
    is_same = [(f.optimizer, f.tensors) for f in before] == [
        (f.optimizer, f.tensors) for f in now
    ]
    if not is_same:
        # Earlier steps had other groups, so their settings are left out.
        before = [GroupFacts(f.optimizer, f.tensors, ()) for f in now]
    return tuple(
        old.changed(step, new.settings[-1][1])
        for old, new in zip(before, now, strict=True)
    )


def parse_facts(document: Any) -> tuple[GroupFacts, ...]:
    """Build facts from decoded JSON in which `is_facts` finds no problem."""
    return tuple(
        GroupFacts(
            group["class"],
            tuple(group["tensors"]),
            tuple(
                (change["step"], {k: v for k, v in change.items() if k != "step"})
                for change in group["settings"]
            ),
        )
        for group in document or ()
    )


def is_facts(value: object, *, n_tensors: int, max_step: int) -> bool:
    """Whether decoded JSON holds valid facts about the groups of `n_tensors` tensors."""
    if not isinstance(value, list) or len(value) > MAX_GROUPS:
        return False
    if not all(_is_group(group, max_step) for group in value):
        return False
    tensors = [i for group in value for i in group["tensors"]]
    if not all(type(i) is int and 0 <= i < n_tensors for i in tensors):
        return False
    return len(set(tensors)) == len(tensors)


def _is_group(group: object, max_step: int) -> bool:
    if not isinstance(group, Mapping) or group.keys() != {
        "class",
        "tensors",
        "settings",
    }:
        return False
    changes = group["settings"]
    if not isinstance(group["class"], str) or not isinstance(group["tensors"], list):
        return False
    if not isinstance(changes, list) or len(changes) > MAX_CHANGES:
        return False
    if not all(_is_change(change, max_step) for change in changes):
        return False
    steps = [change["step"] for change in changes]
    return all(a < b for a, b in pairwise(steps))


def _is_change(change: object, max_step: int) -> bool:
    if not isinstance(change, Mapping):
        return False
    step = change.get("step")
    if type(step) is not int or not 0 <= step <= max_step:
        return False
    for name, value in change.items():
        is_flag = name in FLAGS and isinstance(value, bool)
        is_number = name in NUMBERS and type(value) in {int, float}
        if name != "step" and not is_flag and not (is_number and isfinite(value)):
            return False
    return True
