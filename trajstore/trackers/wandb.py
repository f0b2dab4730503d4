"""Send values to Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import wandb

STEP: Final = "trajectory/step"
"""Horizontal axis of the charts. Steps of W&B only count calls, also those of training."""


class WeightsAndBiases:
    """Send values of a run to a project of Weights & Biases.

    A run that the program has begun is used, and stays open; otherwise a run is begun and
    finished. W&B's own settings, such as ``WANDB_MODE=offline``, apply.

    Parameters
    ----------
    project : str, optional
        Name of the project, or ENTITY/PROJECT. Default: that of W&B's settings.
    run : wandb.Run, optional
        An open run to use. Default: the open run of the program, if any.
    """

    def __init__(self, project: str | None = None, *, run: Any = None) -> None:
        self._project = project or None
        self._run: Any = wandb.run if run is None else run
        self._is_ours = self._run is None

    def _opened(self) -> Any:
        if self._run is None:
            entity, _, project = (self._project or "").rpartition("/")
            self._run = wandb.init(
                entity=entity or None,
                project=project or None,
                # Leave other runs of the program, and its output, alone.
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        return self._run

    def _log(self, values: dict[str, Any]) -> None:
        self._opened().log(values)

    def settings(self, values: Mapping[str, object]) -> None:
        """Add the settings to the configuration of the run, and choose the axis of the charts.

        Parameters
        ----------
        values : mapping from str to object
            Settings by name.
        """
        run = self._opened()
        run.config.update({"trajectory": dict(values)}, allow_val_change=True)
        run.define_metric(STEP, hidden=True)
        for group in ("trajectory/*", "layer_*"):
            run.define_metric(group, step_metric=STEP)

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Send values of a step.

        Parameters
        ----------
        step : int
            Optimizer step.
        values : mapping from str to float
            Values by name.
        time : float
            Not used: W&B takes its own time.
        """
        del time
        self._log({**values, STEP: step})

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
        self._log({name: wandb.Image(str(path)), STEP: step})

    def page(self, name: str, path: Path) -> None:
        """Send an HTML page.

        Parameters
        ----------
        name : str
            Name of the page.
        path : Path
            The page.
        """
        # W&B would add a style sheet to pages that it does not know.
        self._log({name: wandb.Html(path.read_text(), inject=False)})

    def close(self) -> None:
        """Finish the run, unless the program has begun it."""
        if self._is_ours and self._run is not None:
            self._run.finish()
