"""Full float32 precision for measurements, whatever training has chosen."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

MATMUL_BACKENDS: Final[Sequence[Any]] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
"""Parts of torch whose float32 matrix products may be rounded to a lower precision."""

FULL: Final = {"none", "ieee"}
"""torch's names for full precision."""


def no_grad_float32(device: torch.device) -> AbstractContextManager[None]:
    """Compute without gradients and in full float32, whatever training has chosen."""
    # `no_grad` alone is cheaper than all three contexts, which matters in steps of small nets.
    general = torch.backends.fp32_precision  # type: ignore[attr-defined]
    is_rounded = general not in FULL or any(
        backend.fp32_precision not in FULL for backend in MATMUL_BACKENDS
    )
    if is_rounded or torch.is_autocast_enabled(device.type):
        return _full_precision(device)
    return torch.no_grad()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    torch_wide: Any = torch.backends
    general = torch_wide.fp32_precision
    torch_wide.fp32_precision = "ieee"
    # Backends that follow the general setting are at full precision now. Others have a
    # setting of their own, which is changed here and restored below.
    chosen = {
        b: b.fp32_precision for b in MATMUL_BACKENDS if b.fp32_precision != "ieee"
    }
    for backend in chosen:
        backend.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in chosen.items():
            backend.fp32_precision = precision
        torch_wide.fp32_precision = general
