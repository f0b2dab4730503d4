"""Tables of the results of ``planning.py``, and of plans compared with ``calibration.py``."""

from collections.abc import Mapping
from typing import Any

from calibration_report import SMALLEST_ERROR

from trajstore.format.layout import Layout
from trajstore.planning.errors import ErrorRange
from trajstore.planning.estimate import Plan, plan_recording

HELD_OUT = ("mlp82k", "cnn", "transformer")
"""Trainings that no constant of plans was fitted to."""


def plain_error_of(run: Mapping[str, Any]) -> float:
    """Return the error of a plain sketch with the default number of bits."""
    if "plain error" in run:
        return float(run["plain error"])
    layout = Layout(("all",), ((run["padded parameters"],),))
    return plan_recording(layout, n_steps=run["steps"]).plain_error


def planning_table(results: dict[str, Any]) -> str:
    """Return the table of errors by window length, with one line per training run."""
    titles = (
        "training",
        "length of windows, % of the run",
        "error / error of a plain sketch, `basis=3`",
    )
    lines = [
        f"| {' | '.join(titles)} | `basis=1` | `basis=0` |",
        "|---|---|---|---|---|",
    ]
    for name, training in results.items():
        if name == "power":
            continue
        lengths, others = training["by epochs in a window"], training["by basis"]
        shares = [f"{100 * float(n) / training['epochs']:.2g}" for n in lengths]
        plain = plain_error_of(training)
        cells = [", ".join(shares)]
        for by_length in (lengths, others.get("1", {}), others.get("0", {})):
            left = [f"{e['from signs'] / plain:.2f}" for e in by_length.values()]
            cells.append(", ".join(left))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plan_of(result: Mapping[str, Any]) -> Plan:
    """Return the plan of a recording of the calibration."""
    sizes = result["sizes of layers"]
    names = tuple(f"tensor {i}" for i in range(len(sizes)))
    return plan_recording(
        Layout(names, tuple((size,) for size in sizes)),
        n_steps=result["steps"],
        steps_per_epoch=result["steps per epoch"],
        # Recorders of the calibration have a window for every epoch.
        reference_every=result["steps per epoch"],
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
        planned = plan_of(result).plain_error / plan_of(results[name]).plain_error
        error = _numerator_error(result)
        measured = f"{error / _numerator_error(results[name]):.4f}"
        cells = [
            f"{result['parameters']:,} parameters",
            f"{result['sketch bits']:,}",
            f"{planned:.4f}",
            measured if error >= SMALLEST_ERROR else "exact",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _numerator_error(result: Mapping[str, Any]) -> float:
    """Return the rms error of <g, x - x*> mid-run, relative to |g| |x - x*|."""
    error: float = result["quantities"]["lolr"]["middle"]["step"]["error"]
    return error


def ends_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of errors at the end of schedules that decay to 0."""
    titles = (
        "training under a cosine",
        "parameters",
        "error of an epoch mean, mid-run",
        "last fifth of epochs / mid-run",
        "error / standard error there",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in results.items():
        shown = [f"{ratio:.1f}" for ratio in sorted(row["last fifth over mid-run"])]
        cells = [
            name,
            f"{row['parameters']:,}",
            f"{row['mid-run']:.2g}",
            " to ".join(dict.fromkeys([shown[0], shown[-1]])),
            f"{row['error over standard error']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def like_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the table of errors that are planned from a recorded run, relative to measured ones."""
    titles = ("recording", "error of a step", "planned / measured", "of an epoch mean")
    lines = [
        f"| {' | '.join((*titles, 'planned / measured'))} |",
        "|---|---|---|---|---|",
    ]
    for name, recordings in results.items():
        for options, errors in recordings.items():
            step, mean = (errors[part] for part in ("step", "mean"))
            ratios = errors["planned step"] / step, errors["planned mean"] / mean
            cells = [f"{name}, {options}", f"{step:.2g}", f"{ratios[0]:.2f}"]
            lines.append(
                f"| {' | '.join([*cells, f'{mean:.2g}', f'{ratios[1]:.2f}'])} |"
            )
    return "\n".join(lines)
