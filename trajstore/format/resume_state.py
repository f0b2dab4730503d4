"""Check the state with which a recording resumes, except for its tensor."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, Final

MAX_COUNT: Final = 2**31 - 1
"""Largest number of a step; the store counts iterations in int32."""

# Each kind is a type, a list of one kind, or a mapping from names to one kind.
_KINDS: Final[dict[str, tuple[Any, str]]] = {
    "created": (str, "a string"),
    "groups": ([[str]], "lists of names"),
    "snapshots": ([str], "a list of names"),
    "measured": ({str: int}, f"integers from 0 to {MAX_COUNT} by name"),
    "position": ({str: object}, "values by name"),
}
_COUNT: Final = (int, f"an integer from 0 to {MAX_COUNT}")
_POSITION_KINDS: Final[dict[str, tuple[Any, str]]] = {
    "step": _COUNT,
    "epoch": _COUNT,
    "epoch_start": _COUNT,
    "wall_time": (float, "a number of seconds"),
    "pending": ({str: float}, "numbers by name"),
    "samples": ([int], f"a list of integers from 0 to {MAX_COUNT}"),
}


def state_problems(state: Mapping[str, Any], *, samples: int) -> list[str]:
    """List the problems of a state, for a recording of `samples` indices per step."""
    if problems := list(_kind_problems("", state, _KINDS)):
        return problems
    # States of older versions have no samples.
    position = {"samples": []} | state["position"]
    problems = list(_kind_problems("position.", position, _POSITION_KINDS))
    unknown = position.keys() - _POSITION_KINDS
    if problems := problems + [f"position.{name}: unknown" for name in sorted(unknown)]:
        return problems
    limits = {
        "epoch_start": (position["epoch_start"], position["step"]),
        "wall_time": (position["wall_time"], inf),
        "samples, their number": (len(position["samples"]), samples),
    }
    return [
        f"position.{name}: expected from 0 to {most}, found {found}"
        for name, (found, most) in limits.items()
        if not (0 <= found <= most and found != inf)
    ]


def _kind_problems(
    prefix: str, values: Mapping[str, Any], kinds: Mapping[str, tuple[Any, str]]
) -> Iterator[str]:
    for name, (kind, expected) in kinds.items():
        if name not in values:
            yield f"{prefix}{name}: expected {expected}, found nothing"
        elif not _is_kind(values[name], kind):
            found = repr(values[name])[:80]
            yield f"{prefix}{name}: expected {expected}, found {found}"


def _is_kind(value: object, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is_kind(v, kind[0]) for v in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            type(name) is str and _is_kind(v, kind[str]) for name, v in value.items()
        )
    if kind is int:
        # bool is a subclass of int.
        return type(value) is int and 0 <= value <= MAX_COUNT
    return type(value) in {int, float} if kind is float else isinstance(value, kind)
