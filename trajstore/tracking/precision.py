"""Full float32 precision for measurements, whatever training has chosen."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

PRECISIONS: Final[Sequence[Any]] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
"""Where torch keeps the precision that float32 matrix products may be rounded to."""


def quiet(device: torch.device) -> AbstractContextManager[None]:
    """Compute without gradients and in full float32, whatever training has chosen."""
    # One context manager instead of three makes a difference in a small net's step.
    whole = torch.backends.fp32_precision  # type: ignore[attr-defined]
    rounded = whole not in FULL or any(
        backend.fp32_precision not in FULL for backend in PRECISIONS
    )
    if rounded or torch.is_autocast_enabled(device.type):
        return _full_precision(device)
    return torch.no_grad()


FULL: Final = {"none", "ieee"}
"""torch's names for full precision."""


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    torch_wide: Any = torch.backends
    whole = torch_wide.fp32_precision
    torch_wide.fp32_precision = "ieee"
    # Settings that follow the general one are full now; only others need to be restored.
    chosen = {b: b.fp32_precision for b in PRECISIONS if b.fp32_precision != "ieee"}
    for backend in chosen:
        backend.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in chosen.items():
            backend.fp32_precision = precision
        torch_wide.fp32_precision = whole
