"""Measure in full float32 precision, regardless of the precision chosen for training."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

MATMUL_BACKENDS: Final[Sequence[Any]] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
"""Parts of torch that may round float32 matrix products to a lower precision."""

FULL: Final = {"none", "ieee"}
"""Values of `fp32_precision` that mean full precision."""


def no_grad_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return a context for computing without gradients and in full float32 precision."""
    # `no_grad` alone costs less than `_full_precision`; this matters for small nets.
    general = torch.backends.fp32_precision  # type: ignore[attr-defined]
    is_rounded = general not in FULL or any(
        backend.fp32_precision not in FULL for backend in MATMUL_BACKENDS
    )
    if is_rounded or torch.is_autocast_enabled(device.type):
        return _full_precision(device)
    return torch.no_grad()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    torch_backends: Any = torch.backends
    general = torch_backends.fp32_precision
    torch_backends.fp32_precision = "ieee"
    # Backends that follow the general setting now use full precision. The other backends have
    # their own settings, which are changed here and restored below.
    own_settings = {
        b: b.fp32_precision for b in MATMUL_BACKENDS if b.fp32_precision != "ieee"
    }
    for backend in own_settings:
        backend.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in own_settings.items():
            backend.fp32_precision = precision
        torch_backends.fp32_precision = general
