"""Test that names from stores are inert in terminals, figures and file names."""

import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from analyzers import cli
from analyzers._panels import Curve, Panel, draw_layer_names, draw_panels, name_text
from trajstore import Recorder, open_run
from trajstore.cli import main as store_cli
from trajstore.cli.command_line import Command, run_command_line
from trajstore.reading.results import MAX_SLUG, target_slug

TERMINAL: Final = [
    *("\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "\x1b]8;;http://x\x07y", "\x9b31m"),
    *("a\nb", "a\rb", "a\tb", "\x00nul", "\x08\x08", "\x7f", "\x85", "\x0c"),
    *("\u202egnp.exe", "\u2066iso", "\u200bwidth", "\ufeffbom", "\u2028line", "\ud800"),
]
MARKUP: Final = [
    *("[/nope]", "[red]", "[bold]x[/bold]", "[link=http://x]y[/link]", ":smile:"),
    *(
        "$\\frac$",
        "$x$",
        "$",
        "$$",
        "\\$",
        "$\\no{$",
        "$_$",
        "a$b$c$",
        "%s%n",
        "{0}",
        "{",
    ),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&amp;", "|x|"),
]
PATHS: Final = [
    *("../../etc", "/etc/passwd", "a/b/c", "..", ".", "C:\\x", "~", "*", "zarr.json"),
    *(
        "a" * 300,
        "-x",
        "--help",
        "`id`",
        "$(id)",
        "'; drop",
        " ",
        "c",
        "CON",
        "_private",
    ),
    *("名前", "🙂", "e\u0301", "nan"),
]
NAMES: Final = [*TERMINAL, *MARKUP, *PATHS]
assert len(NAMES) >= 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything that has a name has every hostile name."""
    path: Path = tmp_path_factory.mktemp("hostile") / "run [$\\frac$].zarr"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.nn.Parameter(torch.randn(3, generator=generator)) for name in NAMES
    }
    optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "basis": 1}
    attrs = {name: name for name in NAMES}
    with Recorder(
        path, tensors, optimizer, steps_per_epoch=4, attrs=attrs, **options
    ) as recorder:
        for step in range(8):
            optimizer.zero_grad()
            sum((step + 1) * (t**2).sum() for t in tensors.values()).backward()
            recorder.log(loss=1.0 / (step + 1), **dict.fromkeys(NAMES, 1.0))
            if step == 4:
                for name in NAMES:
                    recorder.measure(name, loss=1.0)
            optimizer.step()
        # One snapshot of each kind of name; each is a commit.
        for name in NAMES[::5]:
            recorder.snapshot(name)
    return path


COMMANDS: Final = [
    ["info"],
    ["verify"],
    ["recover"],
    pytest.param(["geometry", "--layers"], marks=pytest.mark.slow),
    ["geometry", f"--reference={NAMES[0]}"],
    ["geometry", "--reference=\x1b[31m[/absent]"],
    ["geometry", f"--measurement={MARKUP[5]}"],
    pytest.param(["geometry", f"--measurement={PATHS[0]}"], marks=pytest.mark.slow),
    ["geometry", "--measurement=\x1b[31m[/absent]"],
    pytest.param(
        ["zigzag", "--layers", f"--loss={TERMINAL[0]}"], marks=pytest.mark.slow
    ),
    pytest.param(["compare"], marks=pytest.mark.slow),
    pytest.param(["smoothness", "--layers"], marks=pytest.mark.slow),
    pytest.param(["scale-invariance"], marks=pytest.mark.slow),
    pytest.param(["explore", "--layers"], marks=pytest.mark.slow),
]


def output(commands: dict[str, Command], arguments: Sequence[str]) -> tuple[str, int]:
    """Run a command; return what it printed, as UTF-8, and its exit status."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["traj", *arguments])
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                run_command_line(commands, prog="traj", description="")
            except SystemExit as error:
                status = int(error.code or 0)
    buffer = printed.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(), status


def other_settings(store: Path) -> Path:
    """Return a run without the hostile settings, of another architecture."""
    path = store.parents[1] / "plain" / "run.zarr"
    if not path.exists():
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(path, model, optimizer, steps_per_epoch=4, sketch_bits=64):
            for _ in range(8):
                optimizer.zero_grad()
                (model(torch.ones(1, 3)) ** 2).sum().backward()
                optimizer.step()
    return path


@pytest.mark.filterwarnings("ignore:Glyph .* missing from:UserWarning")
@pytest.mark.parametrize("arguments", COMMANDS, ids=ascii)
def test_commands_print_names_and_files_have_them(store: Path, arguments: list[str]):
    command, *options = arguments
    if command == "compare":
        options.append(str(other_settings(store)))
    before = set(store.parent.parent.iterdir())
    text, status = output(
        {**cli.COMMANDS, **store_cli.COMMANDS}, [command, str(store), *options]
    )
    assert not {c for c in text if not c.isprintable()} - {"\n", "\t"}
    is_absent = any("absent" in option for option in options)
    assert status == int(is_absent), text
    if is_absent:
        assert r"\x1b[31m[/absent]" in text
    if command == "info":
        assert all(part in text for part in ("[/nope]", r"\x1b[2J", ":smile:"))
    # Results and figures lie next to the store, and nowhere else.
    assert set(store.parent.parent.iterdir()) == before
    kept = {
        "run [$\\frac$]" + ending for ending in (".zarr", ".analysis.zarr", ".figures")
    }
    assert {path.name for path in store.parent.iterdir()} <= kept


def test_names_are_kept_by_the_store(store: Path):
    run = open_run(store)
    assert set(NAMES) <= set(run.metrics) | {"lr"}
    assert list(run.layout.names) == NAMES
    assert set(run.measurements) == set(NAMES)


def speak(name: str) -> None:
    """A command that warns of a name and then fails with it."""
    warnings.warn(f"warned of {name}", stacklevel=1)
    raise ValueError(f"failed with {name}")


@pytest.mark.filterwarnings("default:warned of")
def test_warnings_and_errors_are_plain(monkeypatch: pytest.MonkeyPatch):
    name = "".join(TERMINAL) + "[/nope][red]"
    monkeypatch.setattr(
        "trajstore.cli.command_line.import_module", lambda _: sys.modules[__name__]
    )
    text, status = output(
        {"speak": Command("here:speak", "")}, ["speak", "--name", name]
    )
    assert status == 1
    assert not {c for c in text if not c.isprintable()} - {"\n", "\t"}
    for start in ("warned of ", "failed with "):
        assert start + r"\x1b[31mred" in text
    assert text.count("[/nope][red]") == 2


@pytest.mark.filterwarnings("ignore:Glyph .* missing from:UserWarning")
def test_figures_show_names():
    figure, ax = plt.subplots()
    draw_layer_names(ax, NAMES)
    figure.suptitle(" ".join(map(name_text, NAMES[:20])))
    values = np.zeros(2)
    panels = [
        Panel(
            title=name, ylabel=name, curves=(Curve(name, values, values),), needs=name
        )
        for name in ("$\\frac$", "_private", "\x1b[2J", "$x$", "$")
    ]
    drawn = draw_panels(panels, n_columns=3)
    for each in (figure, drawn):
        each.savefig(io.BytesIO(), format="png", dpi=20)
        plt.close(each)
    labels = drawn.axes[1].get_legend_handles_labels()[1]
    assert labels == [" _private"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_one_component_of_a_path(name: str):
    slug = target_slug(f"snapshot {name}")
    assert len(slug) <= MAX_SLUG + len("snapshot-")
    assert "/" not in slug
    assert slug.isascii()
    assert slug.isprintable()


def test_long_names_differ_in_their_paths():
    first, second = (target_slug(f"snapshot {'a' * 300}{c}") for c in "xy")
    assert first != second


def test_images_of_many_layers_have_bounded_height():
    figure, ax = plt.subplots()
    draw_layer_names(ax, [f"layer {i}" for i in range(10_000)])
    assert len(ax.get_yticks()) <= 200
    plt.close(figure)
