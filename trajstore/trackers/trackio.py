"""Send values to trackio."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio
from trackio.context_vars import current_run


class Trackio:
    """Keep values of a run in a project of trackio, which ``trackio show`` shows.

    A run that the program has begun is used, and stays open; otherwise a run is begun and
    finished.

    Parameters
    ----------
    project : str, optional
        Name of the project; needed unless the program has begun a run.
    run : trackio.Run, optional
        An open run to use. Default: the open run of the program, if any.
    """

    def __init__(self, project: str | None = None, *, run: Any = None) -> None:
        self._project = project
        self._run: Any = current_run.get() if run is None else run
        self._is_ours = self._run is None

    def _opened(self, config: dict[str, Any] | None = None) -> Any:
        if self._run is None:
            if not self._project:
                raise ValueError(
                    "trackio needs the name of a project, such as trackio:PROJECT, unless "
                    "the program has begun a run with trackio.init."
                )
            self._run = trackio.init(
                self._project,
                config=config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._run

    def settings(self, values: Mapping[str, object]) -> None:
        """Begin the run with the settings as its configuration, unless it has begun.

        Parameters
        ----------
        values : mapping from str to object
            Settings by name.
        """
        self._opened({"trajectory": dict(values)})

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Send values of a step.

        Parameters
        ----------
        step : int
            Optimizer step.
        values : mapping from str to float
            Values by name.
        time : float
            Not used: trackio takes its own time.
        """
        del time
        self._opened().log(dict(values), step=step)

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Send an image.

        Parameters
        ----------
        name : str
            Name of the image.
        path : Path
            A PNG file.
        step : int
            Step of the image.
        """
        self._opened().log({name: trackio.Image(str(path))}, step=step)

    def page(self, name: str, path: Path) -> None:
        """Send an HTML page.

        Parameters
        ----------
        name : str
            Name of the page.
        path : Path
            The page.
        """
        self._opened().log({name: trackio.Html(path.read_text())})

    def close(self) -> None:
        """Send everything, and finish the run unless it was given."""
        if self._is_ours and self._run is not None:
            self._run.finish()
