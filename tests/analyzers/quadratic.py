"""Gradient descent on quadratics, whose iterates have a closed form."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trajstore.reading.run import Run, open_run


def descend(
    path: Path,
    rates: Sequence[float],
    eigenvalues: Any,
    *,
    start: Any = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    with_loss: bool = True,
    exact: bool = True,
    attrs: dict[str, Any] | None = None,
) -> Run:
    """Record one step for each rate, with the gradient ``eigenvalues * x + noise``."""
    import torch

    from trajstore import Recorder

    generator = torch.Generator().manual_seed(seed)
    curvature = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float32)
    model = torch.nn.ParameterDict({"x": torch.empty(len(curvature))})
    x = model["x"]
    with torch.no_grad():
        x.copy_(torch.as_tensor(start, dtype=torch.float32))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options: dict[str, Any] = (
        {"exact": True} if exact else {"sketch_bits": 64, "probes": 64}
    )
    with Recorder(path, model, optimizer, attrs=attrs or {}, **options) as recorder:
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            with torch.no_grad():
                draw = noise * torch.randn(len(curvature), generator=generator)
                x.grad = curvature * x + draw
                loss = (curvature * x.square()).sum() / 2
            if with_loss:
                recorder.log(loss=loss)
            optimizer.step()
    return open_run(path)


def iterates(eigenvalues: Any, rates: Sequence[float], start: Any = 1.0) -> Any:
    """Return the noise-free iterates before every step, float64 (step, param)."""
    curvature = np.asarray(eigenvalues, float)
    x = np.broadcast_to(start, curvature.shape).astype(float)
    path = []
    for rate in rates:
        path.append(x)
        x = x - rate * curvature * x
    return np.array(path)
