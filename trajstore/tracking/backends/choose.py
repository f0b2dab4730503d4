"""Choose the backend that measures steps on a device."""

import os
from importlib.util import find_spec
from typing import Final
from warnings import warn

import torch
from numba import config

from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.backends.eager import EagerBackend
from trajstore.tracking.backends.protocol import StepBackend

SWITCH: Final = "TRAJSTORE_TRITON"
"""Environment variable; the value 0 turns Triton off."""

CHOICE: Final = "TRAJSTORE_BACKEND"
"""Environment variable; the value "eager" selects plain torch on every device."""

MIN_CAPABILITY: Final = (7, 0)
"""Lowest compute capability that Triton supports."""


def choose_backend(device: torch.device, *, is_whole: bool) -> type[StepBackend]:
    """Return the fastest backend; `is_whole` says that no parameter is sharded."""
    choice = os.environ.get(CHOICE, "")
    if choice not in {"", "eager"}:
        raise ValueError(f"{CHOICE}: expected 'eager' or nothing, got {choice!r}")
    if choice:
        return EagerBackend
    if device.type == "cpu":
        return EagerBackend if config.DISABLE_JIT else CPUBackend
    # The kernels for GPUs can only read whole tensors.
    if not is_whole or device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return EagerBackend
    if find_spec("triton") is None or _is_too_old(device):
        return EagerBackend
    try:
        # The import takes seconds, and only the CUDA builds of torch include Triton.
        from trajstore.tracking.backends.triton import (  # noqa: PLC0415
            TritonBackend,
            try_out,
        )

        try_out(device)
    except Exception as error:  # noqa: BLE001 - from a compiler, its tools or a driver
        warn(
            f"Triton fails on {device} ({error!r}): plain torch operations measure the "
            f"steps, which takes several times as long. Set {SWITCH}=0 in the environment "
            "to turn Triton off and silence this warning.",
            stacklevel=2,
        )
        return EagerBackend
    return TritonBackend


def _is_too_old(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) < MIN_CAPABILITY
