"""Write the table of excesses that mean nothing."""

from typing import Any


def excess_table(results: dict[str, Any]) -> str:
    """Return the table, with a column for each optimizer."""
    rows: dict[str, list[str]] = {}
    for found in results.values():
        runs = [found["labels"], *found["drawn"]]

        def between(name: str, runs: Any = runs) -> str:
            values = sorted(f"{run[name]:.1g}" for run in runs)
            low, high = min(values, key=float), max(values, key=float)
            return low if low == high else f"{low} to {high}"

        cells = {
            "stated error with one walk": between("stated with one walk"),
            "standard deviation between walks": between("std between walks"),
            "the same of single epochs, at most": between(
                "largest std between walks in an epoch"
            ),
            "stated error with four walks": between("stated with all walks"),
            "excess, labels drawn in every step": ", ".join(
                f"{run['excess']:.3f}" for run in found["drawn"]
            ),
            "excess, true labels": f"{found['labels']['excess']:.3f}",
        }
        for title, cell in cells.items():
            rows.setdefault(title, []).append(cell)
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    lines += [
        f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items()
    ]
    return "\n".join(lines)
