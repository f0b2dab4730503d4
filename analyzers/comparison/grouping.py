"""Find which runs differ in their seeds only: the configurations of a comparison."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from analyzers.comparison.run_list import run_names
from analyzers.comparison.settings import settings_of
from trajstore.reading.run import Run

NOT_SETTINGS: Final = ("status",)
"""Facts of a run that are no choice of its user."""

NUMBER: Final = re.compile(r"\d+$")
TRAILING: Final = re.compile(r"([-_./ ](seed|run|rep|s))?[-_./ =]*$")
LEADING: Final = re.compile(r"^\d*[-_./ =]+")
"""What is left of the number of a seed in what the names of files have in common."""

MAX_LISTED: Final = 20
"""Number of settings that an error message names."""


class Configuration(NamedTuple):
    """Runs that differ in their seeds only."""

    name: str
    runs: tuple[int, ...]  # indices into the list of all runs


def is_seed(name: str) -> bool:
    """Return whether a setting is called a seed, or the state of a random generator."""
    last = name.rpartition(".")[2].lower()
    return "seed" in last or "random_state" in last


def configurations(
    runs: Sequence[Run], by: Sequence[str] | None = None
) -> list[Configuration]:
    """Group runs with equal settings, except for seeds, in the order of their first runs."""
    # `by` names the settings that must be equal; by default all of them.
    of_runs = [settings_of(run) for run in runs]
    if by is not None:
        _check_names(by, of_runs)
    groups: dict[str, list[int]] = {}
    for i, settings in enumerate(of_runs):
        kept = {
            name: value
            for name, value in settings.items()
            if (name in by if by is not None else _counts(name))
        }
        key = json.dumps(kept, sort_keys=True, default=str)
        groups.setdefault(key, []).append(i)
    members = list(groups.values())
    names = _names(runs, members, of_runs, by)
    return [
        Configuration(name, tuple(m)) for name, m in zip(names, members, strict=True)
    ]


def given_configurations(groups: Mapping[str, Sequence[Any]]) -> list[Configuration]:
    """Return the configurations of runs that a user has named."""
    found, start = [], 0
    for name, runs in groups.items():
        found.append(Configuration(str(name), tuple(range(start, start + len(runs)))))
        start += len(runs)
    if empty := [c.name for c in found if not c.runs]:
        raise ValueError(
            f"The configurations {empty} have no runs; give one or more runs of each."
        )
    return found


def _counts(name: str) -> bool:
    return name not in NOT_SETTINGS and not is_seed(name)


def _check_names(by: Sequence[str], of_runs: Sequence[Mapping[str, Any]]) -> None:
    known = dict.fromkeys(name for settings in of_runs for name in settings)
    if missing := [name for name in by if name not in known]:
        differ = [n for n in known if len({str(s.get(n)) for s in of_runs}) > 1]
        more = "" if len(differ) <= MAX_LISTED else ", ..."
        raise KeyError(
            f"No setting {missing[0]!r} in these runs; they differ in "
            f"{', '.join(differ[:MAX_LISTED]) or 'nothing'}{more}."
        )


def _names(
    runs: Sequence[Run],
    members: Sequence[Sequence[int]],
    of_runs: Sequence[Mapping[str, Any]],
    by: Sequence[str] | None,
) -> list[str]:
    """Return short names that tell configurations apart, from settings or from file names."""
    files = [name.removesuffix(".zarr") for name in run_names(runs)]
    groups = [[files[i] for i in group] for group in members]
    firsts = [of_runs[group[0]] for group in members]
    candidates = [
        [_common_start(group) for group in groups],
        [_common_end(group) for group in groups],
        [str(s.get("optimizer.class", "")).rpartition(".")[2] for s in firsts],
        [", ".join(group) for group in groups],
    ]
    if by is not None:
        candidates.insert(
            0, [", ".join(_shown(s, name) for name in by) for s in firsts]
        )
    for names in candidates:
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"configuration {i + 1}" for i in range(len(members))]


def _common_start(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return TRAILING.sub("", _shared([NUMBER.sub("", n) for n in names]))


def _common_end(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return LEADING.sub("", _shared([n[::-1] for n in names])[::-1])


def _shared(names: Sequence[str]) -> str:
    """Return the characters with which all names begin."""
    is_same = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
    return names[0][: [*is_same, False].index(False)]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if name.endswith(".class") else text
