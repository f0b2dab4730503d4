"""Measure sharpness during training: the largest eigenvalues of the Hessian.

The protocol is that of J. Cohen et al., "Gradient Descent on Neural Networks Typically Occurs
at the Edge of Stability", ICLR 2021, arXiv 2103.00065: the Hessian is measured before the
step, in the mode in which the model is trained.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trajstore.curvature.hessian import (
    Eigenpairs,
    Terms,
    preconditioner_of,
    top_eigenvalues,
)
from trajstore.evaluation.restored_state import restored_state


class Sharpness:
    """Measures the largest eigenvalues of a loss's Hessian, and leaves the model unchanged.

    Every search starts from the eigenvectors that the last one found, which saves most of the
    work.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its trainable parameters must lie on one device.
    terms : callable
        Returns the summands of the loss, as `top_eigenvalues` takes them. Random numbers are
        the same in every call, so dropout has the same masks.
    optimizer : torch.optim.Optimizer, optional
        The optimizer of the model; Adam and RMSprop add the preconditioned sharpness.
    n : int, default: 1
        Number of eigenvalues of the Hessian.
    seed : int, default: 0
        Seed of the random numbers that `terms` may draw.

    Attributes
    ----------
    directions : dict of str to torch.Tensor
        Starting vectors for the next search, by name of eigenvalue, float64 (param,). Keep
        them in a checkpoint, so that a resumed run finds the same digits.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Terms,
        *,
        optimizer: Optimizer | None = None,
        n: int = 1,
        seed: int = 0,
    ) -> None:
        self._model, self._terms_of_loss = model, terms
        self._optimizer = optimizer
        self._n, self._seed = n, seed
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.directions: dict[str, Tensor] = {}

    def measure(self) -> dict[str, float]:
        """Return the eigenvalues at the model's parameters, for `Recorder.log`.

        Returns
        -------
        dict of str to float
            ``sharpness``, ``sharpness_2`` and so on, and ``preconditioned_sharpness`` after
            the first step of an adaptive optimizer; NaN if the loss is not finite.
        """
        with restored_state(self._model):
            values = self._largest("sharpness", self._n, None)
            names = ["sharpness", *(f"sharpness_{i}" for i in range(2, self._n + 1))]
            eigenvalues = dict(zip(names, values.tolist(), strict=True))
            preconditioner = (
                None
                if self._optimizer is None
                else preconditioner_of(self._optimizer, self._parameters)
            )
            if preconditioner is not None:
                name = "preconditioned_sharpness"
                [eigenvalues[name]] = self._largest(name, 1, preconditioner).tolist()
        return eigenvalues

    def _largest(
        self, name: str, n: int, preconditioner: Tensor | None
    ) -> npt.NDArray[np.float64]:
        """Return the n largest eigenvalues, searching from the eigenvectors found before."""
        start = self.directions.get(name)
        pairs: Eigenpairs = top_eigenvalues(
            self._terms,
            self._parameters,
            n=n,
            preconditioner=preconditioner,
            start=None if start is None else start.numpy(),
        )
        if np.isfinite(pairs.vectors).all():
            self.directions[name] = torch.from_numpy(pairs.vectors.sum(0))
        return pairs.values

    def _terms(self) -> Iterator[Tensor]:
        """Yield the summands of the loss, with the same random numbers every time."""
        torch.manual_seed(self._seed)
        yield from self._terms_of_loss()
