"""Interface of experiment trackers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Sink(Protocol):
    """A place that keeps values, figures and pages of a run.

    Methods are called from one thread at a time, and not from the training thread. They may
    be slow, and may raise any error: the run then sends nothing more to this sink, and warns.
    """

    def settings(self, values: Mapping[str, object]) -> None:
        """Keep the settings of the run, JSON-serialisable values by name.

        Parameters
        ----------
        values : mapping from str to object
            Settings by name; mappings may be nested.
        """

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Keep values of a step.

        Parameters
        ----------
        step : int
            Optimizer step, counted from 0.
        values : mapping from str to float
            Values by name; a slash ends the name of a group of charts. NaN is a value.
        time : float
            When the step was taken, in seconds since 1970.
        """

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Keep an image.

        Parameters
        ----------
        name : str
            Name of the figure.
        path : Path
            A PNG file.
        step : int
            Last step that the figure shows.
        """

    def page(self, name: str, path: Path) -> None:
        """Keep an HTML page, or refer to it if the tracker cannot show pages.

        Parameters
        ----------
        name : str
            Name of the page.
        path : Path
            A self-contained HTML file.
        """

    def close(self) -> None:
        """Send everything, and wait until it is sent."""
