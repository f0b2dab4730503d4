"""Rules by which SGD computes updates from gradients, and the parts of a run that share one."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.recurrence import Rule
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

FORGOTTEN: Final = 1e-8
"""Weight of a gradient in the buffer of momentum below which it is left out."""

SGD: Final = "torch.optim.sgd.SGD"
"""Class of the optimizer whose updates are linear in the gradients."""


def has_rule(run: Run) -> bool:
    """Whether SGD alone trained the run, according to the facts in its store."""
    # Without a basis, the norms of the parameters are not known, which bound rounding errors.
    facts = run.stored.document.optimizer
    held = [i for group in facts for i in group.tensors]
    return (
        not run.group.is_measurement
        and not run.spec.exact
        and run.spec.basis > 0
        and len(held) == len(run.layout.names)
        and all(group.optimizer == SGD for group in facts if group.tensors)
    )


def rule_of(run: Run, steps: slice) -> Rule:
    """Return the rule of `steps` by layer; NaN where settings or rates are not known."""
    n = len(run.layout.names)
    names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    values = {name: np.full((steps.stop - steps.start, n), np.nan) for name in names}
    lr = np.full((steps.stop - steps.start, n), np.nan)
    scalars = run.stored.rows("scalars", steps)
    for i, facts in enumerate(run.stored.document.optimizer):
        layers = list(facts.tensors)
        name = f"lr_{i}" if i else "lr"
        if name in run.metrics:
            lr[:, layers] = scalars[:, [run.group.metrics.index(name)]]
        for first, settings in facts.settings:
            later = slice(max(first - steps.start, 0), None)
            for name, column in values.items():
                column[later, layers] = settings.get(name, np.nan)
    momentum, nesterov = values["momentum"], values["nesterov"]
    intake = 1 - values["dampening"]
    if steps.start == 0:
        # The first step fills the empty buffer.
        intake[:1] = np.where(np.isnan(intake[:1]), np.nan, 1.0)
    has_buffer = momentum != 0
    return Rule(
        lr=lr,
        momentum=momentum,
        intake=np.where(has_buffer, intake, 0),
        direct=np.where(has_buffer, nesterov, 1.0),
        buffered=np.where(has_buffer, np.where(nesterov == 1, momentum, 1.0), 0.0),
        decay=values["weight_decay"],
        sign=1 - 2 * values["maximize"],
    )


def take(rule: Rule, layers: npt.NDArray[np.int64]) -> Rule:
    """Return the rule of some layers."""
    return Rule(*(values[:, layers] for values in rule))


def steps_of_memory(run: Run) -> int:
    """Return the number of steps after which momentum has forgotten a gradient."""
    momenta = [
        settings.get("momentum", 0.0)
        for facts in run.stored.document.optimizer
        for _, settings in facts.settings
    ]
    largest = max(momenta, default=0.0)
    if not 0 < largest < 1:
        return 0
    return int(np.ceil(np.log(FORGOTTEN) / np.log(largest)))


@dataclass(frozen=True, slots=False)
class Parts:
    """Parts of the parameters: single layers, or the parameter groups of an optimizer."""

    of_layer: npt.NDArray[np.int64]  # part of every layer, (layer,)
    sizes: npt.NDArray[np.int64]  # elements of every layer, (layer,)
    are_layers: bool  # whether results are wanted for every layer

    @cached_property
    def count(self) -> int:
        """Number of parts."""
        return int(self.of_layer.max()) + 1

    @cached_property
    def largest(self) -> int:
        """The part with most elements."""
        return int(self.sum(self.sizes.astype(np.float64)[None], 1)[0].argmax())

    def sum(self, values: FloatArray, axis: int) -> FloatArray:
        """Sum over the layers of each part; `axis` is the axis of layers."""
        if self.are_layers:
            return values
        if self.count == 1:
            whole: FloatArray = values.sum(axis, keepdims=True)
            return whole
        moved = np.moveaxis(values, axis, 0)
        total = np.zeros((self.count, *moved.shape[1:]))
        np.add.at(total, self.of_layer, moved)
        result: FloatArray = np.moveaxis(total, 0, axis)
        return result


def parts_of(run: Run, *, layers: bool) -> Parts:
    """Return single layers, or the parameter groups if the rule of their updates is known."""
    n = len(run.layout.names)
    of_layer = np.arange(n) if layers else np.zeros(n, np.int64)
    if not layers and has_rule(run):
        groups = [f for f in run.stored.document.optimizer if f.tensors]
        for i, facts in enumerate(groups):
            of_layer[list(facts.tensors)] = i
    return Parts(of_layer, run.layout.sizes, layers)
