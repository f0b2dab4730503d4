"""Page of figures drawn from recorded runs, with verdicts on the paper's statements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
from PIL import Image

from analyzers._panels import draw_panels
from analyzers._reporting import FigureFiles
from analyzers.no_wrong_turns.claims.engine import Finding, findings
from analyzers.no_wrong_turns.curves import EpochSelection
from analyzers.no_wrong_turns.defaults import SMALL_PNG
from analyzers.no_wrong_turns.figures import FIGURES, missing_runs, panels_of
from analyzers.no_wrong_turns.runs import TrainedRun, describe

COLORS: Final = 128
"""Number of colours in a figure, which limits the size of its file."""

PREAMBLE: Final = """\
# The paper's figures, from our runs

This page, including its numbers and verdicts, was made by `traj-analyze paper` from {runs}. Data: {data}.

The paper is C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The
Simple Geometry Of Neural Networks Optimization Paths", 2023, arXiv 2306.11922. Its
statements are given in our words, and its figures are cited by number. Verdicts apply to
these runs only; they prove nothing about the paper's data and models.

Lines show means over the steps of an epoch, and bars show one standard error of the mean.
Bands reach from the smallest to the largest value in the epoch; these values include the
errors of single estimates. Far beyond the lines, bands are cut off. The final epoch is left
out, except in figures of the distance travelled. A statement is **supported** if the whole
interval of ± 2 standard errors around the number satisfies it, **contradicted** if no part
of the interval does, and **inconclusive** otherwise. "Mid-run" means the middle half of the
epochs. Errors are standard errors of the mean, as
`analyzers.no_wrong_turns.claims.statistics.mean_over` defines them. Where settings are
compared, errors include the standard deviation over seeds: over runs of the same workload,
or of another workload if the same workload was run with one seed only.
"""


def write_page(
    runs: Sequence[TrainedRun],
    out: Path,
    *,
    epochs: EpochSelection,
    files: FigureFiles = SMALL_PNG,
) -> tuple[Path, list[Finding]]:
    """Write ``paper.md`` to `out`, and figures to ``images/paper``; return path and findings."""
    if not runs:
        raise ValueError(
            f"The page needs runs of networks; found {describe(runs)}. Runs are chosen by the "
            "settings that traj-train stores; for runs of another loop, use traj-analyze "
            "geometry, compare or explore."
        )
    images = out / "images" / "paper"
    images.mkdir(parents=True, exist_ok=True)
    found = findings(runs)
    data = sorted({run.title for run in runs})
    parts = [PREAMBLE.format(runs=describe(runs), data=", ".join(data))]
    for number in FIGURES:
        panels = panels_of(number, runs, epochs=epochs)
        if panels:
            figure = draw_panels(panels, n_columns=FIGURES[number].n_columns)
            path = images / f"figure-{number}.{files.format}"
            figure.savefig(path, dpi=files.dpi)
            plt.close(figure)
            if files.format == "png":
                reduce_colors(path)
        on_figure = [finding for finding in found if finding.figure == number]
        drawn = f"figure-{number}.{files.format}" if panels else ""
        parts.append(_section(number, on_figure, runs, drawn=drawn))
    page = out / "paper.md"
    page.write_text("\n".join(parts))
    return page, found


def reduce_colors(path: Path) -> None:
    """Keep few colours of an image, to make its file small."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _section(
    number: str,
    found: Sequence[Finding],
    runs: Sequence[TrainedRun],
    *,
    drawn: str,
) -> str:
    figure = FIGURES[number]
    name = f"Figure {number}" if number.isdecimal() else number.capitalize()
    lines = [f"## {name}: {figure.title}", ""]
    if drawn:
        lines += [f"![{figure.title}](images/paper/{drawn})", ""]
    else:
        lines += [f"{missing_runs(number, runs)}", ""]
    if figure.note:
        lines += [figure.note, ""]
    if found:
        lines += ["| statement | verdict | numbers |", "| --- | --- | --- |"]
        lines += [f"| {f.claim} | **{f.verdict}** | {f.numbers} |" for f in found]
    else:
        lines.append("No statement is tested on this figure.")
    return "\n".join([*lines, ""])
