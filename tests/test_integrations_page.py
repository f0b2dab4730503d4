"""The loops in docs/integrations.md are recorded as the page describes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore import open_run

torch = pytest.importorskip("torch")

PAGE = (Path(__file__).parent.parent / "docs/integrations.md").read_text()
INTRODUCTION, *SECTIONS = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)
LOOPS = dict(zip(SECTIONS[::2], SECTIONS[1::2], strict=True))
WITHOUT_CODE = {
    "Errors of a recording",
    "Recording to object storage",
    "Training codes of others",
    "What is not recorded",
}
NEEDS = {
    "Accelerate": "accelerate",
    "Hugging Face Trainer": "transformers",
    "Lightning": "lightning",
}
N_STEPS = dict.fromkeys(("Accelerate", "Gradient accumulation"), 6)


def code(text: str) -> str:
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    )


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Make this process the only member of a process group."""
    store = torch.distributed.FileStore(str(folder / "group"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def reset_accelerator() -> None:
    """Allow a new Accelerator with settings that differ from those of the previous one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.pin_memory. argument is set as true but no accelerator",
    "ignore:.*`logger=True` will use `CSVLogger`",
    "ignore:.*is smaller than the logging interval",
)
@pytest.mark.parametrize("section", sorted(LOOPS.keys() - WITHOUT_CODE))
def test_loops_are_recorded(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip(NEEDS.get(section, "torch"))
    if section == "Accelerate":
        reset_accelerator()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    names: dict[str, Any] = {"__name__": section}
    is_distributed = section in {
        "DistributedDataParallel",
        "FSDP2 and tensor parallelism",
    }
    with process_group(tmp_path) if is_distributed else nullcontext():
        exec(compile(code(INTRODUCTION) + code(LOOPS[section]), section, "exec"), names)
    run = open_run("run.zarr")
    assert (run.status, run.n_steps) == ("complete", N_STEPS.get(section, 24))
    assert run.n_epochs == 3
    trained = [p for p in names["model"].parameters() if p.requires_grad]
    trained = [getattr(p, "_local_tensor", p) for p in trained]
    trained = [p.detach().cpu().numpy() for p in trained]
    assert run.layout.shapes == tuple(p.shape for p in trained)
    final = run.stored.vector("final", slice(0, run.layout.size))
    flat = run.layout.flatten(dict(zip(run.spec.names, trained, strict=True)))
    np.testing.assert_array_equal(final, flat)
    assert not any("_orig_mod" in name for name in run.spec.names)
    if section == "Averages of weights":
        assert np.isfinite(names["geometry"].gamma).all()


def test_the_page_has_all_loops():
    assert len(LOOPS) == 20
    table = re.findall(r"\(#(\S+)\)", INTRODUCTION)
    assert len(table) >= 8
    anchors = {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in LOOPS}
    assert set(table) <= anchors
