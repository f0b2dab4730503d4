"""Test that `traj-store plan` prints a plan, and refuses impossible options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from trajstore.cli import main as cli
from trajstore.cli.plan import parse_size
from trajstore.planning.estimate import guess_layout, plan_recording
from trajstore.planning.search import best_plan

NET = """
class Parameter:
    def __init__(self, *shape, requires_grad=True):
        self.shape, self.requires_grad = shape, requires_grad

class Net:
    def named_parameters(self):
        yield "weight", Parameter(300, 100)
        yield "frozen", Parameter(50, 50, requires_grad=False)
        yield "bias", Parameter(300)

class Empty:
    def named_parameters(self):
        yield "frozen", Parameter(50, 50, requires_grad=False)

a_number = 3
make_number = lambda: 3
"""
"""A model with the part of torch's interface that a plan needs."""


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a command line and return its output."""
    monkeypatch.setattr("sys.argv", shlex.split(command))
    cli.main()
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


COMMANDS = {
    "error": "traj-store plan --params 11e6 --steps 37000 --stderr 1e-3",
    "disk": "traj-store plan --params 11e6 --steps 37000 --disk 5GB",
    "defaults": "traj-store plan --params 25000000 --steps 450000 "
    "--steps-per-epoch 5000 --tensors 161",
    "huge": "traj-store plan --params 7e9 --steps 1000000 --stderr 1.5e-3",
    "tiny": "traj-store plan --params 10 --steps 1",
    "decay": "traj-store plan --params 11e6 --steps 37000 --steps-per-epoch 390 "
    "--rate cosine --optimizer momentum --probes 4096",
    "no basis": "traj-store plan --params 11e6 --steps 37000 --stderr 2e-3 --basis 0",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_output_fits_a_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lines = run(command, monkeypatch, capsys).splitlines()
    # The arguments are one line, to be copied.
    assert max(map(len, lines[:-1])) <= 80
    assert re.fullmatch(
        r"sketch_bits=\d+, (basis=0, )?(probes=4096, )?(steps_per_epoch=\d+, )?"
        r"(reference_every=\d+, )?"
        r"total_steps=\d+",
        lines[-1],
    )


def test_the_plan_of_the_smallest_store_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    printed = run(COMMANDS["error"], monkeypatch, capsys)
    plan = best_plan(guess_layout(11_000_000), n_steps=37_000, stderr=1e-3)
    assert "11,000,000 in 62 tensors (estimated)" in printed
    assert f"{plan.spec.sketch_bits:,} signs per step" in printed
    assert f"{plan.n_windows} of " in printed
    assert f" to {plan.windows.length:,} steps, the shortest at" in printed
    assert re.search(rf"total +[\d.]+ kB +{plan.disk / 1e9:.1f} GB", printed)
    assert re.search(rf"error of a step +{plan.stderr().typical:.2g} \(", printed)
    assert "epoch mean" not in printed
    mean = plan.stderr(mean_of=1850).typical
    assert re.search(rf"error of a mean of 1,850 steps +{mean:.2g} \(", printed)
    assert "\nPass to Recorder:\n" in printed
    last = printed.splitlines()[-1]
    assert last.startswith(f"sketch_bits={plan.spec.sketch_bits}, reference_every=")


def test_a_plan_can_have_no_basis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    layout = guess_layout(11_000_000)
    options: dict[str, Any] = {"n_steps": 37_000, "basis": 0}
    small = best_plan(layout, **options, stderr=2e-3)
    precise = best_plan(layout, **options, disk=2e9)
    for target, plan in (("--stderr 2e-3", small), ("--disk 2GB", precise)):
        command = f"traj-store plan --params 11e6 --steps 37000 --basis 0 {target}"
        printed = run(command, monkeypatch, capsys)
        assert plan.spec.basis == 0
        assert re.search(rf"error of a step +{plan.stderr().typical:.2g} \(", printed)
        assert printed.splitlines()[-1] == (
            f"sketch_bits={plan.spec.sketch_bits}, basis=0, "
            f"reference_every={plan.windows.length}, total_steps=37000"
        )
    # With a basis, fewer signs reach the same error.
    assert small.disk > best_plan(layout, n_steps=37_000, stderr=2e-3).disk


def test_without_a_bound_the_defaults_of_a_recorder_are_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    printed = run(COMMANDS["defaults"], monkeypatch, capsys)
    plan = plan_recording(
        guess_layout(25_000_000, 161), n_steps=450_000, steps_per_epoch=5000
    )
    assert "161 tensors" in printed
    assert "estimated" not in printed
    mean = plan.stderr(mean_of=5000)
    assert re.search(rf"error of an epoch mean +{mean.typical:.2g} \(", printed)
    last = "sketch_bits=65536, steps_per_epoch=5000, reference_every=5000, total_steps=450000"
    assert printed.splitlines()[-1] == last


def test_windows_that_are_not_epochs_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = "traj-store plan --params 3300 --steps 5000 --steps-per-epoch"
    short = " ".join(run(f"{command} 6", monkeypatch, capsys).split())
    assert (
        "to 204 steps, the shortest at both ends; one anchor each; epochs of fewer"
        in short
    )
    assert "share anchors from epoch 10 on, here 34 epochs an anchor" in short
    assert "with reference_every=6 every epoch can be a target" in short
    assert "steps_per_epoch=6, total_steps=5000" in short
    few = " ".join(run(f"{command} 1000", monkeypatch, capsys).split())
    assert "the run has few epochs, so each is cut into 2 windows" in few
    assert "reference_every=500, total_steps=5000" in few
    assert "epochs" not in " ".join(run(f"{command} 100", monkeypatch, capsys).split())


LARGE = "traj-store plan --params 1.3e9 --steps 200000 --optimizer adaptive"


def test_windows_of_a_run_without_epochs_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    large = " ".join(run(LARGE, monkeypatch, capsys).split())
    assert (
        "to 8,000 steps, the shortest at both ends; one anchor each; the run has"
        in large
    )
    assert "longer than 500 steps, up to 4% of the run, because anchors would" in large
    # The recorder makes the same choice.
    assert large.endswith(" sketch_bits=65536, total_steps=200000")
    small = "traj-store plan --params 1e5 --steps 400"
    printed = " ".join(run(small, monkeypatch, capsys).split())
    assert "to 75 steps, the shortest at both ends; one anchor each; the run" in printed
    assert "smaller store" not in printed
    assert "start, end of run errors" in printed


def test_a_store_of_anchors_is_made_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = f"{LARGE} --reference-every 500"
    printed = " ".join(run(command, monkeypatch, capsys).split())
    assert "412 of " in printed
    assert " reference_every=500, total_steps=200000" in printed
    advice = r"anchors take 98% of this store; with --reference-every (\d+) it has ([\d.]+) GB"
    length, size = re.findall(advice, printed)[0]
    longer = f"{LARGE} --reference-every {length}"
    printed = " ".join(run(longer, monkeypatch, capsys).split())
    assert re.search(rf"total [\d.]+ kB {size} GB", printed)
    # Epochs divide the windows that are proposed.
    command = f"{LARGE} --steps-per-epoch 700"
    printed = " ".join(run(command, monkeypatch, capsys).split())
    length, _ = re.findall(advice.replace("98", r"\d+"), printed)[0]
    assert int(length) % 700 == 0


def test_windows_of_a_given_length_are_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = f"{LARGE} --disk 60GB --reference-every 20000"
    printed = run(command, monkeypatch, capsys)
    assert "reference_every=20000, total_steps=200000" in printed.splitlines()[-1]
    assert "smaller store" not in printed


def test_a_plan_says_where_the_memory_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plan = plan_recording(guess_layout(1_300_000_000), n_steps=200_000)
    printed = " ".join(run(LARGE, monkeypatch, capsys).split())
    assert (
        "memory 13.0 GB with parameters on a CPU, 2.5 float32 vectors of the parameters; "
        "on an accelerator 18.2 GB, and up to 6.5 GB on its host; and about 240.0 MB once for the "
        "process"
    ) in printed
    # Three vectors, compact on a CPU, and two codes; a code and a keyframe.
    assert 0 < plan.memory - 10 * plan.layout.size < 60e6
    assert 0 < plan.memory_with_parameters - 14 * plan.layout.size < 30e6
    assert 0 < plan.memory_of_host - 5 * plan.layout.size < 60e6
    small = run("traj-store plan --params 1e4 --steps 400", monkeypatch, capsys)
    assert "float32 vectors" not in small


def test_only_trainable_parameters_of_a_model_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "net_to_plan_for.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    command = "traj-store plan --model net_to_plan_for:Net --steps 100"
    assert "30,300 in 2 tensors\n" in re.sub(
        " +\n", "\n", run(command, monkeypatch, capsys)
    )


def test_a_torch_model_can_be_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    (tmp_path / "torch_net_to_plan_for.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(30, 20)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = "traj-store plan --model torch_net_to_plan_for:make --steps 100"
    assert "620 in 2 tensors" in run(command, monkeypatch, capsys)


PROBLEMS = {
    "both bounds": (
        "--params 1e6 --stderr 1e-3 --disk 1GB",
        "Give --stderr or --disk, not both: got 0.001 and 1GB.",
    ),
    "no net": ("", "How large is the network? Give --params, such as 11e6, or --model"),
    "two nets": (
        "--params 1e6 --model net_with_problems:Net",
        "give it, or --params and --tensors, not both.",
    ),
    "no number of vectors": (
        "--params 1e6 --basis -1",
        "basis: expected an integer of at least 0, got -1",
    ),
    "tensors of a model": (
        "--tensors 3 --model net_with_problems:Net",
        "give it, or --params and --tensors, not both.",
    ),
    "no parameters": ("--params 0", "--params must lie between 1 and 2**40, got 0."),
    "nan": ("--params nan", "--params must lie between 1 and 2**40, got nan."),
    "too many tensors": (
        "--params 10 --tensors 20",
        "--tensors must lie between 1 and the number of parameters, 10; got 20.",
    ),
    "not positive": (
        "--params 1e6 --stderr 0",
        "--stderr must be positive, got 0.",
    ),
    "no size": (
        "--params 1e6 --disk much",
        "Expected a size such as 800MB or 5GB, got 'much'.",
    ),
    "too precise": ("--params 1e6 --stderr 1e-9", "of 1e-09 is out of reach"),
    "too small": ("--params 1e6 --disk 1kB", "1.0 kB is too small"),
    "no colon": (
        "--model net",
        "--model must have the form module:factory, got 'net'.",
    ),
    "no module": (
        "--model no_such_net:make",
        "importing 'no_such_net' failed: No module named 'no_such_net'.",
    ),
    "no factory": (
        "--model net_with_problems:make",
        "the module 'net_with_problems' has no function 'make'.",
    ),
    "no function": (
        "--model net_with_problems:a_number",
        "the module 'net_with_problems' has no function 'a_number'.",
    ),
    "no model": (
        "--model net_with_problems:make_number",
        "make_number() must return a torch.nn.Module, got int.",
    ),
    "nothing to train": (
        "--model net_with_problems:Empty",
        "the model has no parameters to train.",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems_are_reported_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    sentence: str,
):
    (tmp_path / "net_with_problems.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", shlex.split(f"traj-store plan --steps 1000 {arguments}")
    )
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.sub(r"\s", "", sentence) in re.sub(r"\s", "", printed.err)


SIZES = {
    "5GB": 5e9,
    "5 gb": 5e9,
    "800M": 8e8,
    "1.5TB": 1.5e12,
    "64 MiB": 64 * 2**20,
    "1KiB": 1024,
    "100": 100,
    "100B": 100,
    "1e9": 1e9,
}


@pytest.mark.parametrize(("text", "expected"), SIZES.items(), ids=SIZES)
def test_sizes_are_parsed(text: str, expected: float):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "5iB", "1.2.3GB"])
def test_other_text_is_not_a_size(text: str):
    with pytest.raises(ValueError, match=rf"such as 800MB or 5GB, got {text!r}"):
        parse_size(text)


def test_an_exact_recording_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = "traj-store plan --params 197 --tensors 4 --steps 400 --exact"
    printed = run(command, monkeypatch, capsys)
    assert max(map(len, printed.splitlines())) <= 80
    assert re.search(r"gradients, displacements +1\.6 kB", printed)
    assert re.search(r"error of a step +none but rounding", printed)
    assert printed.splitlines()[-1] == "exact=True, total_steps=400"
    for name in ("signs", "probes", "extrapolated"):
        assert name not in printed


@pytest.mark.parametrize("target", ["--stderr 1e-3", "--disk 1GB"])
def test_an_exact_recording_has_one_size(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = f"traj-store plan --params 197 --steps 400 --exact {target}"
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "An exact recording has one size" in " ".join(
        capsys.readouterr().err.split()
    )
