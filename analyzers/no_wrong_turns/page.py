"""A page of all figures that can be drawn, each beside what became of the statements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from analyzers._panels import draw_panels
from analyzers.no_wrong_turns.claims import Finding, findings
from analyzers.no_wrong_turns.curves import Shown
from analyzers.no_wrong_turns.figures import FIGURES, panels_of, what_is_missing
from analyzers.no_wrong_turns.runs import data_title, describe
from trajstore.reading.run import Run

DPI: Final = 110
"""Of the figures of the page."""

COLORS: Final = 128
"""In a figure of the page, which makes it small."""

PREAMBLE: Final = """\
# The paper's figures, from our runs

Made by `traj-analyze paper`, numbers and verdicts included, from {runs}. Data: {data}.

The paper is C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The
Simple Geometry Of Neural Networks Optimization Paths", 2023, arXiv 2306.11922. Its
statements are given in our words, its figures by their numbers. What is seen here, or not,
is so on these runs; they are no proof of anything on the paper's data and models.

Lines are means over the steps of an epoch, with bars of one standard error of the mean.
Bands span the smallest and the largest step, errors of single estimates included, and are
cut where they reach far beyond the lines. The final epoch is left out, except from the
distance travelled. Verdicts hold at two standard errors:
**seen** and **not seen** if all of the number ± 2 standard errors lies on one side of what
the statement says, **not decided** else. "Mid-run" is the middle half of the epochs. Numbers
have the error of the mean, as `analyzers.no_wrong_turns.claims.mid_run` states it, and where settings are
compared the standard deviation over seeds, of the same workload or else of any there is.
"""


def write_page(runs: Sequence[Run], out: Path, *, shown: Shown) -> Path:
    """Write the page and its figures.

    Parameters
    ----------
    runs : sequence of trajstore.Run
        As returned by `analyzers.no_wrong_turns.runs.find_runs`.
    out : pathlib.Path
        Directory of the page, ``paper.md``; figures go to ``images/paper`` in it.
    shown : Shown
        Which epochs figures show.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ValueError
        If there are no runs.
    """
    if not runs:
        raise ValueError(
            f"The page needs runs of networks; found {describe(runs)}. Record some with "
            "traj-train."
        )
    images = out / "images" / "paper"
    images.mkdir(parents=True, exist_ok=True)
    found = findings(runs)
    data = sorted({data_title(run) for run in runs})
    parts = [PREAMBLE.format(runs=describe(runs), data=", ".join(data))]
    for number in FIGURES:
        panels = panels_of(number, runs, shown=shown)
        if panels:
            figure = draw_panels(panels, n_columns=FIGURES[number].n_columns)
            save_small(figure, images / f"figure-{number}.png")
            plt.close(figure)
        of_figure = [finding for finding in found if finding.figure == number]
        parts.append(_section(number, of_figure, runs, is_drawn=bool(panels)))
    page = out / "paper.md"
    page.write_text("\n".join(parts))
    return page


def save_small(figure: Figure, path: Path) -> None:
    """Save a figure with few colours."""
    figure.savefig(path, dpi=DPI)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _section(
    number: str, found: Sequence[Finding], runs: Sequence[Run], *, is_drawn: bool
) -> str:
    figure = FIGURES[number]
    name = f"Figure {number}" if number.isdecimal() else number.capitalize()
    lines = [f"## {name}: {figure.title}", ""]
    if is_drawn:
        lines += [f"![{figure.title}](images/paper/figure-{number}.png)", ""]
    else:
        lines += [f"{what_is_missing(number, runs)}", ""]
    if figure.note:
        lines += [figure.note, ""]
    if found:
        lines += ["| statement | here | numbers |", "| --- | --- | --- |"]
        lines += [f"| {f.claim} | **{f.seen}** | {f.numbers} |" for f in found]
    else:
        lines.append("No statement of the text that was read is tested here.")
    return "\n".join([*lines, ""])
