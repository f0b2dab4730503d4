"""Runs in a directory, chosen by how they were trained."""

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
from trajstore.reading.run import Run, open_run

COUPLED_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "batch_size": ("lr",),
    "optimizer": ("lr",),
    "seed": (),
    "epochs": (),
    "control": ("lr",),
    "width": (),
}
"""Settings that may change together with the one that a sweep varies: learning rates are
tuned to batch sizes and optimizers."""

RESULTS: Final = ".analysis.zarr"
"""Ending of the stores of results."""

COUNTER_EXAMPLES: Final = ("alm", "sm")
NOT_NEURAL_NETWORKS: Final = (*COUNTER_EXAMPLES, "halfspace")

HAS_CLOSED_FORM_PREFIX: Final = "deep-linear-"
"""Prefix of workloads with a closed-form solution; they stand for no other network."""

WIDTH_ENDING: Final = re.compile(r"-(2|half|wide)$")
"""Ending of workloads whose width is not the standard one."""

LABEL_ORDER: Final = (*OPTIMIZERS, *CONTROLS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedRun:
    """A run and how it was trained."""

    run: Run
    settings: Mapping[str, Any]
    workload: str
    family: str  # the data set: first word of the workload
    title: str  # the family, marked if its data is a stand-in


def trained(run: Run) -> TrainedRun:
    """Read how a run was trained."""
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
    """Open the complete runs below a directory that state their training, by path."""
    # Branches of other runs are left out, and so are stores that cannot be opened as a
    # run, with a UserWarning.
    if not Path(directory).is_dir():
        raise NotADirectoryError(
            f"There is no directory {os.fspath(directory)!r} to find runs in."
        )
    runs = []
    for path, directories, files in os.walk(directory):
        directories.sort()
        if "zarr.json" in files:
            directories.clear()
            if not path.endswith(RESULTS):
                runs += _opened(path)
    return [
        trained(run)
        for run in runs
        if run.has_final and TRAINING in run.attrs and BRANCH not in run.attrs
    ]


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
        and not run.workload.startswith(HAS_CLOSED_FORM_PREFIX)
    ]


def full_batch_runs(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one full-batch run for every data set."""
    chosen = {run.family: run for run in runs if run.settings[FULL_BATCH]}
    return [chosen[name] for name in sorted(chosen)]


def sweep(runs: Iterable[TrainedRun], factor: str) -> list[TrainedRun]:
    """Choose runs that differ only in one setting, or coupled ones, in its order."""
    # Among groups with at least two values, take the one with most values, then most runs.
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
    """Put numbers in order, and optimizers and controls as they are listed."""
    return LABEL_ORDER.index(value) if value in LABEL_ORDER else value


def labelled_sweep(
    runs: Iterable[TrainedRun], factor: str
) -> list[tuple[str, TrainedRun]]:
    """Label the runs of a sweep with the setting, and coupled ones if they differ."""
    chosen = sweep(runs, factor)
    return [(_label(run, factor, chosen), run) for run in chosen]


def _label(run: TrainedRun, factor: str, among: Sequence[TrainedRun]) -> str:
    same = [r for r in among if r.settings[factor] == run.settings[factor]]
    differing = [
        f"{name} {run.settings[name]:g}"
        for name in COUPLED_SETTINGS[factor]
        if len(_values(same, name)) > 1
    ]
    return ", ".join([f"{run.settings[factor]}", *differing])


def base_run(runs: Sequence[TrainedRun]) -> TrainedRun:
    """Choose the run that shares most settings with the others: they vary it."""
    items = {
        run: [(key, json.dumps(value)) for key, value in run.settings.items()]
        for run in runs
    }
    shared = Counter(item for of_run in items.values() for item in of_run)
    return max(runs, key=lambda run: sum(shared[item] for item in items[run]))


def base_runs(runs: Iterable[TrainedRun]) -> dict[str, TrainedRun]:
    """Choose the base run of every workload, among runs that are not controls."""
    by_workload: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for run in plain_runs(runs):
        by_workload[run.workload].append(run)
    return {name: base_run(by_workload[name]) for name in sorted(by_workload)}


def models(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose the base runs of the data set that most workloads train on."""
    by_family: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for run in base_runs(runs).values():
        by_family[run.family].append(run)
    largest = max(by_family.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def data_sets(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one base run of a network for every data set, of its commonest workload."""
    plain = [run for run in plain_runs(runs) if run.family not in NOT_NEURAL_NETWORKS]
    counts = Counter(run.workload for run in plain)
    chosen: dict[str, TrainedRun] = {}
    for run in sorted(base_runs(plain).values(), key=lambda run: -counts[run.workload]):
        chosen.setdefault(run.family, run)
    return [chosen[name] for name in sorted(chosen)]


def scheduled(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose one run for every data set whose learning rate falls to zero."""
    return data_sets(run for run in runs if run.settings["schedule"] == "cosine")


def mlp_and_resnet(runs: Sequence[TrainedRun]) -> dict[str, TrainedRun]:
    """Choose an MLP and a ResNet on the same data, with similar training and size."""
    kinds = [
        [run for run in plain_runs(runs) if kind in run.workload]
        for kind in ("mlp", "resnet")
    ]
    base = set(base_runs(runs).values())

    def difference(pair: tuple[TrainedRun, TrainedRun]) -> tuple[int, float, int]:
        one, other = pair
        n_different = sum(
            value != other.settings.get(key) for key, value in one.settings.items()
        )
        size_ratio = one.run.layout.n_params / other.run.layout.n_params
        return n_different, abs(math.log(size_ratio)), len({*pair} - base)

    pairs = [(a, b) for a, b in product(*kinds) if a.family == b.family]
    if not pairs:
        return {}
    mlp, resnet = min(pairs, key=difference)
    return {"mlp": mlp, "resnet": resnet}


def depths(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """Choose base runs of ResNets of standard width on one data set, shallow to deep."""
    # Names end with the number of layers, or with "-deep" for a deeper model.
    by_family: defaultdict[str, dict[int, TrainedRun]] = defaultdict(dict)
    for name, run in base_runs(runs).items():
        if found := re.fullmatch(r"\w+-resnet(\d*)(-deep)?", name):
            depth = int(found[1] or 0) + bool(found[2])
            by_family[run.family][depth] = run
    largest = max(by_family.values(), key=len, default={})
    return [largest[depth] for depth in sorted(largest)] if len(largest) > 1 else []


def widths(runs: Iterable[TrainedRun]) -> dict[str, tuple[TrainedRun, TrainedRun]]:
    """Choose base runs of standard and of another width, by name of the latter."""
    base = base_runs(runs)
    return {
        name: (base[standard], run)
        for name, run in base.items()
        if (standard := standard_width(name)) != name and standard in base
    }


def standard_width(workload: str) -> str:
    """Return the name of the workload of standard width."""
    return WIDTH_ENDING.sub("", workload)


def title_of(runs: Iterable[TrainedRun], what: str) -> str:
    """Return a title: the data sets, and the quantity shown."""
    names = sorted({run.title for run in runs})
    return f"{', '.join(names)}: {what}" if names else what


def describe(runs: Sequence[TrainedRun]) -> str:
    """Summarise runs by workload, in a few words."""
    counts = Counter(run.workload for run in runs)
    if not counts:
        return "no complete run that says how it was trained"
    kinds = [f"{n} of {name}" for name, n in sorted(counts.items())]
    name = "run" if len(runs) == 1 else "runs"
    return f"{len(runs)} {name}: {', '.join(kinds)}"
