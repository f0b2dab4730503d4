"""A model on a data set, and how it is trained."""

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
    """A model on a data set.

    Attributes
    ----------
    summary : str
        What it is, in one line.
    settings : Training
        How it is trained if nothing else is asked for.
    notes : mapping from str to str
        What the data are, by the kinds of data that there are: true, embedded.
    task : Task
        The loss, and what else is logged.
    data : callable
        Returns the data of a training.
    model : callable
        Returns a new model for data and training, drawn from torch's random stream.
    facts : callable
        Returns what else is known of a training's data, for the store's ``attrs``.
    """

    summary: str
    settings: Training
    notes: Mapping[str, str]
    task: Task
    data: Callable[[Training], Splits]
    model: Callable[[Splits, Training], nn.Module]
    facts: Callable[[Training], dict[str, Any]] = _no_facts


def embedded(
    summary: str, task: Task, note: str, data: Any, model: Any, **settings: Any
) -> Workload:
    """Describe a workload whose data are always at hand."""
    return Workload(
        summary=summary,
        settings=Training(data="embedded", **settings),
        notes={"embedded": f"{note}, embedded"},
        task=task,
        data=data,
        model=model,
    )


def published(
    summary: str,
    task: Task,
    notes: tuple[str, str],
    load: Any,
    model: Any,
    **settings: Any,
) -> Workload:
    """Describe a workload of a paper."""
    return Workload(
        summary=summary,
        settings=Training(**settings),
        notes={"true": notes[0], "embedded": f"{notes[1]}, embedded"},
        task=task,
        data=lambda training: load(training.data, training.data_dir),
        model=model,
    )
