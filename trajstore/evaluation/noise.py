"""Noise instead of gradients: the null model of a run, for any optimizer."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from trajstore.reading.run import Run

ROWS = 1024
"""Number of steps whose norms are read together."""


def noise_gradients(
    run: Run,
    model: nn.Module | Mapping[str, torch.Tensor],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    seed: int = 0,
) -> Iterator[int]:
    r"""Replace the gradients of a run with noise, step by step, for an optimizer to follow.

    Before step k, every parameter tensor gets a gradient of independent normal numbers whose
    norm is that of the tensor's recorded gradient, and every parameter group gets its
    recorded learning rate. The loop calls ``optimizer.step()``, and nothing else; neither
    data nor losses are needed. Record the loop: it is a walk whose steps know nothing of a
    loss, through your optimizer. Gamma of that recording is what the optimizer alone would
    show.

    Parameters
    ----------
    run : trajstore.Run
        The recorded run, whose norms and rates are used.
    model : torch.nn.Module or mapping from str to torch.Tensor
        The model whose parameters walk, or its parameters by name: freshly made, as before
        training. Its tensors must be those of the run; what it computes does not matter.
    optimizer : torch.optim.Optimizer or sequence of torch.optim.Optimizer, optional
        The optimizers of the model, made as for the run. Schedulers are not needed. Default:
        none; the loop reads ``.grad`` of the tensors and applies an update rule of its own, with
        the rates of ``run.steps.lr`` if it recorded them.
    seed : int, default: 0
        Seed of the noise.

    Yields
    ------
    int
        The step k, when the gradients are ready.

    Raises
    ------
    ValueError
        If the tensors of the model are not those of the run, or if the norm of a gradient is
        not finite: then leave out ``run.n_steps`` after that step.

    Notes
    -----
    Only the directions are noise, and they are uniformly random within every tensor: real
    gradients of a tensor have larger elements in some places than in others, which optimizers
    such as Adam undo. In d dimensions, gamma of one walk deviates from its expectation by about
    :math:`1 / \sqrt{d}` at every step; several seeds tell how much. For `torch.optim.SGD` the
    expectation is known. Let :math:`c_{ki}` be the part that gradient i has in
    :math:`x_k - x^*`: the learning rates of all later steps, times the powers of the momentum
    that the gradient has there. In many dimensions, gradients are orthogonal, and
    :math:`\gamma_k = c_{kk} |g_k| / \sqrt{\sum_i c_{ki}^2 |g_i|^2}`.

    Examples
    --------
    >>> import torch, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3)
    ... )
    >>> adam = torch.optim.Adam(model.parameters())
    >>> path = tmp_path / "walk.zarr"
    >>> with trajstore.Recorder(path, model, adam, steps_per_epoch=12) as recorder:
    ...     for step in noise_gradients(run, model, adam):
    ...         adam.step()
    >>> trajstore.open_run(path).n_steps
    60
    """
    named = dict(model if isinstance(model, Mapping) else model.named_parameters())
    shapes = {name: tuple(named[name].shape) for name in named}
    for name, shape in zip(run.spec.names, run.spec.shapes, strict=True):
        if shapes.get(name) != shape:
            raise ValueError(
                f"The run has the tensor {name} of shape {shape}, the model has "
                f"{shapes.get(name, 'none')}. Give a model that is made as for the run."
            )
    parameters = [named[name] for name in run.spec.names]
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer or ()
    groups = [group for each in optimizers for group in each.param_groups]
    for first in range(0, run.n_steps, ROWS):
        rows = run.steps.isel(step=slice(first, first + ROWS))
        norms = np.sqrt(rows["grad_sq"].values.astype(np.float64))
        rates = {
            i: rows[name].values
            for i in range(len(groups))
            if (name := f"lr_{i}" if i else "lr") in rows
        }
        for row, of_tensors in enumerate(norms):
            for i, values in rates.items():
                groups[i]["lr"] = float(values[row])
            _fill(parameters, of_tensors, seed, first + row)
            yield first + row


def _fill(
    parameters: Sequence[torch.Tensor], norms: np.ndarray, seed: int, step: int
) -> None:
    """Set the gradients of a step to noise of these norms; a norm of 0 means no gradient."""
    if not np.isfinite(norms).all():
        raise ValueError(
            f"A gradient of step {step} is not finite or not known, so its norm cannot be given "
            "to noise. End the walk before this step."
        )
    # On the CPU, torch uses the lower 32 bits of a seed only.
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    for parameter, norm in zip(parameters, norms, strict=True):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.grad = (noise * (norm / noise.norm())).to(parameter) if norm else None
