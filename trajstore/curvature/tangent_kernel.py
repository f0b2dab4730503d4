r"""The empirical neural tangent kernel of fixed examples.

For outputs :math:`f_a(x_i; \theta)` of a model with the parameters :math:`\theta`, the kernel is
:math:`K_{ia,jb} = \langle \nabla_\theta f_a(x_i), \nabla_\theta f_b(x_j) \rangle`. A. Jacot,
F. Gabriel, C. Hongler, "Neural Tangent Kernel", NeurIPS 2018, arXiv 1806.07572.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from trajstore.evaluation.restored_state import restored_state

MAX_OUTPUTS = 8192
"""Largest number of examples times outputs."""


def tangent_kernel(
    model: nn.Module, inputs: Tensor, *, parameters: Iterable[str] | None = None
) -> Tensor:
    r"""Compute the tangent kernel of a model at its parameters, in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its outputs have the shape (example, ...). Its state stays unchanged.
    inputs : torch.Tensor
        The examples, as the model takes them.
    parameters : iterable of str, optional
        Names of the parameters whose derivatives are used. Default: all trainable ones.

    Returns
    -------
    torch.Tensor
        :math:`K`, float64 (example, output, example, output), with the outputs of an example
        flattened.

    Raises
    ------
    ValueError
        If there are more than 8192 outputs of all examples together.

    Notes
    -----
    The kernel is exact up to rounding in the precision of the model. All derivatives are in
    memory at once: examples times outputs times parameters numbers. Batch normalisation uses
    its running statistics, so that examples do not depend on each other.
    """
    trainable = {
        name: p.detach() for name, p in model.named_parameters() if p.requires_grad
    }
    names = list(trainable) if parameters is None else list(parameters)
    chosen = {name: trainable[name] for name in names}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        y: Tensor = functional_call(model, values, (inputs,))
        if y.numel() > MAX_OUTPUTS:
            raise ValueError(
                f"The kernel has a row for each of {y.numel()} outputs, expected at most "
                f"{MAX_OUTPUTS}; pass fewer examples, or a model with fewer outputs."
            )
        return y.flatten(1)

    with restored_state(model):
        model.eval()
        derivatives = jacrev(outputs)(chosen)
    kernel: Tensor | None = None
    for jacobian in derivatives.values():
        n, k = jacobian.shape[:2]
        rows = jacobian.reshape(n * k, -1).double()
        product = rows @ rows.T
        kernel = product if kernel is None else kernel + product
    if kernel is None:
        raise ValueError("The model has no trainable parameters.")
    return kernel.view(n, k, n, k)


class TangentKernel:
    r"""Follows the tangent kernel of fixed examples during training.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its outputs have the shape (example, ...).
    inputs : torch.Tensor
        The examples, as the model takes them.
    labels : torch.Tensor, optional
        Classes, int64 (example,), or targets, float (example, output). Without labels, the
        alignment is left out.
    n_eigenvalues : int, default: 3
        Number of eigenvalues.

    Attributes
    ----------
    initial : torch.Tensor or None
        The first kernel that was measured, float64 (rows, rows). Keep it in a checkpoint, so
        that a resumed run compares with the same kernel.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor | None = None,
        *,
        n_eigenvalues: int = 3,
    ) -> None:
        self._model, self._inputs, self._labels = model, inputs, labels
        self._n_eigenvalues = n_eigenvalues
        self.initial: Tensor | None = None

    def measure(self) -> dict[str, float]:
        r"""Return facts about the kernel at the model's parameters, for `Recorder.log`.

        Returns
        -------
        dict of str to float
            ``kernel_change``: :math:`|K - K_0|_F / |K_0|_F`, where :math:`K_0` is the first
            kernel that was measured. ``kernel_distance``: 1 minus the cosine of :math:`K` and
            :math:`K_0` as vectors [1]_, which ignores a change of scale. ``kernel_alignment``:
            :math:`y^T K y / (|K|_F |y|^2)` with the labels :math:`y`, one-hot and centred for
            classes [2]_; at most 1. ``kernel_eigenvalue``, ``kernel_eigenvalue_2`` and so on:
            the largest eigenvalues of :math:`K` over the number of examples, which are rates
            at which gradient flow on half the mean squared error reduces residuals. NaN where
            the kernel is not finite or is 0.

        References
        ----------
        .. [1] S. Fort et al., "Deep learning versus kernel learning", NeurIPS 2020, arXiv
           2010.15110, section 3.
        .. [2] N. Cristianini et al., "On Kernel-Target Alignment", NeurIPS 2001.
        """
        kernel = tangent_kernel(self._model, self._inputs).flatten(0, 1).flatten(1, 2)
        kernel = kernel.cpu()
        n = len(self._inputs)
        if self.initial is None:
            self.initial = kernel
        facts = {
            "kernel_change": float(
                (kernel - self.initial).norm() / self.initial.norm()
            ),
            "kernel_distance": 1 - _cosine(kernel, self.initial),
        }
        if self._labels is not None:
            y = _targets(self._labels.cpu(), len(kernel) // n)
            facts["kernel_alignment"] = float(
                (y @ kernel @ y) / (kernel.norm() * y.square().sum())
            )
        names = ["kernel_eigenvalue"]
        names += [f"kernel_eigenvalue_{i}" for i in range(2, self._n_eigenvalues + 1)]
        return facts | dict(zip(names, _eigenvalues(kernel, n), strict=False))


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def _eigenvalues(kernel: Tensor, n: int) -> list[float]:
    """Return the eigenvalues over the number of examples, in descending order."""
    if not torch.isfinite(kernel).all():
        return [float("nan")] * len(kernel)
    values: list[float] = torch.linalg.eigvalsh(kernel / n).flip(0).tolist()
    return values


def _targets(labels: Tensor, n_outputs: int) -> Tensor:
    """Return labels as a vector of all outputs, float64 (example * output,)."""
    if labels.is_floating_point():
        return labels.double().flatten()
    one_hot = nn.functional.one_hot(labels, n_outputs).double()
    return (one_hot - 1 / n_outputs).flatten()
