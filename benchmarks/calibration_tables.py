"""Tables of the results of ``calibration.py``, and of plans compared with them."""

from collections.abc import Iterable, Mapping
from typing import Any

from trajstore.format.layout import Layout
from trajstore.planning.errors import ErrorRange
from trajstore.planning.estimate import Plan, plan_recording

HELD_OUT = ("mlp82k", "cnn", "transformer")
"""Trainings that no constant of plans was fitted to."""


def calibration_table(results: dict[str, Any]) -> str:
    """Return the table of honest standard errors, with one line per case."""
    titles = (
        "training",
        "parameters",
        "rms error of gamma: step, epoch mean",
        "z of steps",
        "z of epoch means",
        "z, first epoch",
        "z, last epoch",
        "z by layer",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def spread(scored: Iterable[dict[str, float]]) -> str:
        values = [s["z"] for s in scored]
        return f"{min(values):.2f} to {max(values):.2f}" if values else ""

    for name, result in results.items():
        parts = result["quantities"].values()
        middle = result["quantities"]["gamma"]["middle"]
        cells = [
            name,
            f"{result['parameters']:,}",
            f"{middle['step']['error']:.5f}, {middle['mean']['error']:.5f}",
            spread(part["middle"]["step"] for part in parts),
            spread(part["middle"]["mean"] for part in parts),
            spread(part["first"]["step"] for part in parts),
            spread(part["last"]["step"] for part in parts),
            spread(
                layer
                for layers in result.get("layers", {}).values()
                for layer in layers.values()
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(
        (abs(scored["t"]), f"{quantity} of {name}, {kind}")
        for name, result in results.items()
        for quantity, parts in result["quantities"].items()
        for kind, scored in parts["middle"].items()
    )
    n = sum(2 * len(result["quantities"]) for result in results.values())
    seeds = {result["seeds"] for result in results.values()}
    lines += [
        "",
        (
            f"{' or '.join(map(str, sorted(seeds)))} recorders per case. The largest of the {n} "
            f"mean errors mid-run is {worst[0]:.1f} standard errors of that mean ({worst[1]})."
        ),
    ]
    return "\n".join(lines)


def plan_of(result: Mapping[str, Any]) -> Plan:
    """Return the plan of a recording of the calibration."""
    sizes = result["sizes of layers"]
    names = tuple(f"tensor {i}" for i in range(len(sizes)))
    return plan_recording(
        Layout(names, tuple((size,) for size in sizes)),
        n_steps=result["steps"],
        steps_per_epoch=result["steps per epoch"],
        sketch_bits=result["sketch bits"],
        rate=result["rate"],
        optimizer=result["optimizer"],
    )


def plans_table(results: Mapping[str, Any]) -> str:
    """Return the table of planned and of actual errors of gamma."""
    titles = (
        "training",
        "error of a step: plan",
        "measured",
        "error of an epoch mean: plan",
        "measured",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def shown(error: ErrorRange) -> str:
        return f"{error.typical:.5f} ({error.low:.5f} to {error.high:.5f})"

    for name in HELD_OUT:
        result = results[name]
        plan, measured = plan_of(result), result["quantities"]["gamma"]["middle"]
        cells = [
            f"{name}, {result['optimizer']}, {result['rate']} rate",
            shown(plan.stderr()),
            f"{measured['step']['error']:.5f}",
            shown(plan.stderr(mean_of=result["steps per epoch"])),
            f"{measured['mean']['error']:.5f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def signs_table(results: Mapping[str, Any]) -> str:
    """Return the table of errors by the number of signs, relative to the default number."""
    titles = ("training", "`sketch_bits`", "error / default error: plan", "measured")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for title, result in results.items():
        name, _, case = title.partition(", ")
        if not case.endswith(" signs") or result["parameters"] < 2000:
            continue
        planned, measured = (
            [of(results[name]), of(result)]
            for of in (lambda r: plan_of(r).plain_error, _numerator_error)
        )
        cells = [
            f"{result['parameters']:,} parameters",
            f"{result['sketch bits']:,}",
            *(f"{new / old:.3f}" for old, new in (planned, measured)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _numerator_error(result: Mapping[str, Any]) -> float:
    """Return the rms error of <g, x - x*> mid-run, relative to |g| |x - x*|."""
    error: float = result["quantities"]["lolr"]["middle"]["step"]["error"]
    return error
