"""A recorded training run that may be killed at any moment, and resumes from a checkpoint.

The run writes its progress to a file, which outlives the process: a line ``resumed N`` names
the step at which it began, and ``committed N`` means that the store must keep N steps. A second
file gets a line ``NAME SECONDS`` when a phase of the run begins, and ``end SECONDS`` after it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trajstore.recording.recorder import Recorder
from trajstore.store.location import open_store

N_STEPS, STEPS_PER_EPOCH = 30, 10
OPTIONS: dict[str, Any] = {
    "steps_per_epoch": STEPS_PER_EPOCH,
    "reference_every": 3,
    "flush_rows": 4,
    "sketch_bits": 64,
    "probes": 16,
}


def train(
    path: Path, *, save_every: int = 8, location: str | None = None, **changes: Any
) -> None:
    """Train to the end, from the last checkpoint if there is one.

    The checkpoint and the acknowledgements lie next to the store, or where the store would be if it
    is at a remote `location`.
    """
    torch.set_num_threads(1)
    phases = path.with_suffix(".phases").open("ab", buffering=0)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        phases.write(b"%s %.6f\n" % (name.encode(), time.monotonic()))
        yield
        phases.write(b"end %.6f\n" % time.monotonic())

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    saved = path.with_suffix(".pt")
    options = OPTIONS | changes
    journal = options.get("journal", False)
    start = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["recorder"]["position"]["step"]
        options["resume"] = state["recorder"]
    elif has_store(location or path):
        options |= {"resume": True, "step": 0}
    log = path.with_suffix(".log").open("ab", buffering=0)
    # The recorder is about to drop the steps after the checkpoint.
    log.write(b"resumed %d\n" % start)
    with phase("resuming" if "resume" in options else "opening"):
        recorder = Recorder(location or path, model, optimizer, **options)
    with log, recorder:
        for step in range(start, N_STEPS):
            if step > start and step % save_every == 0:
                with phase("state"):
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "recorder": recorder.state_dict(),
                    }
                partial = saved.with_suffix(".partial")
                torch.save(state, partial)
                Path(partial).replace(saved)
            if step in {5, 17}:
                with phase("snapshot"):
                    recorder.snapshot(f"at {step}")
            if step % 5 == 2:
                optimizer.zero_grad()
                model(torch.ones(4, 40)).square().mean().backward()
                with phase("measuring"):
                    recorder.measure("ones", at=step)
                    recorder.flush()
            if "samples" in options:
                recorder.log_samples([step, step + 1])
            inputs = torch.randn(16, 40, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            if step % 6 == 0:
                recorder.flush()
            if step % 6 == 0 or journal:
                log.write(b"committed %d\n" % (step + 1))
        recorder.snapshot("last")
        recorder.flush()
        log.write(b"committed %d\n" % N_STEPS)
        phases.write(b"closing %.6f\n" % time.monotonic())
    phases.write(b"end %.6f\n" % time.monotonic())
    with path.with_suffix(".log").open("ab", buffering=0) as log:
        log.write(b"complete %d\n" % N_STEPS)


def has_store(location: Path | str) -> bool:
    """Whether there is something at a path or URL."""
    if isinstance(location, Path):
        return location.exists()
    return not asyncio.run(open_store(location).is_empty(""))
