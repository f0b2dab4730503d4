"""Change of the tangent kernel during training, by width and by scale of the outputs.

Tanh networks with two hidden layers learn the first 200 digits by full-batch gradient descent on
the squared error. Outputs less their initial values are multiplied by the scale, and the loss
is divided by its square, so that all networks learn at the same pace as far as their kernels
agree. Takes about two minutes on 2 cores. Writes docs/images/tangent-kernel.png and
results/tangent_kernel.json, from which benchmarks/readme.py writes the table of
docs/tangent-kernel.md.
"""

import argparse
import copy
from typing import Any

import numpy as np
import torch
from figures import save_figure
from rich.progress import track
from saving import save_results
from torch import Tensor, nn
from torch.nn import functional as F

from analyzers._style import new_figure
from train.data.digits import standardized_digits
from trajstore.curvature import TangentKernel

WIDTHS = (32, 128, 512)
SCALES = (0.3, 1.0, 10.0)
SEEDS = (0, 1, 2)
N_EXAMPLES = 200
N_IN_KERNEL = 16
LR, N_STEPS, EVERY = 0.02, 200, 20


class Network(nn.Module):
    """A tanh network less its initial outputs, times a scale."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, 10),
        )  # fmt: skip
        self.scale = scale
        self.initial = [copy.deepcopy(self.layers).requires_grad_(False)]

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.layers(images.flatten(1)) - self.initial[0](images.flatten(1))
        return self.scale * y


def learn(width: int, scale: float, seed: int, n_steps: int) -> list[dict[str, float]]:
    """Train one network, and return what is measured every `EVERY` steps."""
    torch.manual_seed(seed)
    images, labels = (t[:N_EXAMPLES] for t in standardized_digits().tensors)
    targets = F.one_hot(labels, 10).float()
    model = Network(width, scale)
    kernel = TangentKernel(model, images[:N_IN_KERNEL], labels[:N_IN_KERNEL])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start = [p.detach().clone() for p in model.parameters()]
    size = sum(float(p.square().sum()) for p in start) ** 0.5
    found = []
    for step in range(n_steps + 1):
        optimizer.zero_grad()
        loss = 0.5 * (model(images) - targets).square().sum(1).mean()
        if step % EVERY == 0:
            moved = [
                float((p.detach() - q).square().sum())
                for p, q in zip(model.parameters(), start, strict=True)
            ]
            facts = {
                "step": step,
                "loss": float(loss.detach()),
                "moved": sum(moved) ** 0.5 / size,
            }
            found.append(facts | kernel.measure())
        (loss / scale**2).backward()
        optimizer.step()
    return found


def draw(runs: dict[str, Any]) -> None:
    """Draw the change of the kernel over training, and its final value by width."""
    figure, [axes] = new_figure(1, 2, figsize=(9, 3.6))
    widest = str(WIDTHS[-1])
    for scale in SCALES:
        seeds = runs[widest][str(scale)]
        steps = [row["step"] for row in seeds[0]]
        change = np.mean([[row["kernel_change"] for row in run] for run in seeds], 0)
        axes[0].plot(steps, change, label=f"scale {scale:g}")
        final = [
            np.mean([run[-1]["kernel_change"] for run in runs[str(w)][str(scale)]])
            for w in WIDTHS
        ]
        axes[1].loglog(WIDTHS, final, "o-", label=f"scale {scale:g}")
    axes[0].set(xlabel="step", ylabel=r"$|K - K_0|\,/\,|K_0|$", title=f"width {widest}")
    axes[1].set(xlabel="width", title=f"after {N_STEPS} steps")
    axes[1].set_xticks(WIDTHS, [str(w) for w in WIDTHS])
    axes[1].minorticks_off()
    axes[0].legend()
    save_figure(figure, "tangent-kernel")


def main(n_steps: int) -> None:
    """Train all networks, and keep what was found."""
    combinations = [(w, s, seed) for w in WIDTHS for s in SCALES for seed in SEEDS]
    runs: dict[str, Any] = {str(w): {str(s): [] for s in SCALES} for w in WIDTHS}
    for width, scale, seed in track(combinations, "training"):
        runs[str(width)][str(scale)].append(learn(width, scale, seed, n_steps))
    save_results({"runs": runs, "n_steps": n_steps}, "tangent_kernel")
    draw(runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    main(parser.parse_args().steps)
