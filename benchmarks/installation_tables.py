"""The table of installations that were checked."""

from typing import Any

KINDS = {
    "lowest": "lowest versions",
    "newest": "newest versions",
    "bare": "no extra",
    "extras": "each extra alone",
}


def installations_table(results: list[dict[str, Any]]) -> str:
    """Return the table of checked installations: a row for each kind, a column for each Python."""
    pythons = sorted({row["python"] for row in results}, key=_number)
    lines = [
        "| " + " | ".join(["", *pythons]) + " |",
        "|---" * (len(pythons) + 1) + "|",
    ]
    for kind, title in KINDS.items():
        cells = [
            _cell([r for r in results if (r["kind"], r["python"]) == (kind, python)])
            for python in pythons
        ]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    systems = ", ".join(sorted({row["system"] for row in results}))
    return "\n".join([*lines, "", f"System: {systems}."])


def _number(python: str) -> tuple[int, ...]:
    return tuple(map(int, python.split(".")))


def _cell(rows: list[dict[str, Any]]) -> str:
    """Describe the installations of a kind with one Python, or say that there is none."""
    if not rows:
        return "not checked"
    if len(rows) > 1 or rows[0]["kind"] == "extras":
        names = sorted({row["extras"] for row in rows})
        return f"{len(names)}: {', '.join(names)}"
    versions = rows[0]["versions"]
    shown = [f"{name} {version}" for name, version in versions.items()]
    without = [] if rows[0]["with_torch"] or rows[0]["kind"] == "bare" else ["no torch"]
    return ", ".join(shown + without)
