"""Definition of a workload: model, data, loss and default settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from train.data import Splits
from train.settings import Training
from train.workloads.tasks import Task


def _no_facts(_training: Training) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model on a data set, with its loss and its default settings."""

    summary: str  # one line, for `traj-train list`
    settings: Training
    notes: Mapping[str, str]  # descriptions of the data by kind ("true", "embedded")
    task: Task
    data: Callable[[Training], Splits]
    model: Callable[[Splits, Training], nn.Module]  # draws from torch's random stream
    facts: Callable[[Training], dict[str, Any]] = _no_facts
    """Returns facts about the data besides the note, for the ``attrs`` of the store."""


def by_name(*workloads: Workload) -> dict[str, Workload]:
    """Return a mapping from names to workloads."""
    return {workload.settings.workload: workload for workload in workloads}


def embedded(
    summary: str,
    task: Task,
    note: str,
    data: Callable[[Training], Splits],
    model: Any,
    facts: Callable[[Training], dict[str, Any]] = _no_facts,
    **settings: Any,
) -> Workload:
    """Define a workload whose data need no download."""
    return Workload(
        summary=summary,
        settings=Training(data="embedded", **settings),
        notes={"embedded": f"{note}, embedded"},
        task=task,
        data=data,
        model=model,
        facts=facts,
    )


def published(
    summary: str,
    task: Task,
    notes: tuple[str, str],
    load: Any,
    model: Any,
    **settings: Any,
) -> Workload:
    """Define a workload from a paper, with its data set and an embedded stand-in."""
    return Workload(
        summary=summary,
        settings=Training(**settings),
        notes={"true": notes[0], "embedded": f"{notes[1]}, embedded"},
        task=task,
        data=lambda training: load(training.data, training.data_dir),
        model=model,
    )
