"""Command line: train an experiment, recorded or under the two-run protocol."""

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import track
from rich.table import Table
from tyro.conf import subcommand

from train.digits_mlp import DigitsMLP
from train.digits_resnet import DigitsResNet
from train.english_transformer import EnglishTransformer
from train.two_run import two_run as exact_geometry
from trajstore.command_line import run_command_line
from trajstore.defaults import BASIS, SKETCH_BITS
from trajstore.recorder import Recorder

EXPERIMENTS = {
    "digits-resnet": DigitsResNet,
    "digits-mlp": DigitsMLP,
    "english-transformer": EnglishTransformer,
}

Experiment = (
    Annotated[DigitsResNet, subcommand("digits-resnet")]
    | Annotated[DigitsMLP, subcommand("digits-mlp")]
    | Annotated[EnglishTransformer, subcommand("english-transformer")]
)


def run(
    experiment: Experiment,
    *,
    out: Path,
    exact: bool = False,
    sketch_bits: int = SKETCH_BITS,
    basis: int = BASIS,
) -> None:
    """Train once and record.

    Parameters
    ----------
    experiment : Experiment
        What to train.
    out : Path
        Store to write; must not exist.
    exact : bool, default: False
        Store whole gradients and iterates instead of sketches.
    sketch_bits : int, default: 65536
        Signs kept of every gradient, a power of two.
    basis : int, default: 3
        Directions in which gradients are known exactly.
    """
    observe = partial(Recorder, out, exact=exact, sketch_bits=sketch_bits, basis=basis)
    experiment.train(observe, partial(track, description="recording"))
    Console().print(
        f"Recorded {out}. Next: traj-analyze geometry {out}",
        markup=False,
        soft_wrap=True,
    )


def two_run(experiment: Experiment, *, out: Path, layers: bool = False) -> None:
    """Train twice and measure the geometry exactly, as the published protocol does.

    Parameters
    ----------
    experiment : Experiment
        What to train.
    out : Path
        Zarr store to write, for xarray; must not exist.
    layers : bool, default: False
        Tell the parameter tensors apart.

    Raises
    ------
    FileExistsError
        If `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose a new path.")
    runs = iter(("first run", "second run"))
    exact = exact_geometry(
        lambda observe: experiment.train(
            observe, partial(track, description=next(runs))
        ),
        layers=layers,
    )
    exact.to_zarr(out, mode="w-", consolidated=False)
    Console().print(
        f'Exact geometry in {out}: xarray.open_zarr("{out}", consolidated=False)',
        markup=False,
        soft_wrap=True,
    )


def list_experiments() -> None:
    """Show what can be trained; all data is at hand without a download."""
    table = Table("name", "what it is", box=None, pad_edge=False)
    for name, experiment in EXPERIMENTS.items():
        summary = inspect.getdoc(experiment) or ""
        table.add_row(name, summary.partition("\n")[0])
    Console().print(table)


def main() -> None:
    """Run the command line."""
    run_command_line(
        {"run": run, "two-run": two_run, "list": list_experiments},
        prog="traj-train",
        description="Train an experiment, recorded or under the two-run protocol.",
    )


if __name__ == "__main__":
    main()
