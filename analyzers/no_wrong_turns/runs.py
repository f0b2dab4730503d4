"""Runs of a directory by how they were trained: which of them belong together."""

import json
import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import Run, open_run

BRANCH: Final = "branch"
"""Entry of ``run.attrs`` of runs that began in the midst of another."""

TRAINING: Final = "training"
"""Entry of ``run.attrs`` that says how a run was trained, by name of the setting."""

FOLLOWING: Final[Mapping[str, tuple[str, ...]]] = {
    "batch_size": ("lr",),
    "optimizer": ("lr",),
    "seed": (),
    "epochs": (),
    "control": ("lr",),
    "width": (),
}
"""Settings that are allowed to change with another: learning rates are tuned to batches
and optimizers."""

CONTROLS: Final = (
    "none",
    "random-labels",
    "label-noise",
    "noise-gradients",
    "random-walk",
)
"""Controls, from what can be learnt by heart to what depends on nothing."""

RESULTS: Final = ".analysis.zarr"
"""How the stores of results end that `analyzers.store_geometry` writes."""

IMMATERIAL: Final = (
    "data_dir",
    "device",
    "full_gradients",
    "measure_every",
    "n_eigenvalues",
    "num_workers",
    "record_samples",
    "same_batch_every",
    "sharpness_every",
    "sharpness_examples",
)
"""Settings that do not change what is trained."""

COUNTER_EXAMPLES: Final = ("alm", "sm")
NO_NETWORKS: Final = (*COUNTER_EXAMPLES, "halfspace")
"""Workloads that are no training of a network."""

SOLVABLE: Final = "deep-linear-"
"""How workloads begin whose training is known in closed form; they stand for no other."""


def find_runs(directory: str | os.PathLike[str]) -> list[Run]:
    """Open the complete runs below a directory that say how they were trained.

    Parameters
    ----------
    directory : str or os.PathLike
        Local directory; a store itself is found, too.

    Returns
    -------
    list of trajstore.Run
        By path. Stores of results, and runs that have not ended or say nothing of their
        training are left out, and so are branches of other runs.

    Raises
    ------
    NotADirectoryError
        If there is no such directory.

    Warns
    -----
    UserWarning
        If another Zarr store is found, or a run that cannot be opened; it is left out.
    """
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
        run
        for run in runs
        if run.has_final and TRAINING in run.attrs and BRANCH not in run.attrs
    ]


def _opened(path: str) -> list[Run]:
    try:
        return [open_run(path)]
    except SchemaError as error:
        warnings.warn(f"{error} It is left out.", UserWarning, stacklevel=3)
        return []


def training(run: Run) -> dict[str, Any]:
    """Return how a run was trained, by name of the setting."""
    settings: dict[str, Any] = run.attrs[TRAINING]
    return settings


def family(run: Run) -> str:
    """Name the data set: the first word of the workload."""
    name: str = training(run)["workload"].partition("-")[0]
    return name


def data_title(run: Run) -> str:
    """Name the data set as a title does, and say if it is a stand-in."""
    note = str(run.attrs.get("data", ""))
    is_embedded = training(run)["data"] == "embedded" or "embedded" in note
    return f"{family(run)} (embedded data)" if is_embedded else family(run)


def plain_runs(runs: Iterable[Run]) -> list[Run]:
    """Choose the runs that are ordinary trainings, and no controls."""
    return [
        run
        for run in runs
        if training(run)["control"] == "none"
        and not training(run)["full_batch"]
        and not training(run)["workload"].startswith(SOLVABLE)
    ]


def full_batch(runs: Sequence[Run]) -> list[Run]:
    """Choose one run with the full batch for every data set."""
    chosen = {family(run): run for run in runs if training(run)["full_batch"]}
    return [chosen[name] for name in sorted(chosen)]


def sweep(runs: Sequence[Run], factor: str) -> list[Run]:
    """Choose runs that differ in one setting only.

    Parameters
    ----------
    runs : sequence of trajstore.Run
        As returned by `find_runs`.
    factor : str
        The setting: a key of `FOLLOWING`. Those that follow it may differ, too.

    Returns
    -------
    list of trajstore.Run
        By the setting; of groups with two values of it or more, the one with most values,
        and most runs. Empty if there is none.
    """
    plain = runs if factor == "control" else plain_runs(runs)
    free = {factor, *FOLLOWING[factor], *IMMATERIAL}
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in plain:
        fixed = {k: v for k, v in training(run).items() if k not in free}
        groups[json.dumps(fixed, sort_keys=True)].append(run)
    sweeps = [group for group in groups.values() if len(_values(group, factor)) > 1]
    if not sweeps:
        return []
    largest = max(sweeps, key=lambda group: (len(_values(group, factor)), len(group)))
    return sorted(largest, key=lambda run: _order(training(run)[factor]))


def _values(runs: Iterable[Run], factor: str) -> set[Any]:
    return {training(run)[factor] for run in runs}


def _order(value: Any) -> Any:
    """Put numbers in order, and optimizers and controls as they are listed."""
    optimizers = ("sgd", "momentum", "adam", "nsgd", "spsmax", "ngn")
    names = (*optimizers, *CONTROLS)
    return names.index(value) if value in names else value


def label(run: Run, factor: str, among: Sequence[Run]) -> str:
    """Name a run of a sweep by its setting, and by what follows it where that differs."""
    settings = training(run)
    name = f"{settings[factor]}"
    same = [other for other in among if training(other)[factor] == settings[factor]]
    differing = [
        f"{follower} {settings[follower]:g}"
        for follower in FOLLOWING.get(factor, ())
        if len(_values(same, follower)) > 1
    ]
    return ", ".join([name, *differing])


def base_run(runs: Sequence[Run]) -> Run:
    """Choose the run that shares most settings with the others: what they vary."""
    settings = [training(run) for run in runs]
    shared = Counter(
        (key, json.dumps(value)) for each in settings for key, value in each.items()
    )
    return max(
        runs,
        key=lambda run: sum(
            shared[key, json.dumps(value)] for key, value in training(run).items()
        ),
    )


def base_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Choose the base run of every workload, among runs that are no controls."""
    by_workload: defaultdict[str, list[Run]] = defaultdict(list)
    for run in plain_runs(runs):
        by_workload[training(run)["workload"]].append(run)
    return {name: base_run(by_workload[name]) for name in sorted(by_workload)}


def models(runs: Sequence[Run]) -> list[Run]:
    """Choose base runs of workloads on the same data set, of which there are most."""
    by_family: defaultdict[str, list[Run]] = defaultdict(list)
    for run in base_runs(runs).values():
        by_family[family(run)].append(run)
    largest = max(by_family.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def data_sets(runs: Sequence[Run]) -> list[Run]:
    """Choose one base run for every data set; those of counter-examples are none."""
    chosen: dict[str, Run] = {}
    plain = [run for run in plain_runs(runs) if family(run) not in NO_NETWORKS]
    counts = Counter(training(run)["workload"] for run in plain)
    for name, run in sorted(
        base_runs(plain).items(), key=lambda item: -counts[item[0]]
    ):
        del name
        chosen.setdefault(family(run), run)
    return [chosen[name] for name in sorted(chosen)]


def scheduled(runs: Sequence[Run]) -> list[Run]:
    """Choose one run for every data set whose learning rate falls to zero."""
    falling = [run for run in runs if training(run)["schedule"] == "cosine"]
    return data_sets(falling)


def mlp_and_resnet(runs: Sequence[Run]) -> dict[str, Run]:
    """Choose an MLP and a ResNet on the same data, trained alike and of like size."""
    kinds = {
        kind: [run for run in plain_runs(runs) if kind in training(run)["workload"]]
        for kind in ("mlp", "resnet")
    }
    pairs = [pair for pair in product(*kinds.values()) if _share(family, pair)]
    if not pairs:
        return {}
    base = list(base_runs(runs).values())
    mlp, resnet = min(
        pairs,
        key=lambda pair: (
            _n_different(*pair),
            abs(math.log(pair[0].layout.n_params / pair[1].layout.n_params)),
            sum(run not in base for run in pair),
        ),
    )
    return {"mlp": mlp, "resnet": resnet}


def _share(of: Callable[[Run], str], runs: Iterable[Run]) -> bool:
    return len({of(run) for run in runs}) == 1


def _n_different(a: Run, b: Run) -> int:
    one, other = training(a), training(b)
    return sum(value != other.get(key) for key, value in one.items())


def depths(runs: Sequence[Run]) -> list[Run]:
    """Choose base runs of ResNets of standard width on one data set, shallow to deep."""
    # Names end with the number of layers, or with "-deep" for a deeper model.
    by_family: defaultdict[str, dict[int, Run]] = defaultdict(dict)
    for name, run in base_runs(runs).items():
        if found := re.fullmatch(r"\w+-resnet(\d*)(-deep)?", name):
            depth = int(found[1] or 0) + bool(found[2])
            by_family[family(run)][depth] = run
    largest = max(by_family.values(), key=len, default={})
    return [largest[depth] for depth in sorted(largest)] if len(largest) > 1 else []


def widths(runs: Sequence[Run]) -> dict[str, tuple[Run, Run]]:
    """Choose base runs of standard and of another width, by name of the latter."""
    base = base_runs(runs)
    return {
        name: (base[standard], run)
        for name, run in base.items()
        if (standard := re.sub(r"-(2|half|wide)$", "", name)) != name
        and standard in base
    }


def describe(runs: Sequence[Run]) -> str:
    """Say in a few words which runs there are."""
    counts = Counter(training(run)["workload"] for run in runs)
    if not counts:
        return "no complete run that says how it was trained"
    kinds = [f"{n} of {name}" for name, n in sorted(counts.items())]
    name = "run" if len(runs) == 1 else "runs"
    return f"{len(runs)} {name}: {', '.join(kinds)}"
