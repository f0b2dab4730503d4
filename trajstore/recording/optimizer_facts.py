"""Observe the settings of optimizers, which analyses need to relate updates to gradients."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trajstore.format.optimizer_facts import FLAGS, NUMBERS, GroupFacts, Settings


class SettingsWatch:
    """The settings of all parameter groups, and the steps at which they changed."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        step: int,
    ) -> None:
        index = {id(p): i for i, p in enumerate(parameters.values())}
        self._groups = [(o, group) for o in optimizers for group in o.param_groups]
        self._last = [_settings(group) for _, group in self._groups]
        self.facts = tuple(
            GroupFacts(
                _class_name(optimizer),
                tuple(index[id(p)] for p in group["params"] if id(p) in index),
                ((step, settings),),
            )
            for (optimizer, group), settings in zip(
                self._groups, self._last, strict=True
            )
        )

    def observe(self, step: int) -> bool:
        """Note the settings of a step; return whether they differ from the last step's."""
        now = [_settings(group) for _, group in self._groups]
        if now == self._last:
            return False
        self._last = now
        self.facts = tuple(
            facts.changed(step, settings)
            for facts, settings in zip(self.facts, now, strict=True)
        )
        return True


def _class_name(optimizer: Optimizer) -> str:
    # A learning rate scheduler wraps methods of the optimizer, but keeps its class.
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _settings(group: Mapping[str, Any]) -> Settings:
    settings: dict[str, float] = {}
    for name in NUMBERS:
        # Reading a tensor would wait for the device.
        value = group.get(name)
        if isinstance(value, (int, float)) and isfinite(value):
            settings[name] = float(value)
    for name in FLAGS:
        if name in group:
            settings[name] = bool(group[name])
    return settings
