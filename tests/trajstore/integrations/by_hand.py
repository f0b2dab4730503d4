"""A plain loop for the training that these tests run with every library."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trajstore.reading.run import Run, open_run

BATCH, N_BATCHES, EPOCHS = 2, 11, 3
SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64}


class Step(NamedTuple):
    """The gradient and iterate that a step begins with, and the loss of its batches.

    `unclipped` is the gradient before it was clipped.
    """

    loss: float
    unclipped: npt.NDArray[np.float32]
    gradient: npt.NDArray[np.float32]
    parameters: npt.NDArray[np.float32]


def make_net(*, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2)
    )


def make_data() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(BATCH * N_BATCHES, 6, generator=generator)
    return torch.utils.data.TensorDataset(inputs, inputs[:, :2].sin())


def make_loader(*, shuffle: bool = False) -> Any:
    return torch.utils.data.DataLoader(make_data(), batch_size=BATCH, shuffle=shuffle)


def loss_of(net: Callable[[Tensor], Tensor], batch: Sequence[Tensor]) -> Tensor:
    inputs, targets = batch
    return (net(inputs) - targets).square().mean()


def make_sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train_by_hand(
    *, accumulate: int = 1, clip: float | None = None, remainder_is_whole: bool = False
) -> list[Step]:
    """Train; `remainder_is_whole` divides the losses of a short step by its batch count."""
    net = make_net()
    optimizer, steps = make_sgd(net), []
    for _ in range(EPOCHS):
        batches = list(make_loader())
        for start in range(0, N_BATCHES, accumulate):
            group = batches[start : start + accumulate]
            losses = [loss_of(net, batch) for batch in group]
            optimizer.zero_grad()
            for loss in losses:
                (loss / (len(group) if remainder_is_whole else accumulate)).backward()
            unclipped = flat([p.grad for p in net.parameters()])
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            steps.append(
                Step(
                    float(np.mean([loss.item() for loss in losses])),
                    unclipped,
                    flat([p.grad for p in net.parameters()]),
                    flat(net.parameters()),
                )
            )
            optimizer.step()
    return steps


def flat(tensors: Any) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = (
        torch.cat([t.detach().flatten() for t in tensors]).numpy().copy()
    )
    return values


def vectors(run: Run, name: str) -> npt.NDArray[np.float32]:
    """Return the vectors of an exact recording, without padding."""
    return unpadded(run, run.stored.array(name)[: run.n_steps])


def unpadded(run: Run, padded: Any) -> npt.NDArray[np.float32]:
    places = run.layout.flatten(
        {
            name: np.ones(shape)
            for name, shape in zip(run.spec.names, run.spec.shapes, strict=True)
        }
    )
    return np.asarray(padded)[..., places != 0]


def iterates(run: Run) -> npt.NDArray[np.float32]:
    windows = np.asarray(run.stored.array("window")[: run.n_steps])
    size = run.layout.size
    references = [
        unpadded(run, run.stored.anchors.decode(int(window), slice(0, size)))
        for window in windows
    ]
    return np.stack(references) + vectors(run, "displacement")


def check_rows(path: Path, steps: Sequence[Step], *, steps_per_epoch: int) -> Run:
    """Compare an exact recording with gradients and iterates kept by hand."""
    run = open_run(path)
    assert (run.n_steps, run.status) == (len(steps), "complete")
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(run.steps.loss, [s.loss for s in steps], **close)
    gradients = np.stack([s.gradient for s in steps])
    np.testing.assert_allclose(vectors(run, "gradient"), gradients, **close)
    parameters = np.stack([s.parameters for s in steps])
    np.testing.assert_allclose(iterates(run), parameters, **close)
    epochs, iterations = np.divmod(np.arange(len(steps)), steps_per_epoch)
    np.testing.assert_array_equal(run.steps.epoch, epochs)
    np.testing.assert_array_equal(run.steps.iteration, iterations)
    return run


def final(run: Run) -> npt.NDArray[np.float32]:
    return unpadded(run, run.stored.vector("final", slice(0, run.layout.size)))


def check_same_recording(first_path: Path, second_path: Path) -> None:
    """Compare all values of two recordings of the same training."""
    first, second = open_run(first_path), open_run(second_path)
    assert first.status == second.status == "complete"
    assert first.n_steps == second.n_steps > 0
    for name in ("epoch", "iteration", "window", "tables", "references/start"):
        np.testing.assert_array_equal(
            first.stored.array(name)[:], second.stored.array(name)[:], name
        )
    np.testing.assert_array_equal(first.steps.loss, second.steps.loss)
    np.testing.assert_array_equal(final(first), final(second))
