"""Measure what shorter forms of a recorder's vectors would cost in precision.

Trains a small ResNet, and codes the gradient of the step before, and the displacement, in forms of
fewer than 4 bytes per element. The products that the recorder stores are computed with the coded and
with the exact vectors, in float64. A cosine of neighbouring gradients is wrong by the error of the
product over the norms. The products of the update are its square, relative to itself, and its product
with the displacement, relative to the norms. Then a larger network is recorded with compact vectors
and without.
"""

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from saving import save_results
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import trajstore
from train.models.resnet import digits_resnet
from trajstore.format.layout import BLOCK, Layout
from trajstore.sketch import vector_forms
from trajstore.sketch.vector_forms import LEAST_PARAMS

Array = Any

WINDOW = 50
"""Steps in a window: the displacement begins at 0 in the first of them."""

COMPACT = "19 bits, rounding subtracted"
"""The form that recorders have for large networks: products of the rounding errors are known."""

MARGIN = 64
"""A modular code holds updates of up to this many times the largest of the last step, by block."""


def block_integers(vector: Array, bits: int) -> Array:
    """Return a vector as integers of this many bits times a power of two for each block."""
    blocks = vector.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(1, keepdims=True)
    most = 2 ** (bits - 1) - 1
    steps = 2.0 ** np.ceil(np.log2(np.maximum(largest, 1e-300) / most))
    return (np.rint(blocks / steps) * steps).reshape(-1)


def bfloat16(vector: Array) -> Array:
    """Return a vector in bfloat16."""
    return torch.from_numpy(vector).to(torch.bfloat16).double().numpy()


def modular(before: Array, after: Array, last_update: Array) -> Array:
    """Return the iterate before a step from 16 low bits of it, and the iterate after the step."""
    largest = np.abs(last_update.reshape(-1, BLOCK)).max(1, keepdims=True)
    steps = np.repeat(np.maximum(MARGIN * largest, 1e-30) / 2**15, BLOCK)
    low, now = np.rint(before / steps) % 2**16, np.rint(after / steps)
    # The update is less than half of the range, so the nearest number with these bits is right.
    return (now - ((now - low + 2**15) % 2**16 - 2**15)) * steps


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3),
}

WIDTH = 2880
"""Width of the perceptron that is recorded with compact vectors and without."""

N_PARAMS = 64 * WIDTH + WIDTH + WIDTH**2 + WIDTH + 10 * WIDTH + 10

GRADIENT: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "bfloat16": (2, bfloat16),
    "16 bits, scale by block": (2, partial(block_integers, bits=16)),
    "13 bits, scale by block": (1.625, partial(block_integers, bits=13)),
    "8 bits, scale by block": (1, partial(block_integers, bits=8)),
}
DISPLACEMENT: dict[str, float] = {
    "24 bits, scale by block": 3,
    COMPACT: 2.375,
    "16 bits, scale by block": 2,
    "16 low bits of the iterate": 2,
}


def iterates_and_gradients(n_steps: int, optimizer_name: str) -> Any:
    """Yield iterate and gradient, each float64 (size,), before every step; then the layout."""
    torch.manual_seed(0)
    model = digits_resnet()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    named = dict(model.named_parameters())
    layout = Layout(tuple(named), tuple(tuple(p.shape) for p in named.values()))
    for _ in range(n_steps):
        chosen = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        vectors = (
            layout.flatten({n: read(p).numpy() for n, p in named.items()})
            for read in (lambda p: p.detach(), lambda p: p.grad)
        )
        yield layout, *(v.astype(np.float64) for v in vectors)
        optimizer.step()
        schedule.step()


def by_layer(layout: Layout, a: Array, b: Array) -> Array:
    """Return inner products by layer, and of the whole vectors as the last one."""
    sums = [x.sum() for x in layout.unflatten(a * b).values()]
    return np.array([*sums, sum(sums)])


def measure(n_steps: int, optimizer_name: str) -> list[dict[str, Any]]:
    """Return the errors of every form."""
    errors: dict[tuple[str, str, str], list[Array]] = defaultdict(list)
    previous = anchor = update = None
    for step, (layout, x, g) in enumerate(
        iterates_and_gradients(n_steps, optimizer_name)
    ):
        if previous is not None:
            x0, g0 = previous
            norms = np.sqrt(by_layer(layout, g, g) * by_layer(layout, g0, g0))
            for name, (_, code) in GRADIENT.items():
                wrong = by_layer(layout, g, code(g0) - g0) / norms
                errors["gradient", name, "cosine"].append(wrong)
            u, a = x - x0, x0 - anchor
            coded = {"24 bits, scale by block": block_integers(a, 24)}
            coded[COMPACT] = block_integers(a, 19)
            coded["16 bits, scale by block"] = block_integers(a, 16)
            if update is not None:
                coded["16 low bits of the iterate"] = modular(x0, x, update) - anchor
            square = by_layer(layout, u, u)
            both = np.sqrt(square * by_layer(layout, a, a)).clip(1e-300)
            for name, short in coded.items():
                v = x - anchor - short
                lost = (a - short) if name == COMPACT else np.zeros_like(a)
                found = by_layer(layout, v, v) - by_layer(layout, lost, lost)
                wrong = found / np.maximum(square, 1e-300) - 1
                wrong[square == 0] = 0  # a tensor that does not move
                errors["displacement", name, "update"].append(wrong)
                if step % WINDOW > 1:
                    found = by_layer(layout, v, short) - by_layer(layout, lost, short)
                    wrong = (found - by_layer(layout, u, a)) / both
                    errors["displacement", name, "update, displacement"].append(wrong)
            update = u
        if step % WINDOW == 0:
            anchor = x
        previous = x, g
    large = layout.sizes >= BLOCK
    rows = []
    for (vector, name, product), values in errors.items():
        found = np.abs(np.array(values))
        rows.append(
            {
                "optimizer": optimizer_name,
                "vector": vector,
                "form": name,
                "bytes": GRADIENT[name][0]
                if vector == "gradient"
                else DISPLACEMENT[name],
                "product": product,
                "all tensors, rms": float(np.sqrt((found[:, -1] ** 2).mean())),
                "all tensors, largest": float(found[:, -1].max()),
                "large tensors, largest": float(found[:, :-1][:, large].max()),
                "small tensors, largest": float(found[:, :-1][:, ~large].max()),
            }
        )
    return rows


def record(path: Path, optimizer_name: str, n_steps: int) -> Any:
    """Record a perceptron on digits; return its steps as a dataset in memory."""
    torch.manual_seed(0)
    sizes = (64, WIDTH, WIDTH, 10)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    with trajstore.Recorder(path, model, optimizer, steps_per_epoch=WINDOW, seed=0):
        for _ in range(n_steps):
            chosen = torch.randint(len(labels), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return trajstore.open_run(path).steps.load()


def measure_recordings(n_steps: int, optimizer_name: str) -> list[dict[str, Any]]:
    """Return the errors of a recording with compact vectors."""
    with tempfile.TemporaryDirectory() as folder:
        compact = record(Path(folder) / "compact", optimizer_name, n_steps)
        vector_forms.LEAST_PARAMS = 1 << 62
        exact = record(Path(folder) / "exact", optimizer_name, n_steps)
        vector_forms.LEAST_PARAMS = LEAST_PARAMS
    norms = np.sqrt(exact.grad_sq * exact.grad_sq.shift(step=1))
    whole = exact.grad_sq.sum("layer")
    whole_norms = np.sqrt(whole * whole.shift(step=1))
    # The form, the vector it shortens, bytes, and the product with what it is relative to.
    cases = (
        (
            "gradient",
            "13 bits",
            1.625,
            "cosine",
            "grad_dot_previous",
            norms,
            whole_norms,
        ),
        (
            "displacement",
            COMPACT,
            DISPLACEMENT[COMPACT],
            "update",
            "update_sq",
            exact.update_sq,
            exact.update_sq.sum("layer"),
        ),
    )
    # The biases are too small to be compact.
    large = np.array([str(n).endswith("weight") for n in exact.layer.values])
    rows = []
    for vector, form, n_bytes, product, name, by_layer_scale, scale in cases:
        errors = compact[name] - exact[name]
        relative = np.abs(errors / by_layer_scale)[1:]
        of_all = np.abs(errors.sum("layer") / scale)[1:]
        rows.append(
            {
                "optimizer": optimizer_name,
                "vector": vector,
                "form": f"{form}, recorded with {N_PARAMS / 1e6:.1f} M parameters",
                "bytes": n_bytes,
                "product": product,
                "all tensors, rms": float(np.sqrt((of_all**2).mean())),
                "all tensors, largest": float(of_all.max()),
                "large tensors, largest": float(relative[:, large].max()),
                "small tensors, largest": float(relative[:, ~large].max()),
            }
        )
    return rows


def main(*, steps: int = 400, recorded_steps: int = 120) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    steps : int, default: 400
        Number of optimizer steps of the ResNet.
    recorded_steps : int, default: 120
        Number of optimizer steps that are recorded.
    """
    rows = [row for name in OPTIMIZERS for row in measure(steps, name)]
    for name in OPTIMIZERS:
        rows += measure_recordings(recorded_steps, name)
    save_results(rows, "fewer_bytes")
    table = Table(*rows[0], box=None, title="Errors of products")
    for row in rows:
        shown = (v if isinstance(v, str) else f"{v:.2g}" for v in row.values())
        table.add_row(*shown)
    Console(width=160).print(table)


if __name__ == "__main__":
    tyro.cli(main)
