"""Choose where values go, and how often."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final

from trajstore.trackers.sink import Sink

SINKS: Final = {
    "tensorboard": ("TensorBoard", "FOLDER"),
    "wandb": ("WeightsAndBiases", "PROJECT"),
    "mlflow": ("MLflow", "URI"),
    "trackio": ("Trackio", "PROJECT"),
}
"""Class of each kind of tracker, in the module of the kind's name, and its argument."""

NEED_NO_ARGUMENT: Final = ("wandb", "mlflow", "trackio")
"""Kinds that may use an open run of the program, or their own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Where values of steps go during training, and which values.

    Parameters
    ----------
    to : str or Sink
        An address as for `open_sink`, or an object with the methods of `Sink`.
    every : int, default: 100
        Report each step whose number is a multiple of this.
    layers : bool or sequence of str, default: True
        Also report norms, ratios and cosines of layers: of all, of none, or of those whose
        names match one of these patterns, such as ``"*.weight"``.

    Raises
    ------
    ValueError
        If `every` is less than 1.
    """

    to: str | Sink
    every: int = 100
    layers: bool | Sequence[str] = True

    def __post_init__(self) -> None:
        """Check the interval, and that a single pattern is not taken for several."""
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}.")
        if isinstance(self.layers, str):
            object.__setattr__(self, "layers", (self.layers,))


ReportTo = str | Sink | Reporter | Iterable[str | Sink | Reporter]
"""One destination or several."""


def as_reporters(
    report_to: ReportTo, *, warn: Callable[[str], None] | None = None
) -> list[Reporter]:
    """Return destinations as reporters, with open sinks instead of addresses."""
    # With `warn`, a tracker whose package is missing is left out after a warning.
    if isinstance(report_to, (str, Reporter, Sink)):
        report_to = [report_to]
    reporters = []
    for each in report_to:
        given = each if isinstance(each, Reporter) else Reporter(to=each)
        try:
            sink = _as_sink(given.to)
        except ModuleNotFoundError as error:
            if warn is None:
                raise
            warn(f"Nothing is sent to {given.to!r}: {error}")
        else:
            reporters.append(replace(given, to=sink))
    return reporters


def _as_sink(to: str | Sink) -> Sink:
    if isinstance(to, str):
        return open_sink(to)
    if not isinstance(to, Sink):
        raise TypeError(
            f"Expected an address such as {_addresses()}, or an object with the methods of "
            f"trajstore.trackers.Sink, got {to!r}."
        )
    return to


def open_sink(address: str) -> Sink:
    """Return the sink at an address.

    Parameters
    ----------
    address : str
        ``tensorboard:FOLDER``, ``wandb:PROJECT``, ``mlflow:URI`` or ``trackio:PROJECT``; or
        ``wandb``, ``mlflow`` or ``trackio``, for the run that the program has begun or, except
        with trackio, for the tracker's own settings.

    Returns
    -------
    Sink
        The sink. It opens a run or a file when it is first used.

    Raises
    ------
    ValueError
        If there is no tracker of this kind, or its address lacks the part after the colon.
    ModuleNotFoundError
        If the tracker's package is not installed; the message says how to install it.
    """
    kind, _, argument = address.partition(":")
    if kind not in SINKS or not (argument or kind in NEED_NO_ARGUMENT):
        raise ValueError(f"Expected a tracker such as {_addresses()}, got {address!r}.")
    try:
        module = import_module(f"trajstore.trackers.{kind}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{kind} needs the package {error.name}, which is not installed. Run\n"
            f'pip install "trajstore[{kind}]"',
            name=error.name,
        ) from error
    make: Callable[[Any], Sink] = getattr(module, SINKS[kind][0])
    return make(argument)


def _addresses() -> str:
    names = [f"{kind}:{argument}" for kind, (_, argument) in SINKS.items()]
    return f"{', '.join(names[:-1])} or {names[-1]}"
