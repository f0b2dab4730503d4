"""Write the tables of results into README.md and docs, between the markers in these files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibration_tables import (
    bias_table,
    calibration_table,
    expected_errors_table,
    gains_table,
)
from cost_tables import (
    explorer_table,
    fewer_bytes_table,
    first_recording_table,
    large_workloads_table,
    memory_table,
    overhead_table,
    per_step_table,
    rank_table,
    scale_table,
    small_steps_table,
    trackers_table,
)
from excess_table import excess_table
from installation_tables import installations_table
from planning_tables import (
    ends_table,
    like_table,
    planning_table,
    signs_table,
    windows_table,
)

from trajstore.format.run_spec import SKETCH_BITS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def accuracy_table(results: dict[str, Any]) -> str:
    """Return the table of errors, with one column per workload."""
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
    add("**recorded**, inner epochs", "middle", rms)
    add("**recorded**, first epoch", "first", rms)
    add("**recorded**, last epoch", "last", rms)
    add("**recorded**, mean of an epoch", "epoch means", rms, digits=5)
    add("std of error / standard error", "middle", "std of z", digits=2)
    ratio = "bytes of a float32 projection over signs and scales"
    add(
        "bytes of an equally precise float32 projection / bytes of signs",
        ratio,
        digits=0,
    )
    whole = "bytes of a float32 projection over the whole store"
    add("the same bytes / bytes of the whole store", whole, digits=0)
    limits = [code_limit(w["parameters"], SKETCH_BITS) for w in workloads.values()]
    cells = " | ".join(f"{limit:.4f}" for limit in limits)
    lines.append(
        f"| limit of any code of 65,536 bits, unstructured gradients | {cells} |"
    )
    small = 1 << 14
    lines.append("")
    lines.append(
        "Unbiased codes that know nothing of the target cannot do better than this limit unless "
        "gradients have structure; the rows with weights and low rank exploit structure. The "
        f"limit grows with the number of parameters, to {results['white limit']:.4f} for "
        f"infinitely many. For {small:,} parameters it is "
        f"{code_limit(small, SKETCH_BITS):.5f}."
    )
    return "\n".join(lines)


def code_limit(n_params: int, bits: int) -> float:
    """Return the smallest error of gamma that an unbiased code of white gradients can have."""
    # The rate-distortion limit of a Gaussian gradient is a squared error of 4^(-bits / n_params),
    # relative to its squared norm. Scaling a decoded gradient to be unbiased increases that error;
    # the product with a target that the code does not depend on has a share 1 / n_params of it.
    return 1 / math.sqrt(n_params * math.expm1(2 * math.log(2) * bits / n_params))


def numbers_table(results: dict[str, Any]) -> str:
    """Return the table of the three most important figures, with their benchmarks."""
    overhead = json.loads((RESULTS / "overhead.json").read_text())
    ratio = overhead["digits ResNet"]["recorded over plain"]
    runs = results["workloads"].values()
    errors = [run["epoch means"]["rms error of gamma"] for run in runs]
    fewer = [run["bytes of a float32 projection over the whole store"] for run in runs]
    spreads = [run["middle"]["std of z"] for run in runs]
    precise = (
        "error of gamma, mean of an epoch, on three trainings; plain float32 projections of "
        f"equal precision need {min(fewer):.0f} to {max(fewer):.0f} times the disk space"
    )
    honest = "standard deviation of error / standard error in a step; 1 means honest error bars"
    fast = (
        "time of recorded / plain training, small ResNet, 2 CPU cores "
        f"(95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"
    )
    rows = [
        (f"{min(errors):.5f} to {max(errors):.5f}", precise, "accuracy.py"),
        (f"{min(spreads):.2f} to {max(spreads):.2f}", honest, "accuracy.py"),
        (f"{ratio['median']:.2f}", fast, "overhead.py"),
    ]
    lines = ["| | | measured by |", "|---|---|---|"]
    lines += [
        f"| **{value}** | {text} | [{file}](benchmarks/{file}) |"
        for value, text, file in rows
    ]
    return "\n".join(lines)


def measurements_table(results: dict[str, Any]) -> str:
    """Return the table of measurements and their errors, with one line per measurement."""
    lines = [
        "| measured on the digits ResNet | mean | rms error | std of error / standard error |",
        "|---|---|---|---|",
    ]
    for title, row in results.items():
        numbers = f"{row['mean']:.3f} | {row['rms error']:.4f} | {row['std of z']:.2f}"
        lines.append(f"| {title.replace('x*', 'x' + chr(92) + '*')} | {numbers} |")
    return "\n".join(lines)


def alpha_beta_table(results: dict[str, Any]) -> str:
    """Return the table of feasible pairs, with one line per width."""
    lines = [
        "| width | smallest alpha, beta | all a_k one stderr smaller | all a_k one stderr larger |",
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


def zigzag_table(results: dict[str, Any]) -> str:
    """Return the table of zigzags, with one line per run and per branch of a run."""
    header = (
        "steps | mean cosine | steps in zigzag | smooth steps | path in zigzag | decrease "
        "| decrease in zigzag"
    )
    lines = [f"| run | {header} |", "|---|" + "---|" * 7]

    def add(title: str, row: dict[str, float]) -> None:
        share = f"{row['decrease_share']:.0%}"
        if row["decrease_share_stderr"]:
            share += f" ± {row['decrease_share_stderr']:.0%}"
        cells = [
            f"{row['n_steps']}",
            f"{row['mean_cosine']:z.3f}",
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


def tangent_kernel_table(results: dict[str, Any]) -> str:
    """Return the table of the tangent kernel, with one line per width and scale."""
    lines = [
        "| width | scale | moved, of the initial norm | change of the kernel | distance of the kernel | last loss / first loss |",
        "|---|---|---|---|---|---|",
    ]
    for width, scales in results["runs"].items():
        for scale, runs in scales.items():

            def mean(name: str, runs: Any = runs) -> float:
                return float(sum(run[-1][name] for run in runs) / len(runs))

            losses = mean("loss") * len(runs) / sum(run[0]["loss"] for run in runs)
            cells = [width, scale]
            names = ("moved", "kernel_change", "kernel_distance")
            cells += [f"{mean(name):.2g}" for name in names]
            lines.append("| " + " | ".join([*cells, f"{losses:.2f}"]) + " |")
    return "\n".join(lines)


def deep_linear_table(results: dict[str, Any]) -> str:
    """Return the table of deep linear networks, with one line per depth."""
    error = "largest error over largest strength, %"
    depths = results["depths"]
    rates = [rate for rate in depths["2"][error] if float(rate) in {0.02, 0.01, 0.005}]
    columns = [
        "layers",
        *(f"error at step size {rate}, % of the largest strength" for rate in rates),
        "exponent of the error",
        "exponent of the drift",
        "first half time: run, gradient flow",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for depth, row in depths.items():
        cells = [
            depth,
            *(f"{row[error][rate]:.2f}" for rate in rates),
            f"{row['exponent of the error']:.3f}",
            f"{row['exponent of the drift']:.3f}",
            f"{row['half times'][0]:.2f}, {row['half times of the flow'][0]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def between_layers_table(results: dict[str, Any]) -> str:
    """Return the table of activations, with one line per activation."""
    lines = [
        "| between layers | half times of modes | last values | smallest rank | last loss / first loss |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["between layers"].items():
        halves = ", ".join(f"{t:.1f}" if t else "-" for t in row["half times"])
        last = ", ".join(f"{mode:.2f}" for mode in row["last modes"])
        lines.append(
            f"| {name} | {halves} | {last} | {row['smallest effective rank']:.2f} | "
            f"{row['last loss over first']:.1g} |"
        )
    return "\n".join(lines)


def null_models_table(results: dict[str, Any]) -> str:
    """Return the table of null models, with one line per run."""
    columns = [
        "run",
        "gamma, mid-run",
        "excess over a walk of the same updates",
        "adjacent cosine",
        "std of adjacent cosine",
        "cosine 5 steps apart",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]

    def with_error(pair: list[float]) -> str:
        value, error = pair
        digits = 1 - math.floor(math.log10(error))
        return f"{value:.{digits}f} ± {error:.{digits}f}"

    for name, row in results["runs"].items():
        cells = [
            name,
            f"{row['gamma'][0]:.3f}",
            with_error(row["excess"]),
            with_error(row["adjacent cosine"]),
            f"{row['adjacent cosine, std']:.2g}",
            with_error(row["cosine 5 steps apart"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    eighth = results["equation 8"]
    errors = (
        f"The recorded walk has {eighth['steps']} steps in {eighth['parameters']:,} "
        f"dimensions. Its errors from 1/sqrt(T - k), in standard errors, have a mean of "
        f"{eighth['mean of z']:.2f}, a standard deviation of {eighth['std of z']:.2f} and "
        f"absolute values of at most {eighth['largest |z|']:.1f}."
    )
    return "\n".join([*lines, "", errors])


def sharpness_table(results: dict[str, Any]) -> str:
    """Return a table of edges of stability by training run, and one of other findings."""
    lines = [
        "| training, learning rate | threshold | reached at step | median ratio | smallest to largest ratio | ratios within 10 % of 1 |",
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
        f"largest cosine among the {n} convolutions": f"{invariance[largest]:.1e}",
        "largest cosine of a layer, smallest among the other layers": f"{invariance[other]:.1e}",
        "growth of squared norms / expected growth, convolutions": f"{low:.3f} to {high:.3f}",
    }
    lines += [f"| digits ResNet: {title} | {value} |" for title, value in rows.items()]
    return "\n".join(lines)


def public_codes_table(results: dict[str, Any]) -> str:
    """Return the table of training codes that others have written."""
    lines = [
        "| code | version | lines | parameters | steps | bits | mean gamma | rms error | error / standard error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, code in results.items():
        cells = [
            f"{name} (`{code['source']}`)",
            code["version"],
            str(code["lines"]),
            f"{code['n_params']:,}",
            str(code["n_steps"]),
            "equal" if code["same_bits"] else "different",
            f"{code['gamma']:.3f}",
            f"{code['rms_error']:.1g}",
            f"{code['sd_z']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[Any], str]]] = {
    "README.md": {"numbers": numbers_table},
    "docs/accuracy.md": {"accuracy": accuracy_table},
    "docs/costs.md": {
        "overhead": overhead_table,
        "per_step": per_step_table,
        "small_steps": small_steps_table,
        "first_recording": first_recording_table,
        "memory": memory_table,
        "ranks": rank_table,
        "fewer_bytes": fewer_bytes_table,
        "scale": scale_table,
    },
    "docs/compatibility.md": {"installations": installations_table},
    "docs/alpha-beta.md": {
        "alpha_beta": alpha_beta_table,
        "large_workloads": large_workloads_table,
    },
    "docs/explorer.md": {"explorer": explorer_table},
    "docs/integrations.md": {"public_codes": public_codes_table},
    "docs/estimator.md": {
        "calibration": calibration_table,
        "expected_errors": expected_errors_table,
        "bias": bias_table,
        "gains": gains_table,
        "measurements": measurements_table,
    },
    "docs/planning.md": {
        "planning": planning_table,
        "planning_ends": ends_table,
        "like": like_table,
        "windows": windows_table,
        "signs": signs_table,
    },
    "docs/deep-linear.md": {
        "deep_linear": deep_linear_table,
        "between_layers": between_layers_table,
    },
    "docs/tangent-kernel.md": {"tangent_kernel": tangent_kernel_table},
    "docs/null-models.md": {
        "null_models": null_models_table,
        "excess": excess_table,
    },
    "docs/sharpness.md": {"sharpness": sharpness_table},
    "docs/trackers.md": {"trackers": trackers_table},
    "docs/zigzag.md": {"zigzag": zigzag_table},
}

FILES = {
    "ranks": "memory",
    "numbers": "accuracy",
    "between_layers": "deep_linear",
    "like": "planning_like",
    "windows": "planning_like",
    "signs": "calibration",
}
"""Names of results files that differ from the names of their tables."""


def filled(page: str) -> str:
    """Return the text of a page, with its tables filled from the current results."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        results = RESULTS / f"{FILES.get(name, name)}.json"
        if not results.exists():
            # The page has an empty table until the benchmark has run.
            continue
        lines = table(json.loads(results.read_text()))
        before, marker, rest = text.partition(f"<!-- {name} -->\n")
        text = before + marker + lines + "\n" + rest[rest.index("<!-- end -->") :]
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page))
