"""Record a slow training run: ``python train_slowly.py STORE SECONDS NAN_AFTER``.

Prints the time at which the loss becomes NaN, NAN_AFTER seconds after the start.
"""

import sys
import time
from typing import Any

import torch

import trajstore


def main() -> None:
    path, seconds, nan_after = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"steps_per_epoch": 100, "sketch_bits": 1024}
    start, is_nan = time.time(), False
    with trajstore.Recorder(
        path, model, optimizer, probes=256, flush_seconds=1.0, **options
    ) as recorder:
        while time.time() - start < seconds:
            optimizer.zero_grad()
            inputs = torch.randn(16, 20)
            loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
            if not is_nan and time.time() - start > nan_after:
                loss, is_nan = loss * float("nan"), True
                print(time.time(), flush=True)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            time.sleep(0.02)


if __name__ == "__main__":
    main()
