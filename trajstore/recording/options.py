"""Define and check the options of a recorder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from pathlib import Path
from typing import Any, Final, Literal, Self, TypedDict

from torch.optim import SGD, Optimizer

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import sketch_fields
from trajstore.format.window_length import choose_windows
from trajstore.format.windows import Windows
from trajstore.sketch.window_sum import with_window_sums
from trajstore.store.location import is_remote
from trajstore.trackers.reporter import ReportTo

OnError = Literal["raise", "warn"]

INTEGERS: Final = ("steps_per_epoch", "total_steps", "reference_every", "step")
"""Options that may be NumPy integers, which become Python integers."""


class RecorderKeywords(TypedDict, total=False):
    """Keyword arguments of `trajstore.Recorder`, for functions that pass them on."""

    steps_per_epoch: int | None
    total_steps: int | None
    reference_every: int | None
    sketch_bits: int
    basis: int
    probes: int
    exact: bool
    float64: bool
    seed: int
    flush_rows: int
    flush_seconds: float
    resume: Mapping[str, Any] | bool
    step: int | None
    overwrite: bool
    on_error: OnError
    journal: bool
    fsync: bool
    attrs: Mapping[str, Any]
    updates: bool
    group: Any
    samples: int
    offload: bool
    report_to: ReportTo


@dataclass(frozen=True, kw_only=True, eq=False)
class RecorderOptions:
    """Options of `trajstore.Recorder`, whose signature holds the defaults."""

    steps_per_epoch: int | None
    total_steps: int | None
    reference_every: int | None
    sketch_bits: int
    basis: int
    probes: int
    exact: bool
    float64: bool
    seed: int
    flush_rows: int
    flush_seconds: float
    resume: Mapping[str, Any] | bool
    step: int | None
    overwrite: bool
    on_error: OnError
    journal: bool
    fsync: bool
    attrs: Mapping[str, Any]
    updates: bool
    group: Any
    samples: int
    offload: bool
    report_to: ReportTo

    @classmethod
    def pick(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the options among a function's arguments; ignore its other arguments."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        for name in INTEGERS:
            object.__setattr__(self, name, _as_int(name, getattr(self, name)))
        object.__setattr__(self, "samples", index(self.samples))
        object.__setattr__(self, "attrs", _as_json(self.attrs))
        if self.flush_rows < 1 or self.flush_seconds <= 0:
            raise ValueError(
                "`flush_rows` must be at least 1 and `flush_seconds` positive, got "
                f"{self.flush_rows} and {self.flush_seconds}."
            )
        if self.on_error not in {"raise", "warn"}:
            raise ValueError(
                f"`on_error` must be 'raise' or 'warn', got {self.on_error!r}."
            )

    def run_spec(
        self,
        layout: Layout,
        optimizers: Sequence[Optimizer],
        *,
        is_double: bool = False,  # whether some parameters are float64
        is_wide: bool = False,  # whether products may leave the range of float32
    ) -> RunSpec:
        """Return the description of a run with these options, after checking it."""
        float64 = self.float64 or is_double
        spec = RunSpec.from_json(
            {
                "names": layout.names,
                "shapes": layout.shapes,
                "seed": self.seed,
                **sketch_fields(layout.n_params, self.sketch_bits),
                "basis": self.basis,
                "probes": self.probes,
                "steps_per_epoch": self.steps_per_epoch,
                "reference_every": self.reference_every,
                "total_steps": self.total_steps,
                "exact": self.exact,
                "compressed": self.exact,
                "samples": self.samples,
                "float64": float64,
                "scaled": is_wide and not float64,
            }
        )
        if layout.size == 0:
            raise ValueError("The model's parameters have no elements to record.")
        is_sgd = all(type(optimizer) is SGD for optimizer in optimizers)
        spec = choose_windows(spec).spec
        return with_window_sums(spec, Windows.of(spec), is_sgd=is_sgd)

    def check_path(self, path: str | Path) -> None:
        """Raise an error if the options do not fit each other, or the kind of storage."""
        if self.overwrite and self.resume:
            raise ValueError(
                "overwrite=True deletes the recording that `resume` continues; give only one "
                "of these options."
            )
        if self.journal and is_remote(str(path)):
            raise ValueError(
                f"A journal needs a local store, but {path} is remote. Record to a local "
                "directory, or set flush_rows=1 instead of journal=True."
            )

    def check_sharded(self) -> None:
        """Raise an error if an option is given that sharded parameters do not support."""
        unsupported = {
            "exact=True": self.exact,
            "float64=True": self.float64,
            "on_error='warn'": self.on_error == "warn",
            "offload=True": self.offload,
        }
        if given := [name for name, is_given in unsupported.items() if is_given]:
            raise NotImplementedError(
                "Parameters that are divided among ranks cannot be recorded with "
                f"{' or '.join(given)}; leave out these options. A failure of recording then "
                "raises an error on all ranks, because none can go on alone."
            )


def _as_json(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes in the form in which the store will return them."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`attrs` must be a mapping that JSON can represent: {error}. Use only "
            "strings, finite numbers, booleans, None, lists and mappings."
        ) from error
    return copied


def _as_int(name: str, number: Any) -> int | None:
    try:
        return None if number is None else index(number)
    except TypeError as error:
        raise TypeError(f"`{name}` must be an integer, got {number!r}.") from error
