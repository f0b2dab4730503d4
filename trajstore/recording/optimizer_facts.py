"""Observe the settings of optimizers: learning rates, and what relates updates to gradients."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer

from trajstore.format.optimizer_facts import FLAGS, NUMBERS, GroupFacts, Settings
from trajstore.recording.logged import Scalar, rate_or_nan

RATES: Final = ("lr", "step_size")
"""Settings of parameter groups that are recorded with every step."""

NAMES: Final = (*NUMBERS, *FLAGS)

PLAIN: Final = frozenset({float, int, bool, type(None)})
"""Types of settings that can be compared without waiting for a device."""


class SettingsWatch:
    """The settings of all parameter groups, and the steps at which they changed."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        step: int,
    ) -> None:
        groups = [(o, group) for o in optimizers for group in o.param_groups]
        held = Counter(id(p) for _, group in groups for p in group["params"])
        # The update of a tensor that is held twice follows the settings of no group.
        index = {
            id(p): i for i, p in enumerate(parameters.values()) if held[id(p)] == 1
        }
        self._optimizers = optimizers
        self._last = [_settings(group) for _, group in groups]
        # The values that the last settings came from, if they can be compared.
        self._values: list[Any] | None = None
        self.facts = tuple(
            GroupFacts(
                _class_name(optimizer),
                tuple(index[id(p)] for p in group["params"] if id(p) in index),
                ((step, settings),),
            )
            for (optimizer, group), settings in zip(groups, self._last, strict=True)
        )
        self.is_new = False
        """Whether the facts have changed in the last step."""

    def observe(self, step: int) -> dict[str, Scalar]:
        """Note the settings of a step; return its learning rates: ``lr``, ``lr_1`` and so on."""
        # Some optimizers choose a step size for every step in addition to "lr".
        rates: dict[str, Scalar] = {}
        values: list[Any] = []
        groups = [group for o in self._optimizers for group in o.param_groups]
        for i, group in enumerate(groups):
            for name in RATES:
                if name in group:
                    rate = group[name]
                    # In most groups, rates are plain floats, which need no check.
                    is_plain = type(rate) is float
                    key = f"{name}_{i}" if i else name
                    rates[key] = rate if is_plain else rate_or_nan(rate)
            values += map(group.get, NAMES)
        if not PLAIN.issuperset(map(type, values)):
            self._values = None
        elif values == self._values:
            self.is_new = False
            return rates
        else:
            self._values = values
        self._compare(step, groups)
        return rates

    def _compare(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """Change the facts if the settings of the groups differ from the last step's."""
        # Groups that were added later have no facts.
        now = [_settings(group) for group in groups[: len(self._last)]]
        self.is_new = now != self._last and len(now) == len(self._last)
        if self.is_new:
            self._last = now
            self.facts = tuple(
                facts.changed(step, settings)
                for facts, settings in zip(self.facts, now, strict=True)
            )


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
