"""Upload small arrays to a device without waiting for it."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of an array on a device; on the CPU it shares the array's memory."""
    # Neither the host nor the device waits. Unless the device is the CPU, the array may be
    # changed as soon as this returns.
    tensor = torch.from_numpy(array)
    if device.type == "cuda" and torch.cuda.is_available():
        # Only from pinned memory does torch copy without waiting; it does not reuse that
        # memory before the device has read it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
