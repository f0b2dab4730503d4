"""Draw the figure of docs/accuracy.md: gamma of one recorded run and of two exact runs."""

import tempfile
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from figures import save_figure
from rich.progress import track

import analyzers
import trajstore
from analyzers._colors import COLORS
from train.loop import train as train_workload
from train.protocols.two_run import two_run
from train.workloads.catalogue import settings_of


def main() -> None:
    """Train three times, and draw gamma."""
    mpl.use("agg")
    experiment = settings_of("digits-resnet")
    train = partial(train_workload, experiment, track=track)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        train(partial(trajstore.Recorder, path))
        recorded = analyzers.path_geometry(trajstore.open_run(path)).compute()
    exact = two_run(train)
    shown = recorded["epoch"] < experiment.epochs - 1
    recorded, exact = recorded.sel(step=shown), exact.sel(step=shown)

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.4), width_ratios=[3, 2], layout="constrained"
    )
    epoch = recorded["step"] / (int(recorded["iteration"].max()) + 1)
    # The exact values are hollow, so that they do not hide the recorded points.
    left.errorbar(
        epoch,
        recorded["gamma"],
        recorded["gamma_stderr"],
        fmt=".",
        color=COLORS[0],
        markersize=3.5,
        elinewidth=1,
        label="recorded, with standard errors",
    )
    left.plot(
        epoch,
        exact["gamma"],
        "o",
        color="0.45",
        markerfacecolor="none",
        markersize=4.5,
        markeredgewidth=0.6,
        label="exact, two identical runs",
    )
    left.legend(frameon=False)
    left.set(
        xlabel="epoch",
        ylabel=r"$\gamma$",
        title="cosine of each gradient and $x - x^*$",
        ylim=(0, None),
    )
    right.plot(exact["gamma"], exact["gamma"], color="0.6", linewidth=1)
    right.errorbar(
        exact["gamma"],
        recorded["gamma"],
        recorded["gamma_stderr"],
        fmt=".",
        color=COLORS[0],
        markersize=2,
        elinewidth=0.6,
    )
    right.set(
        xlabel="exact, two identical runs",
        ylabel="one recorded run",
        title=r"the same $\gamma$, with error bars",
    )
    save_figure(figure, "gamma", dpi=110)


if __name__ == "__main__":
    main()
