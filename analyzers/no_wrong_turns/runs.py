"""Find runs in a directory, and choose runs by their training settings."""

import json
import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from trajstore.format.attrs import (
    BRANCH,
    CONTROLS,
    DATA,
    FULL_BATCH,
    NON_ESSENTIAL_SETTINGS,
    OPTIMIZERS,
    TRAINING,
)
from trajstore.format.run_spec import SchemaError
from trajstore.format.shown import shown
from trajstore.reading.run import Run, open_run

COUPLED_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "batch_size": ("lr",),
    "optimizer": ("lr",),
    "seed": (),
    "epochs": (),
    "control": ("lr",),
    "width": (),
}
"""Settings that may vary together with the setting of a sweep: learning rates are tuned to
batch sizes and optimizers."""

RESULTS_SUFFIX: Final = ".analysis.zarr"
"""Suffix of stores that hold results."""

COUNTER_EXAMPLES: Final = ("alm", "sm")
NOT_NEURAL_NETWORKS: Final = (*COUNTER_EXAMPLES, "halfspace")

CLOSED_FORM_PREFIX: Final = "deep-linear-"
"""Prefix of workloads with a closed-form solution, which do not represent other networks."""

WIDTH_SUFFIX: Final = re.compile(r"-(2|half|wide)$")
"""Suffix of workloads whose width is not the standard width."""

PLAIN: Final = re.compile(r"[\w.+-]{0,60}")
"""Text of names and values of settings."""

LABEL_ORDER: Final = (*OPTIMIZERS, *CONTROLS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedRun:
    """A run and its training settings."""

    run: Run
    settings: Mapping[str, Any]
    workload: str
    family: str  # data set: the first word of the workload
    title: str  # family, with a note if its data is a stand-in


def trained(run: Run) -> TrainedRun:
    """Read the training settings of a run."""
    settings: Mapping[str, Any] = run.attrs[TRAINING]
    family = settings["workload"].partition("-")[0]
    note = str(run.attrs.get(DATA, ""))
    is_embedded = settings["data"] == "embedded" or "embedded" in note
    return TrainedRun(
        run=run,
        settings=settings,
        workload=settings["workload"],
        family=family,
        title=f"{family} (embedded data)" if is_embedded else family,
    )


def find_runs(directory: str | os.PathLike[str]) -> list[TrainedRun]:
    """Open all complete runs with training settings below a directory, in order of path."""
    # Branches of other runs are left out. Stores that cannot be opened as a run are left
    # out with a UserWarning.
    if not Path(directory).is_dir():
        raise NotADirectoryError(
            f"There is no directory {os.fspath(directory)!r} to find runs in."
        )
    runs = []
    for path, directories, files in os.walk(directory):
        directories.sort()
        if "zarr.json" in files:
            directories.clear()
            if not path.endswith(RESULTS_SUFFIX):
                runs += _opened(path)
    return [
        trained(run)
        for run in runs
        if run.has_final
        and TRAINING in run.attrs
        and BRANCH not in run.attrs
        and _has_plain_settings(run)
    ]


def _has_plain_settings(run: Run) -> bool:
    """Whether the settings are of the kind that traj-train writes; warn if they are not."""
    # Settings are shown in titles and pages, where other text could be markup.
    settings = run.attrs[TRAINING]
    is_plain = isinstance(settings, dict) and all(
        PLAIN.fullmatch(text)
        for name, value in settings.items()
        if name != "data_dir"  # is not shown
        for text in (name, str(value))
    )
    if not (is_plain and {"workload", "data", "control"} <= settings.keys()):
        text = (
            f"The training settings of {shown(run.location)} are not those of traj-train. "
            "It is left out."
        )
        warnings.warn(text, UserWarning, stacklevel=4)
        return False
    return True


def _opened(path: str) -> list[Run]:
    try:
        return [open_run(path)]
    except SchemaError as error:
        warnings.warn(f"{error} It is left out.", UserWarning, stacklevel=3)
        return []


def plain_runs(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose minibatch runs that are not controls."""
    return [
        run
        for run in runs
        if run.settings["control"] == "none"
        and not run.settings[FULL_BATCH]
        and not run.workload.startswith(CLOSED_FORM_PREFIX)
    ]


def full_batch_runs(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one full-batch run per data set."""
    chosen = {run.family: run for run in runs if run.settings[FULL_BATCH]}
    return [chosen[name] for name in sorted(chosen)]


def sweep(runs: Iterable[TrainedRun], factor: str) -> list[TrainedRun]:
    """Choose runs that differ in one setting and its coupled settings only; sort by the setting."""
    # Chooses the group of runs with the most values of the setting. If several groups have
    # equally many values, chooses the group with the most runs among them.
    plain = runs if factor == "control" else plain_runs(runs)
    free = {factor, *COUPLED_SETTINGS[factor], *NON_ESSENTIAL_SETTINGS}
    groups: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for run in plain:
        fixed = {k: v for k, v in run.settings.items() if k not in free}
        groups[json.dumps(fixed, sort_keys=True)].append(run)
    sweeps = [group for group in groups.values() if len(_values(group, factor)) > 1]
    if not sweeps:
        return []
    largest = max(sweeps, key=lambda group: (len(_values(group, factor)), len(group)))
    return sorted(largest, key=lambda run: _order(run.settings[factor]))


def _values(runs: Iterable[TrainedRun], factor: str) -> set[Any]:
    return {run.settings[factor] for run in runs}


def _order(value: Any) -> Any:
    """Return a sort key: numbers by value, optimizers and controls in their listed order."""
    return LABEL_ORDER.index(value) if value in LABEL_ORDER else value


def labelled_sweep(
    runs: Iterable[TrainedRun], factor: str
) -> list[tuple[str, TrainedRun]]:
    """Label the runs of a sweep with the setting, and with coupled settings that differ."""
    chosen = sweep(runs, factor)
    return [(_label(run, factor, chosen), run) for run in chosen]


def _label(run: TrainedRun, factor: str, among: Sequence[TrainedRun]) -> str:
    alike = [r for r in among if r.settings[factor] == run.settings[factor]]
    differing = [
        f"{name} {run.settings[name]:g}"
        for name in COUPLED_SETTINGS[factor]
        if len(_values(alike, name)) > 1
    ]
    return ", ".join([f"{run.settings[factor]}", *differing])


def base_run(runs: Sequence[TrainedRun]) -> TrainedRun:
    """Choose the run that shares the most settings with the other runs."""
    items = {
        run: [(key, json.dumps(value)) for key, value in run.settings.items()]
        for run in runs
    }
    shared = Counter(item for of_run in items.values() for item in of_run)
    return max(runs, key=lambda run: sum(shared[item] for item in items[run]))


def base_runs(runs: Iterable[TrainedRun]) -> dict[str, TrainedRun]:
    """Choose the base run of every workload among minibatch runs that are not controls."""
    by_workload: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for run in plain_runs(runs):
        by_workload[run.workload].append(run)
    return {name: base_run(by_workload[name]) for name in sorted(by_workload)}


def models(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose the base runs of the data set with the most workloads."""
    by_family: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for run in base_runs(runs).values():
        by_family[run.family].append(run)
    largest = max(by_family.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def data_sets(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one network run per data set: the base run of its most frequent workload."""
    plain = [run for run in plain_runs(runs) if run.family not in NOT_NEURAL_NETWORKS]
    counts = Counter(run.workload for run in plain)
    chosen: dict[str, TrainedRun] = {}
    for run in sorted(base_runs(plain).values(), key=lambda run: -counts[run.workload]):
        chosen.setdefault(run.family, run)
    return [chosen[name] for name in sorted(chosen)]


def scheduled(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one run per data set among runs whose learning rate falls to zero."""
    return data_sets(run for run in runs if run.settings["schedule"] == "cosine")


def mlp_and_resnet(runs: Sequence[TrainedRun]) -> dict[str, TrainedRun]:
    """Choose an MLP and a ResNet on the same data, similar in training and size."""
    kinds = [
        [run for run in plain_runs(runs) if kind in run.workload]
        for kind in ("mlp", "resnet")
    ]
    base = set(base_runs(runs).values())

    def difference(pair: tuple[TrainedRun, TrainedRun]) -> tuple[int, float, int]:
        mlp, resnet = pair
        n_different = sum(
            value != resnet.settings.get(key) for key, value in mlp.settings.items()
        )
        size_ratio = mlp.run.layout.n_params / resnet.run.layout.n_params
        return n_different, abs(math.log(size_ratio)), len({*pair} - base)

    pairs = [(a, b) for a, b in product(*kinds) if a.family == b.family]
    if not pairs:
        return {}
    mlp, resnet = min(pairs, key=difference)
    return {"mlp": mlp, "resnet": resnet}


def depths(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose base runs of ResNets of standard width on one data set, by depth."""
    # Names end with the number of layers, or with "-deep" for a deeper model.
    by_family: defaultdict[str, dict[int, TrainedRun]] = defaultdict(dict)
    for name, run in base_runs(runs).items():
        if match := re.fullmatch(r"\w+-resnet(\d*)(-deep)?", name):
            depth = int(match[1] or 0) + bool(match[2])
            by_family[run.family][depth] = run
    largest = max(by_family.values(), key=len, default={})
    return [largest[depth] for depth in sorted(largest)] if len(largest) > 1 else []


def widths(runs: Iterable[TrainedRun]) -> dict[str, tuple[TrainedRun, TrainedRun]]:
    """Choose pairs (standard width, other width) of base runs, by workload of the second run."""
    base = base_runs(runs)
    return {
        name: (base[standard], run)
        for name, run in base.items()
        if (standard := standard_width(name)) != name and standard in base
    }


def standard_width(workload: str) -> str:
    """Return the name of the same workload with the standard width."""
    return WIDTH_SUFFIX.sub("", workload)


def title_of(runs: Iterable[TrainedRun], what: str) -> str:
    """Return a title that names the data sets of runs and what is shown."""
    names = sorted({run.title for run in runs})
    return f"{', '.join(names)}: {what}" if names else what


def describe(runs: Sequence[TrainedRun]) -> str:
    """Describe the number of runs of every workload."""
    counts = Counter(run.workload for run in runs)
    if not counts:
        return "no complete run with the training settings of traj-train"
    kinds = [f"{n} of {name}" for name, n in sorted(counts.items())]
    name = "run" if len(runs) == 1 else "runs"
    return f"{len(runs)} {name}: {', '.join(kinds)}"
