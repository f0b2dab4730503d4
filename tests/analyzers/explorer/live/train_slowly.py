"""Record a slow training run: ``python train_slowly.py STORE FOLDER [FLUSH_SECONDS]``.

The loss becomes NaN when a file ``nan`` appears in the folder, and the run ends after a file
``stop``. Prints the time of the NaN.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

import trajstore


def main() -> None:
    path, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"steps_per_epoch": 100, "sketch_bits": 1024}
    if len(sys.argv) > 3:
        options["flush_seconds"] = float(sys.argv[3])
    is_nan = False
    with trajstore.Recorder(path, model, optimizer, probes=256, **options) as recorder:
        while not (folder / "stop").exists():
            optimizer.zero_grad()
            inputs = torch.randn(16, 20)
            loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
            if not is_nan and (folder / "nan").exists():
                loss, is_nan = loss * float("nan"), True
                print(time.time(), flush=True)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            time.sleep(0.02)


if __name__ == "__main__":
    main()
