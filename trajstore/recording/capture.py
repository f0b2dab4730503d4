"""CUDA graphs: what is captured runs again without Python, and so without hooks."""

import torch


def refuse_capture(device: torch.device) -> None:
    """Raise an error while operations are captured instead of being run.

    Parameters
    ----------
    device : torch.device
        Where the parameters are.

    Raises
    ------
    RuntimeError
        If the current stream is being captured.
    """
    if is_capturing(device):
        raise RuntimeError(
            "The recorder is called while a CUDA graph is captured: replays of the graph run "
            "no hooks, and no step would be recorded. Capture forward and backward passes "
            "only, and call optimizer.step() after each replay."
        )


def is_capturing(device: torch.device) -> bool:
    """Whether operations are being captured, and not run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
