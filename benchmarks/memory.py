"""Predict memory and disk space of recordings, for up to 70 billion parameters.

The numbers come from `trajstore.planning.estimate`, which tests compare with recordings.
"""

from dataclasses import replace

import tyro
from rich.console import Console
from rich.table import Table
from saving import save_results

from trajstore.planning.estimate import Plan, guess_layout, plan_recording

PARAMETER_COUNTS = (10**6, 11_200_000, 10**8, 10**9, 7 * 10**9, 70 * 10**9)
BASES = (1, 2, 3)
RANKS = (8, 64, 512)


def main(*, steps: int = 100_000, steps_per_epoch: int = 1000) -> None:
    """Compute, print and save the results.

    Parameters
    ----------
    steps : int, default: 100000
        Optimizer steps in the run.
    steps_per_epoch : int, default: 1000
        Optimizer steps in an epoch, and in a window.
    """
    rows = []
    for n_params in PARAMETER_COUNTS:
        default = plan_recording(
            guess_layout(n_params), n_steps=steps, steps_per_epoch=steps_per_epoch
        )
        for basis in BASES:
            plan = Plan(spec=replace(default.spec, basis=basis))
            anchors = sum(plan.bytes_of_anchors.values())
            rows.append(
                {
                    "parameters": n_params,
                    "tensors": len(plan.spec.names),
                    "basis": basis,
                    "memory": plan.memory,
                    "memory by ranks": {n: plan.memory_of_rank(n) for n in RANKS},
                    "gathered on the first rank": plan.gathered,
                    "disk per step": sum(plan.bytes_per_step.values()),
                    "disk per window": anchors / plan.n_windows,
                }
            )
    save_results(rows, "memory")
    names = (name for name, value in rows[0].items() if not isinstance(value, dict))
    table = Table(*names, box=None, title="Bytes")
    for row in rows:
        figures = (v for v in row.values() if not isinstance(v, dict))
        table.add_row(*(f"{value:.4g}" for value in figures))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
