"""Fixtures and settings that tests and doctests share, such as a small recorded run."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import matplotlib as mpl
import pytest

HAS_TORCH = find_spec("torch") is not None
TORCH_PACKAGES = (
    *("curvature", "evaluation", "integrations", "optim", "recording"),
    *("sketch_torch", "tracking"),
)
"""Packages of trajstore that need torch."""
STEPS_PER_EPOCH, EPOCHS = 12, 5

# Hugging Face libraries must neither access their hub nor send it telemetry.
os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

collect_ignore = [
    f"trajstore/integrations/{name}.py"
    for name in ("accelerate", "lightning", "pytorch_lightning", "transformers")
    if find_spec(name) is None
]
collect_ignore += [
    f"trajstore/trackers/{name}.py"
    for name in ("mlflow", "tensorboard", "trackio", "wandb")
    if find_spec(name) is None
]
if find_spec("numba") is None:
    collect_ignore += [
        "analyzers/_engine/arrays/compiled_products.py",
        "trajstore/sketch/compiled.py",
        "trajstore/sketch/compiling.py",
    ]
if not HAS_TORCH:
    # `make no-torch` tests reading and analysis; these packages record and train.
    collect_ignore_glob = [
        *(f"trajstore/{name}/*" for name in TORCH_PACKAGES),
        *(
            "trajstore/tracking/backends/*",
            "trajstore/tracking/backends/cpu/*",
            "train/*",
            "tests/train/*",
        ),
        "tests/trajstore/integrations/*",
    ]
    collect_ignore += [
        "tests/analyzers/explorer/live/train_slowly.py",
        "tests/trajstore/trackers/lists.py",
        "tests/trajstore/tracking/random_walk.py",
        "tests/trajstore/recording/crash_training.py",
        "tests/trajstore/recording/resumable.py",
        "tests/trajstore/recording/sharded_training.py",
    ]

if not HAS_TORCH or find_spec("triton") is None:
    # Triton comes only with torch's CUDA builds.
    collect_ignore += [
        "tests/trajstore/tracking/backends/compile_kernels.py",
        "trajstore/tracking/backends/triton.py",
        "trajstore/tracking/backends/triton_folding.py",
        "trajstore/tracking/backends/triton_kernels.py",
        "trajstore/tracking/backends/triton_tables.py",
    ]

hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")
mpl.use("agg")

if HAS_TORCH:
    import torch

    # For small nets, synchronising threads takes longer than several threads save.
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        # Triton reads this variable when a kernel is defined.
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _train(observe: Callable[..., Any], **options: Any) -> Any:
    """Train a small net with momentum on noisy data under an observer."""
    from torch import nn

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {
        "steps_per_epoch": STEPS_PER_EPOCH,
        "total_steps": STEPS_PER_EPOCH * EPOCHS,
    } | options
    with observe(model, optimizer, **options) as recorder:
        for step in range(STEPS_PER_EPOCH * EPOCHS):
            optimizer.zero_grad()
            inputs = torch.randn(16, 20)
            targets = inputs[:, :3].sin() + 0.3 * torch.randn(16, 3)
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            if step == 2 * STEPS_PER_EPOCH + 3 and hasattr(recorder, "snapshot"):
                recorder.snapshot("middle")
            optimizer.step()
    return model


@pytest.fixture(scope="session")
def train_small() -> Callable[..., Any]:
    """Return a function that trains a small net under an observer with given options."""
    pytest.importorskip("torch")
    return _train


@pytest.fixture(scope="session")
def example_run(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> Path:
    """Return the path of a recorded run of 5 epochs of 12 steps; tests must not change it."""
    from functools import partial

    from trajstore import Recorder

    path = tmp_path_factory.mktemp("example") / "run.zarr"
    train_small(partial(Recorder, path), sketch_bits=1024, probes=256)
    return path


@pytest.fixture(scope="session")
def exact_run(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> Path:
    """Return the path of the same run, recorded in exact mode."""
    from functools import partial

    from trajstore import Recorder

    path = tmp_path_factory.mktemp("exact") / "run.zarr"
    train_small(partial(Recorder, path), exact=True)
    return path


@pytest.fixture(autouse=True)
def _doctest_names(
    doctest_namespace: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    """Provide doctests with a directory to write to and the path of a recorded run."""
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["tmp_path"] = request.getfixturevalue("tmp_path")
        needs_run = any("example_run" in e.source for e in request.node.dtest.examples)
        if needs_run and not HAS_TORCH:
            pytest.skip("needs torch to record a run")
        if needs_run:
            doctest_namespace["example_run"] = request.getfixturevalue("example_run")
