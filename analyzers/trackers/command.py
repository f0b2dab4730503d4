"""Sub-command that sends a run to a tracker."""

from tyro.conf import Positional

import analyzers
import trajstore
from analyzers._reporting import say


def log(
    store: Positional[str],
    *,
    to: str,
    every: int | None = None,
    layers: bool = True,
) -> None:
    """Send steps, stored geometry, figures and the explorer page of a run to a tracker.

    Computes nothing: run traj-analyze geometry and traj-analyze explore first to send their
    results too.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    to : str
        The tracker: tensorboard:FOLDER, wandb:PROJECT, mlflow:URI or trackio:PROJECT. For W&B
        and MLflow, the part after the colon may be missing; their own settings then apply.
    every : int, optional
        Send each step whose number is a multiple of this. Default: at most 1000 steps.
    layers : bool, default: True
        Also send norms, ratios and cosines of every layer.
    """
    run = trajstore.open_run(store)
    sent = analyzers.log(run, to=to, every=every, layers=layers)
    counts = ", ".join(
        f"{n} {name if n != 1 else SINGULAR[name]}" for name, n in sent.items()
    )
    say(f"Sent to {to}: {counts}.")
    if not sent["geometries"]:
        say(f"There is no geometry next to the run: traj-analyze geometry {store}")


SINGULAR = {
    "steps": "step",
    "geometries": "geometry",
    "figures": "figure",
    "pages": "page",
}
