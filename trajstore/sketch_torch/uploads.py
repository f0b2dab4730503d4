"""Upload small arrays to a device without waiting for the device."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; on the CPU the two share memory."""
    # Neither the host nor the device waits. Unless the device is the CPU, callers may change the
    # array as soon as this function returns.
    tensor = torch.from_numpy(array)
    if device.type == "cuda" and torch.cuda.is_available():
        # torch copies without waiting only from pinned memory. It does not reuse that memory
        # before the device has read it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
