"""Refuse to record while a CUDA graph is being captured."""

from functools import cache

import torch


def refuse_capture(device: torch.device) -> None:
    """Raise an error while a CUDA graph is being captured."""
    if is_capturing(device):
        raise RuntimeError(
            "The recorder was called while a CUDA graph was being captured: its replays run no "
            "hooks. Capture forward and backward only, and call optimizer.step() after each."
        )


def is_capturing(device: torch.device) -> bool:
    """Whether operations on a device are being captured instead of run."""
    return _is_cuda(device) and torch.cuda.is_current_stream_capturing()


@cache
def _is_cuda(device: torch.device) -> bool:
    """Whether a device is of CUDA; reading its type takes microseconds."""
    return device.type == "cuda"
