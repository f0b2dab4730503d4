"""Tables of the results of ``planning.py``, and of plans compared with recordings."""

from collections.abc import Mapping
from typing import Any

from calibration_report import SMALLEST_ERROR

from trajstore.format.layout import Layout
from trajstore.planning.estimate import Plan, plan_recording


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


WINDOWS = {
    "half": "windows of half an epoch",
    "double": "windows of two epochs",
    "p4096": "`probes=4096`",
}


def like_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of planned over measured errors by the number of signs."""
    return _ratios(results, {"default": "65,536"} | _BITS)


def windows_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of planned over measured errors by windows and probes."""
    return _ratios(results, WINDOWS)


_BITS = {f"2^{k}": f"{1 << k:,}" for k in (17, 18, 19, 20)}


def _ratios(
    results: Mapping[str, Mapping[str, Any]], options: Mapping[str, str]
) -> str:
    titles = ["training", "`sketch_bits`" if "default" in options else "recording"]
    for part in ("a step", "an epoch mean"):
        titles += [f"error of {part}", "same run", "another run", "no run"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, result in results.items():
        before = None
        for option, title in options.items():
            errors = result[option]
            if errors["step"] == before:
                # More bits than a number can have change nothing.
                continue
            before = errors["step"]
            cells = [f"{name}, {result['parameters']:,}", title]
            for part in ("step", "mean"):
                measured = errors[part]
                cells.append(f"{measured:.2g}")
                cells += [
                    f"{errors[like][part][1] / measured:.2f}"
                    for like in ("same", "other")
                ]
                low, typical, high = (e / measured for e in errors["none"][part])
                cells.append(f"{typical:.2f} ({low:.2f} to {high:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
