"""Measure the cost of recording on a CUDA device; `overhead.py --device cuda` runs this.

Plain and recorded training of the same net take turns of a few steps each, timed by events
on the device. The benchmark then times the recorder alone on vectors of 10^8 elements. It
compares this time with the time to read and write the necessary bytes once, at the rate of a
copy on the device.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import trajstore
from train.models.resnet import cifar_resnet18, digits_resnet
from train.models.transformer import LanguageModel
from trajstore.format.layout import Layout
from trajstore.format.run_spec import BASIS, RunSpec
from trajstore.sketch.deltas import n_codes
from trajstore.tracking.backends.choose import SWITCH
from trajstore.tracking.tracker import Tracker

BYTES_PER_ELEMENT = 36 + n_codes(BASIS)
"""Bytes read and written per element in a step.

Before the step, the recorder reads the gradient, the parameter, the previous gradient, the
anchor and codes of past anchors, and writes a copy of the gradient, and the displacement. After
the step, it reads the parameter, the anchor and the displacement. Codes have one byte,
everything else is float32."""


class Sizes(NamedTuple):
    """Sizes of the nets, and lengths of the measurement."""

    batch: int
    image: int
    sequences: int
    vocabulary: int
    context: int
    width: int
    depth: int
    elements: int
    turns: int
    steps: int


WHOLE = Sizes(256, 32, 8, 50257, 512, 768, 12, 10**8, 21, 20)
TINY = Sizes(4, 8, 2, 64, 16, 32, 1, 10**5, 3, 2)


class Clock:
    """Times work on a device, or on the host if there is none."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def seconds(self, work: Callable[[], None]) -> float:
        """Return the seconds that the device needs for some work."""
        if not self._is_cuda:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def resnet(
    sizes: Sizes, device: torch.device
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Return a ResNet-18 for small images, and its loss on a batch."""
    is_whole = sizes is WHOLE
    model = (cifar_resnet18() if is_whole else digits_resnet()).to(device)
    shape = (sizes.batch, 3 if is_whole else 1, sizes.image, sizes.image)
    images = torch.randn(shape, device=device)
    labels = torch.randint(10, (sizes.batch,), device=device)
    return model, lambda net: F.cross_entropy(net(images), labels)


def gpt(
    sizes: Sizes, device: torch.device
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Return a GPT, of 124 million parameters at full size, and its loss on a batch."""
    model = LanguageModel(
        sizes.vocabulary,
        sizes.context,
        sizes.width,
        sizes.depth,
        sizes.width // 64 or 1,
    ).to(device)
    shape = (sizes.sequences, sizes.context + 1)
    tokens = torch.randint(sizes.vocabulary, shape, device=device)

    def loss(net: Any) -> Tensor:
        logits = net(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return model, loss


def compete(
    make: Callable[..., Any],
    sizes: Sizes,
    device: torch.device,
    console: Console,
    *,
    offload: bool = False,
) -> dict[str, Any]:
    """Let plain and recorded training take turns; return the medians over turns."""
    clock = Clock(device)
    seconds: dict[str, list[float]] = {"plain": [], "recorded": []}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        nets = {}
        for mode in seconds:
            torch.manual_seed(0)
            model, loss = make(sizes, device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            recorder: Any = None
            if mode == "recorded":
                recorder = stack.enter_context(
                    trajstore.Recorder(
                        Path(directory) / "run.zarr",
                        model,
                        optimizer,
                        steps_per_epoch=10 * sizes.steps,
                        offload=offload,
                    )
                )
            nets[mode] = model, loss, optimizer, recorder

        def turn(mode: str) -> None:
            model, loss, optimizer, recorder = nets[mode]
            for _ in range(sizes.steps):
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16):
                    value = loss(model)
                value.backward()
                if recorder is not None:
                    recorder.log(loss=value)
                optimizer.step()

        for mode in nets:
            turn(mode)
        for _ in track(range(sizes.turns), make.__name__, console=console):
            for mode in random.sample(list(nets), 2):
                taken = clock.seconds(partial(turn, mode))
                seconds[mode].append(taken / sizes.steps)
        n_params = sum(p.numel() for p in nets["plain"][0].parameters())
    plain, recorded = (np.array(seconds[mode]) for mode in ("plain", "recorded"))
    return {
        "parameters": n_params,
        "plain, ms a step": 1e3 * float(np.median(plain)),
        "recorded, ms a step": 1e3 * float(np.median(recorded)),
        "recorded over plain": float(np.median(recorded / plain)),
        "recorded over plain, quartiles": np.quantile(
            recorded / plain, [0.25, 0.75]
        ).tolist(),
        "mean with window borders": float(recorded.mean() / plain.mean()),
    }


def floor(
    sizes: Sizes, device: torch.device, *, with_triton: bool, console: Console
) -> dict[str, float]:
    """Compare the time of the recorder alone with the time to move the necessary bytes."""
    shapes = {str(i): (sizes.elements // 10,) for i in range(10)}
    parameters = [torch.randn(shape, device=device) for shape in shapes.values()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    spec = RunSpec.from_json(
        {
            "names": tuple(shapes),
            "shapes": tuple(shapes.values()),
            "seed": 0,
            "sketch_bits": 65536 if sizes is WHOLE else 1024,
            "basis": BASIS,
            "probes": 1024 if sizes is WHOLE else 64,
            "steps_per_epoch": None,
            "reference_every": None,
            "total_steps": None,
            "exact": False,
        }
    )
    switch = nullcontext() if with_triton else without_triton()
    with switch:
        tracker = Tracker(parameters, Layout(spec.names, spec.shapes), spec)
    row = {name: values[0] for name, values in tracker.allocate(1).items()}
    tracker.start()

    def steps() -> None:
        for step in range(sizes.steps):
            tracker.before_step(step, row)
            tracker.after_step(row)

    source = torch.randn(sizes.elements, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(sizes.steps):
            target.copy_(source)

    clock = Clock(device)
    of_steps, of_copies = [], []
    steps(), copies()
    title = "recorder alone" if with_triton else "recorder alone, plain torch"
    for _ in track(range(sizes.turns), title, console=console):
        of_steps.append(clock.seconds(steps) / sizes.steps)
        of_copies.append(clock.seconds(copies) / sizes.steps)
    step, copy = float(np.median(of_steps)), float(np.median(of_copies))
    rate = 2 * source.nbytes / copy
    least = BYTES_PER_ELEMENT * sizes.elements / rate
    return {
        "elements": sizes.elements,
        "bytes that must be moved, per element": BYTES_PER_ELEMENT,
        "rate of a copy, GB/s": rate / 1e9,
        "floor, ms a step": 1e3 * least,
        "recorder, ms a step": 1e3 * step,
        "share of the floor": least / step,
    }


@contextmanager
def without_triton() -> Iterator[None]:
    """Select plain torch instead of Triton within the context."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    yield
    del os.environ[SWITCH]
    if before is not None:
        os.environ[SWITCH] = before


def overhead(*, tiny: bool, console: Console) -> dict[str, Any]:
    """Measure everything; tiny sizes also work without a device, to try the benchmark."""
    has_cuda = torch.cuda.is_available()
    if not has_cuda and not tiny:
        raise SystemExit(
            "This benchmark needs a CUDA device, and torch finds none. Use --tiny to "
            "try it on the CPU, with meaningless sizes."
        )
    device, sizes = torch.device("cuda" if has_cuda else "cpu"), TINY if tiny else WHOLE
    name = torch.cuda.get_device_name() if has_cuda else "CPU, tiny and meaningless"
    return {
        "device": f"{name}, torch {torch.__version__}",
        "sizes": sizes._asdict(),
        "precision": "bfloat16 autocast, float32 parameters",
        "ResNet-18": compete(resnet, sizes, device, console),
        "ResNet-18, offload": compete(resnet, sizes, device, console, offload=has_cuda),
        "GPT": compete(gpt, sizes, device, console),
        "recorder alone": floor(sizes, device, with_triton=True, console=console),
        "recorder alone, plain torch": floor(
            sizes, device, with_triton=False, console=console
        ),
    }


def table(results: dict[str, Any]) -> Table:
    """Return the results as a table."""
    shown = Table("what", "measured", box=None, title="Recording on a device")
    shown.add_row("device", results["device"])
    for name, values in results.items():
        for what in ("recorded over plain", "share of the floor"):
            if what in values:
                shown.add_row(f"{name}: {what}", f"{values[what]:.3f}")
    return shown
