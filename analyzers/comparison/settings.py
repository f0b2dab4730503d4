"""Find the settings in which runs differ."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from trajstore.format.attrs import TRAINING
from trajstore.reading.run import Run

MAX_SETTINGS: Final = 100
"""Largest number of settings that are compared."""

MAX_NAME: Final = 60
"""Longest name of a setting, in characters."""

MAX_TEXT: Final = 200
"""Longest text of a setting's value, in characters."""

MAX_DEPTH: Final = 3
"""Number of nested levels of a run's metadata that are told apart."""


def different_settings(runs: Sequence[Run]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the settings that differ between runs by name, each an array (run,)."""
    # An array holds float64, bool or, if kinds are mixed or values missing, text. Names consist
    # of letters, digits and "_.+-", so that they are paths of arrays.
    of_runs = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for settings in of_runs for name in settings)
    different = {}
    for name in names:
        values = [settings.get(name) for settings in of_runs]
        if len(values) > 1 and any(value != values[0] for value in values[1:]):
            different[name] = _as_array(values)
        if len(different) == MAX_SETTINGS:
            break
    return different


def settings_of(run: Run) -> dict[str, Any]:
    """Return what is known about a run: metadata, optimizer, recorder and length."""
    spec = run.spec
    facts: dict[str, Any] = {
        "status": run.status,
        "steps": run.n_steps,
        "epochs": run.n_epochs,
        "parameters": run.layout.n_params,
        "steps_per_epoch": spec.steps_per_epoch,
    }
    attrs = dict(run.attrs)
    # Settings of traj-train are not nested in the names that users see.
    training = attrs.pop(TRAINING, {})
    if isinstance(training, Mapping):
        facts |= _flat(training, MAX_DEPTH)
    facts |= _flat(attrs, MAX_DEPTH)
    for i, group in enumerate(run.stored.document.optimizer):
        prefix = "optimizer" if i == 0 else f"optimizer.{i}"
        facts[f"{prefix}.class"] = group.optimizer
        facts |= {f"{prefix}.{k}": v for k, v in group.at(0).items()}
    if "lr" in run.metrics:
        rates = run.steps["lr"].values
        facts["optimizer.lr"] = float(np.nanmax(rates, initial=0.0))
    recorder = ("seed", "sketch_bits", "basis", "probes", "exact")
    facts |= {f"recorder.{name}": getattr(spec, name) for name in recorder}
    named: dict[str, Any] = {}
    for name, value in facts.items():
        named.setdefault(_as_path(name), value)
    return named


def _flat(values: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Join the names of nested mappings with dots; other containers become JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and depth > 1:
            flat |= {f"{name}.{k}": v for k, v in _flat(value, depth - 1).items()}
        elif isinstance(value, Mapping | list | tuple):
            flat[name] = json.dumps(value, default=str)
        else:
            flat[name] = value
    return flat


def _as_array(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    if all(type(value) is bool for value in values):
        return np.array(values)
    if all(type(value) in {int, float} for value in values):
        return np.array(values, np.float64)
    return np.array(["" if v is None else _plain(str(v)) for v in values], object)


def _as_path(name: str) -> str:
    """Return the name of a setting as the name of an array in a store."""
    path = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name)[:MAX_NAME].strip("._-")
    return "setting" if path in {"", "zarr.json"} else path


def _plain(text: str) -> str:
    """Return text that any store can hold, not longer than `MAX_TEXT`."""
    return text[:MAX_TEXT].encode(errors="backslashreplace").decode()
