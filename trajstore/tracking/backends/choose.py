"""Which of the twins measures the steps on a device."""

import os
from importlib.util import find_spec
from typing import Any, Final
from warnings import warn

import torch

from trajstore.tracking.backends.cpu import StepsOnCPU
from trajstore.tracking.backends.eager import StepsOnDevice

SWITCH: Final = "TRAJSTORE_TRITON"
"""The environment variable that is 0 where Triton is not to be used."""

OLDEST: Final = (7, 0)
"""Compute capability that Triton compiles for at least."""


def steps_class(device: torch.device) -> Any:
    """Choose how steps are measured where all parameters are whole.

    Parameters
    ----------
    device : torch.device
        Where they are.

    Returns
    -------
    type
        `trajstore.tracking.backends.cpu.StepsOnCPU`, `trajstore.tracking.backends.triton.StepsOnTriton`, or
        `trajstore.tracking.backends.eager.StepsOnDevice`, which any device has.

    Warns
    -----
    UserWarning
        If Triton is there, and fails.
    """
    if device.type == "cpu":
        return StepsOnCPU
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return StepsOnDevice
    if find_spec("triton") is None or _is_too_old(device):
        return StepsOnDevice
    try:
        # To import it takes seconds, and it is there with builds for CUDA only.
        from trajstore.tracking.backends.triton import (  # noqa: PLC0415
            StepsOnTriton,
            try_out,
        )

        try_out(device)
    except Exception as error:  # noqa: BLE001 - of a compiler, its tools or a driver
        warn(
            f"Triton fails on {device} ({error!r}): steps are measured by plain torch "
            f"operations, which takes several times as long. {SWITCH}=0 in the environment "
            "says that this is known.",
            stacklevel=2,
        )
        return StepsOnDevice
    return StepsOnTriton


def _is_too_old(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) < OLDEST
