"""Tables of time, memory and disk that recording and analysis take."""

import json
from typing import Any

from rich.filesize import decimal
from saving import RESULTS

from trajstore.format.run_spec import BASIS


def overhead_table(results: dict[str, Any]) -> str:
    """Return the table of costs in time and memory."""
    digits = results["digits ResNet"]
    lines = ["| cost, 2 CPU cores | |", "|---|---|"]

    def add(title: str, value: str) -> None:
        lines.append(f"| {title} | {value} |")

    for title, name in (
        ("digits ResNet: time of recorded / plain training", "recorded over plain"),
        (
            "digits ResNet: time of recording and analysis / two-run protocol",
            "recorded and analysed over two-run",
        ),
    ):
        ratio = digits[name]
        interval = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}"
        add(title, f"{ratio['median']:.2f} ({interval})")
    for name, hooks in results["ResNet-18"].items():
        title = (
            f"ResNet-18, 11.2 M parameters, {name}: time of hooks / rest of the step"
        )
        add(title, f"{hooks['hooks over step']:.3f}")
    peak = results["peak memory, float32 vectors"]
    add("peak additional memory, in float32 vectors of all parameters", f"{peak:.1f}")
    process = json.loads((RESULTS / "process_memory.json").read_text())
    once = f"{decimal(round(process['for recording']))}"
    add("memory of a process that records, once: libraries and compiled loops", once)
    return "\n".join(lines)


def scale_table(results: list[dict[str, Any]]) -> str:
    """Return the table of costs of large stores, from several files of results."""
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
        "the same analysis: operations/s relative to float32 matrix products": f"{share:.2f}",
        "speed of analysis, 2 workers / 1 worker, 25.7 M parameters": f"{largest['2 workers over 1']:.2f}",
        "peak memory of a worker, up to 25.7 M parameters": f"{peak:.2f} GiB",
        f"{shape}: number of files": f"{full['files']:,}",
        "the same store: time to open it, time to select an epoch": f"{full['seconds to open']:.2f} s, "
        f"{full['seconds to select an epoch']:.2f} s",
    }
    if "seconds to analyse, 2 workers" in full:
        minutes = full["seconds to analyse, 2 workers"] / 60
        peak = full["peak GiB of a worker, 2 workers"]
        title = (
            "the same store: time to analyse it with 2 workers, peak memory of a worker"
        )
        rows[title] = f"{minutes:.0f} min, {peak:.2f} GiB"
    lines = ["| cost of large runs, 2 CPU cores | |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def per_step_table(results: list[dict[str, Any]]) -> str:
    """Return the table of hook times, with one line per net."""
    lines = [
        "| parameters | tensors | hooks | one sum | hooks, 2 threads | one sum, 2 threads |",
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
    """Return the table of memory and disk space, with one line per net."""
    nets: dict[int, list[dict[str, Any]]] = {}
    for row in results:
        nets.setdefault(row["parameters"], []).append(row)
    bases = [row["basis"] for row in next(iter(nets.values()))]
    titles = [f"memory, `basis={basis}`" for basis in bases]
    lines = [
        f"| parameters | {' | '.join(titles)} | disk per step | disk per window |",
        "|---" * (3 + len(bases)) + "|",
    ]
    for n_params, rows in nets.items():
        sizes = [row["memory"] for row in rows]
        sizes += [rows[-1][name] for name in ("disk per step", "disk per window")]
        cells = [decimal(round(size)) for size in sizes]
        lines.append(f"| {n_params / 1e6:,g} M | {' | '.join(cells)} |")
    return "\n".join(lines)


def rank_table(results: list[dict[str, Any]]) -> str:
    """Return the table of memory on ranks that share the parameters, with one line per net."""
    rows = [row for row in results if row["parameters"] >= 10**9]
    rows = [row for row in rows if row["basis"] == BASIS]
    ranks = rows[0]["memory by ranks"]
    lines = [
        f"| parameters | {' | '.join(f'{n} ranks' for n in ranks)} | gathered on the first rank |",
        "|---" * (2 + len(ranks)) + "|",
    ]
    for row in rows:
        sizes = [*row["memory by ranks"].values(), row["gathered on the first rank"]]
        cells = [decimal(round(size)) for size in sizes]
        lines.append(f"| {row['parameters'] / 1e6:,g} M | {' | '.join(cells)} |")
    return "\n".join(lines)


def fewer_bytes_table(results: list[dict[str, Any]]) -> str:
    """Return the table of errors of products with shorter vectors, with one line per form."""
    optimizers = list(dict.fromkeys(row["optimizer"] for row in results))
    titles = [f"{o}: {part}" for o in optimizers for part in ("all", "one tensor")]
    lines = [
        f"| vector, bytes an element, product | {' | '.join(titles)} |",
        "|---" * (1 + len(titles)) + "|",
    ]
    forms: dict[str, list[str]] = {}
    for row in results:
        if row["product"] == "update, displacement":
            continue
        name = f"{row['vector']}: {row['form']}, {row['bytes']:g}, {row['product']}"
        errors = row["all tensors, largest"], row["large tensors, largest"]
        forms.setdefault(name, []).extend(f"{error:.1e}" for error in errors)
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join(e)} |" for name, e in forms.items())]
    )


def first_recording_table(results: list[dict[str, Any]]) -> str:
    """Return the table of the delay of the first recording."""
    lines = [
        "| network | first recording, s | later recordings, s | delay, s |",
        "|---|---|---|---|",
    ]
    for row in results:
        seconds = row["empty cache"], row["filled cache"], row["delay"]
        cells = [row["case"], *(f"{each:.2f}" for each in seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def small_steps_table(results: list[dict[str, Any]]) -> str:
    """Return the table of the cost of recording small networks, with one line per case."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        cases.setdefault(row["case"], []).append(row)
    counts = [f"{row['threads']}" for row in next(iter(cases.values()))]
    threads = [f"{n} thread{'s' if n != '1' else ''}" for n in counts]
    measures = {
        "time of a step": "step",
        "processor time, main thread": "main thread",
        "processor time, whole process": "whole process",
    }
    titles = [f"{title}, {n}" for title in measures for n in threads]
    lines = [
        f"| training | step, ms | {' | '.join(titles)} | disk per step |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for case, rows in cases.items():
        first = rows[0]
        named = case if case == first["net"] else f"{case}; {first['net']}"
        ratios = [f"{row[name]:.3f}" for name in measures.values() for row in rows]
        cells = [
            f"{named}, {first['parameters']:,} parameters",
            f"{first['ms a step']:.1f}",
            *ratios,
            decimal(round(1e3 * first["KB a step"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def large_workloads_table(results: dict[str, Any]) -> str:
    """Return the table of one large workload, with its plan."""
    memory = results["peak GB, recorded"] - results["peak GB, plain"]
    planned = results["planned memory, GB"], results["planned store, MB"]
    pair = (results[f"{name}, smallest sum"] for name in ("alpha", "beta"))
    cells = {
        "time of a plain step": f"{results['seconds a plain step']:.1f} s",
        "time of recorded / plain training, median of pairs of steps": (
            f"{results['recorded over plain']:.3f}"
        ),
        "memory of the recording (planned)": f"{memory:.2f} GB ({planned[0]:.2f} GB)",
        "store (planned)": f"{results['store, MB']:,.0f} MB ({planned[1]:,.0f} MB)",
        "alpha and beta of the smallest sum": " and ".join(f"{x:.2f}" for x in pair),
    }
    shape = f"{results['parameters']:,} parameters, {results['steps']} steps"
    threads = f"{results['threads']} threads"
    lines = [f"| {results['workload']}, {shape}, {threads} | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {n} | {value} |" for n, value in cells.items())])


def explorer_table(results: dict[str, Any]) -> str:
    """Return the table of sizes and times of explorer pages."""
    lines = [
        "| page | steps | layers | size | written in | whole command | opened in | errors in the console |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        cells = [
            name,
            f"{row['steps']:,}",
            str(row["layers"]),
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['seconds to write']:.1f} s",
            f"{row['seconds of the command']:.1f} s",
            f"{row['seconds to open']:.1f} s",
            str(row["complaints and requests"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trackers_table(results: dict[str, Any]) -> str:
    """Return the table of the time of steps with trackers."""
    lines = ["| reports | time of a step | quartiles |", "|---|---|---|"]
    for name, ratio in results["ratio"].items():
        low, high = results["quartiles"][name]
        steps = "every step" if name == "every 1" else f"{name} steps"
        lines.append(f"| {steps} | {ratio:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)
