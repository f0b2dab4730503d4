"""Write tables of results into README.md and docs, between their markers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from trajstore.format.run_spec import SKETCH_BITS
from trajstore.planning.estimate import plain_error

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def accuracy_table(results: dict[str, Any]) -> str:
    """One column for each workload."""
    workloads = results["workloads"]
    lines = ["| rms error of gamma in one step | " + " | ".join(workloads) + " |"]
    lines.append("|---|" + "---|" * len(workloads))

    def add(title: str, *path: str, digits: int = 4) -> None:
        values = []
        for workload in workloads.values():
            value = workload
            for key in path:
                value = value[key]
            values.append(f"{value:.{digits}f}")
        lines.append(f"| {title} | " + " | ".join(values) + " |")

    add("mean gamma", "mean gamma", digits=3)
    for scheme in workloads["digits ResNet"]["middle"]["schemes"]:
        add(f"8 KB per step: {scheme}", "middle", "schemes", scheme)
    rms = "rms error of gamma"
    add("**recorded**, mid-run", "middle", rms)
    add("**recorded**, first epoch", "first", rms)
    add("**recorded**, last epoch", "last", rms)
    add("**recorded**, mean of an epoch", "epoch means", rms, digits=5)
    add("error over standard error, std", "middle", "std of z", digits=2)
    ratio = "bytes of a float32 projection over signs and scales"
    add("float32 projection of equal error, bytes over signs' bytes", ratio, digits=0)
    whole = "bytes of a float32 projection over the whole store"
    add("the same, over all bytes of the store", whole, digits=0)
    limit = results["white limit"]
    lines.append("")
    lines.append(
        f"No code of 65,536 bits can do better than {limit:.4f} on unstructured "
        "gradients; weights and low rank use structure, and do better."
    )
    return "\n".join(lines)


def overhead_table(results: dict[str, Any]) -> str:
    """Cost in time and memory."""
    digits = results["digits ResNet"]
    lines = ["| cost, 2 CPU cores | |", "|---|---|"]

    def add(title: str, value: str) -> None:
        lines.append(f"| {title} | {value} |")

    for title, name in (
        ("digits ResNet, recorded over plain training", "recorded over plain"),
        (
            "digits ResNet, recorded and analysed over the two-run protocol",
            "recorded and analysed over two-run",
        ),
    ):
        ratio = digits[name]
        interval = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}"
        add(title, f"{ratio['median']:.2f} ({interval})")
    for name, hooks in results["ResNet-18"].items():
        title = f"ResNet-18, 11.2 M parameters, {name}: time in hooks over step"
        add(title, f"{hooks['hooks over step']:.3f}")
    peak = results["peak memory, float32 vectors"]
    add("peak extra memory, in float32 vectors of all parameters", f"{peak:.1f}")
    return "\n".join(lines)


def scale_table(results: list[dict[str, Any]]) -> str:
    """Cost of large stores, from several results."""
    analysis, stalls, [full] = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("analysis", "stalls", "full_size")
    )
    flush = stalls["flush on the training thread, ms"]["percentile 99.5"]
    largest = max(results, key=lambda r: r["parameters"] * r["steps"])
    peak = max(
        result[f"peak GiB of a worker, {n}"]
        for result in results
        for n in ("1 worker", "2 workers")
    )
    rate = analysis["steps per second, workers"]
    share = analysis["analysis over matrix product, workers"]
    shape = f"{full['steps']:,} steps, {full['parameters'] / 1e6:.1f} M parameters"
    rows = {
        "flush on the training thread, 99.5th percentile": f"{flush:.1f} ms",
        "analysis, 11.2 M parameters, 2 worker processes": f"{rate:,.0f} steps/s",
        "the same, operations relative to float32 matrix products": f"{share:.2f}",
        "analysis with 2 workers over 1, 25.7 M parameters": f"{largest['2 workers over 1']:.2f}",
        "largest memory of a worker, up to 25.7 M parameters": f"{peak:.2f} GiB",
        f"{shape}: files": f"{full['files']:,}",
        "the same: time to open, to select an epoch": f"{full['seconds to open']:.2f} s, "
        f"{full['seconds to select an epoch']:.2f} s",
    }
    lines = ["| cost of large runs, 2 CPU cores | |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def measurements_table(results: dict[str, Any]) -> str:
    """One line for each measured direction."""
    lines = [
        "| measured on the digits ResNet | mean | rms error | error over standard error, std |",
        "|---|---|---|---|",
    ]
    for title, row in results.items():
        numbers = f"{row['mean']:.3f} | {row['rms error']:.4f} | {row['std of z']:.2f}"
        lines.append(f"| {title.replace('x*', 'x' + chr(92) + '*')} | {numbers} |")
    return "\n".join(lines)


def alpha_beta_table(results: dict[str, Any]) -> str:
    """One line for each width."""
    lines = [
        "| width | smallest alpha, beta | products one stderr smaller | larger |",
        "|---|---|---|---|",
    ]

    def shown(pair: list[float]) -> str:
        return f"{pair[0]:.3f}, {pair[1]:.3f}"

    for width, (stricter, middle, looser) in results["widths"].items():
        cells = [str(width), shown(middle), shown(stricter), shown(looser)]
        lines.append(f"| {' | '.join(cells)} |")
    exact = results["exact"]
    label = f"{exact['width']}, whole gradients"
    lines.append(f"| {label} | {shown(exact['pair'])} | | |")
    return "\n".join(lines)


def planning_table(results: dict[str, Any]) -> str:
    """One line for each training run, with all window lengths."""
    titles = (
        "training",
        "length of windows, % of the run",
        "error over that of a plain sketch",
    )
    lines = [
        f"| {' | '.join(titles)} | `basis=1` | `basis=0` |",
        "|---|---|---|---|---|",
    ]
    for name, training in results.items():
        lengths, others = training["by epochs in a window"], training["by basis"]
        shares = [f"{100 * float(n) / training['epochs']:.2g}" for n in lengths]
        plain = plain_error(training["padded parameters"], SKETCH_BITS)
        cells = [", ".join(shares)]
        for by_length in (lengths, others["1"], others["0"]):
            left = [f"{e['from signs'] / plain:.2f}" for e in by_length.values()]
            cells.append(", ".join(left))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def per_step_table(results: list[dict[str, Any]]) -> str:
    """One line for each net, with one thread and two."""
    lines = [
        "| parameters | tensors | hooks, us | one read, us | 2 threads | one read |",
        "|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in results:
        cases.setdefault((row["parameters"], row["tensors"]), []).append(row)
    for (n_params, n_tensors), rows in cases.items():
        times = [f"{row[name]:,.0f}" for row in rows for name in ("hooks", "floor")]
        lines.append(f"| {n_params:,} | {n_tensors} | {' | '.join(times)} |")
    return "\n".join(lines)


def memory_table(results: list[dict[str, Any]]) -> str:
    """One line for each net."""
    nets: dict[int, list[dict[str, Any]]] = {}
    for row in results:
        nets.setdefault(row["parameters"], []).append(row)
    bases = [row["basis"] for row in next(iter(nets.values()))]
    titles = [f"memory, `basis={basis}`" for basis in bases]
    lines = [
        f"| parameters | {' | '.join(titles)} | disk per step | per window |",
        "|---" * (3 + len(bases)) + "|",
    ]
    for n_params, rows in nets.items():
        sizes = [row["memory"] for row in rows]
        sizes += [rows[-1][name] for name in ("disk per step", "disk per window")]
        cells = [decimal(round(size)) for size in sizes]
        lines.append(f"| {n_params / 1e6:,g} M | {' | '.join(cells)} |")
    return "\n".join(lines)


def zigzag_table(results: dict[str, Any]) -> str:
    """One line for each run, and for each branch of a run."""
    header = (
        "steps | cosine, mean | zigzag | smooth | path, zigzag | decrease | in zigzag"
    )
    lines = [f"| run | {header} |", "|---|" + "---|" * 7]

    def add(title: str, row: dict[str, float]) -> None:
        share = f"{row['decrease_share']:.0%}"
        if row["decrease_share_stderr"]:
            share += f" ± {row['decrease_share_stderr']:.0%}"
        cells = [
            f"{row['n_steps']}",
            f"{row['mean_cosine']:.3f}",
            f"{row['step_share']:.0%}",
            f"{row['smooth_share']:.0%}",
            f"{row['path_share']:.0%}",
            f"{row['total_decrease']:.3g}",
            share,
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")

    for name, row in results["runs"].items():
        add(name, row)
    for name, branches in results["scales"].items():
        for scale, row in branches.items():
            title = (
                "the parent after the branch point"
                if scale == "parent"
                else f"lr {scale}"
            )
            add(f"{name}: {title}", row)
    return "\n".join(lines)


def deep_linear_table(results: dict[str, Any]) -> str:
    """One line for each depth."""
    error = "largest error over largest strength, %"
    depths = results["depths"]
    rates = [rate for rate in depths["2"][error] if float(rate) in {0.02, 0.01, 0.005}]
    columns = [
        "layers",
        *(f"error at {rate}, % of the largest strength" for rate in rates),
        "exponent of the error",
        "of the drift",
        "first half time: run, flow",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for depth, of in depths.items():
        cells = [
            depth,
            *(f"{of[error][rate]:.2f}" for rate in rates),
            f"{of['exponent of the error']:.3f}",
            f"{of['exponent of the drift']:.3f}",
            f"{of['half times'][0]:.2f}, {of['half times of the flow'][0]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def between_layers_table(results: dict[str, Any]) -> str:
    """One line for each activation."""
    lines = [
        "| between layers | half times of modes | last values | smallest rank | loss |",
        "|---|---|---|---|---|",
    ]
    for name, of in results["between layers"].items():
        halves = ", ".join(f"{t:.1f}" if t else "-" for t in of["half times"])
        last = ", ".join(f"{mode:.2f}" for mode in of["last modes"])
        lines.append(
            f"| {name} | {halves} | {last} | {of['smallest effective rank']:.2f} | "
            f"{of['last loss over first']:.1g} |"
        )
    return "\n".join(lines)


def null_models_table(results: dict[str, Any]) -> str:
    """One line for each control."""
    columns = [
        "run",
        "gamma, mid-run",
        "excess over a walk of the same updates",
        "adjacent cosine",
        "its std",
        "cosine 5 steps apart",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]

    def with_error(pair: list[float]) -> str:
        value, error = pair
        digits = 1 - math.floor(math.log10(error))
        return f"{value:.{digits}f} ± {error:.{digits}f}"

    for name, of in results["runs"].items():
        cells = [
            name,
            f"{of['gamma'][0]:.3f}",
            with_error(of["excess"]),
            with_error(of["adjacent cosine"]),
            f"{of['adjacent cosine, std']:.2g}",
            with_error(of["cosine 5 steps apart"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    eighth = results["equation 8"]
    errors = (
        f"The recorded walk, of {eighth['steps']} steps in {eighth['parameters']:,} "
        f"dimensions, against 1/sqrt(T - k): errors over standard errors have a mean of "
        f"{eighth['mean of z']:.2f}, a standard deviation of {eighth['std of z']:.2f}, and "
        f"are at most {eighth['largest |z|']:.1f}."
    )
    return "\n".join([*lines, "", errors])


def sharpness_table(results: dict[str, Any]) -> str:
    """One line for each training run, and for each other finding."""
    lines = [
        "| training, learning rate | threshold | reached at step | ratio then, median | smallest to largest | within 10 % |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in results["edge"].items():
        spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        near = f"{100 * row['share_near']:.0f} % of {row['evaluations']}"
        lines.append(
            f"| {title} | {row['threshold']:.4g} | {row['reached']:.0f} | "
            f"{row['ratio_median']:.3f} | {spread} | {near} |"
        )
    lines += ["", "| other findings | |", "|---|---|"]
    lines += [
        f"| {title} | {value:.2f} |" for title, value in results["smoothness"].items()
    ]
    lines += [
        f"| gradient descent, 0.4: {title} | {100 * value:.0f} % |"
        for title, value in results["convexity"].items()
    ]
    invariance = results["invariance"]
    n, largest = invariance["convolutions"], "largest |cosine| of convolutions"
    other = "smallest largest |cosine| of others"
    low, high = invariance["growth over expected, convolutions"]
    rows = {
        "layers found invariant": f"{len(invariance['called invariant'])}",
        f"largest cosine of the {n} convolutions": f"{invariance[largest]:.1e}",
        "smallest largest cosine of the other layers": f"{invariance[other]:.1e}",
        "growth of convolutions over the expected growth": f"{low:.3f} to {high:.3f}",
    }
    lines += [f"| digits ResNet: {title} | {value} |" for title, value in rows.items()]
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[Any], str]]] = {
    "README.md": {
        "accuracy": accuracy_table,
        "overhead": overhead_table,
        "scale": scale_table,
    },
    "docs/costs.md": {"per_step": per_step_table, "memory": memory_table},
    "docs/alpha-beta.md": {"alpha_beta": alpha_beta_table},
    "docs/estimator.md": {"measurements": measurements_table},
    "docs/planning.md": {"planning": planning_table},
    "docs/deep-linear.md": {
        "deep_linear": deep_linear_table,
        "between_layers": between_layers_table,
    },
    "docs/null-models.md": {"null_models": null_models_table},
    "docs/sharpness.md": {"sharpness": sharpness_table},
    "docs/zigzag.md": {"zigzag": zigzag_table},
}

FILES = {"between_layers": "deep_linear"}
"""Results whose file has another name than the table."""


def filled(page: str) -> str:
    """Return the text of a page with current tables."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        results = RESULTS / f"{FILES.get(name, name)}.json"
        lines = table(json.loads(results.read_text()))
        before, marker, rest = text.partition(f"<!-- {name} -->\n")
        text = before + marker + lines + "\n" + rest[rest.index("<!-- end -->") :]
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page))
