"""Read the errors of a recorded run, from which a plan of a similar run extrapolates."""

from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from trajstore.planning.errors import Rate
from trajstore.planning.measured import Optimizer
from trajstore.planning.similar import ErrorsByOptions, Recorded
from trajstore.reading.run import Run

SGD: Final = "torch.optim.sgd.SGD"


def recorded_errors(run: Run, *, rate: Rate) -> Recorded:
    """Return a recorded run for plans of similar ones, or raise an error if it tells no errors."""
    if run.spec.exact:
        raise ValueError(
            f"{run.location} was recorded exactly, so it says nothing of the errors of sketches: "
            "give a run that was recorded with a sketch."
        )
    if not run.has_final:
        raise ValueError(
            f"{run.location} has not ended: its status is {run.status!r}. The target of a plan's "
            "errors is the last iterate; give a run that has ended."
        )
    # Analyses need further packages, and import them; this name is all that trajstore knows of them.
    other_errors: Any = import_module("analyzers.geometry.other_errors")
    errors: ErrorsByOptions = other_errors.OtherErrors(run)
    step, mean = errors.of(run.spec)
    if not (step > 0 and (mean is None or mean > 0)):
        raise ValueError(
            f"{run.location} has no errors in the middle of the run: they are 0 or not known."
        )
    spec = replace(run.spec, total_steps=run.n_steps)
    return Recorded(spec=spec, rate=rate, optimizer=optimizer_of(run), errors=errors)


def optimizer_of(run: Run) -> Optimizer:
    """Return the kind of optimizer that trained a run."""
    facts = [group for group in run.stored.document.optimizer if group.tensors]
    if not facts or any(group.optimizer != SGD for group in facts):
        return "adaptive"
    settings = [changed for group in facts for _, changed in group.settings]
    return "momentum" if any(s.get("momentum") for s in settings) else "sgd"
