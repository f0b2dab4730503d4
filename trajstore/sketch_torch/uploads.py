"""Bring small arrays from the host to a device, without waiting for it."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device; neither the host nor what the device does is held up.

    Parameters
    ----------
    array : numpy.ndarray
        May be changed as soon as this returns, unless the device is the CPU.
    device : torch.device
        Where it is wanted.

    Returns
    -------
    torch.Tensor
        On the device; on the CPU it shares the memory of the array.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda" and torch.cuda.is_available():
        # Only from pinned memory torch copies without waiting; it keeps that memory from
        # being used again until the device has read it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
