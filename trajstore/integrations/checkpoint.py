"""Carry a recording through the checkpoints of ``torch.distributed.checkpoint``."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist

from trajstore.recording.recorder import Recorder


class RecorderState:
    """State of a recorder that ``torch.distributed.checkpoint`` saves and loads.

    Save ``{"recorder": RecorderState(recorder), ...}``. To resume, load into
    ``holder = RecorderState()``, then give ``holder.resume`` to the new recorder.

    Parameters
    ----------
    recorder : trajstore.Recorder, optional
        The recorder whose state is saved; not needed for loading.

    Attributes
    ----------
    resume : dict or False
        The state that was loaded, for the option `resume` of `trajstore.Recorder`; False
        before a checkpoint was loaded.

    Examples
    --------
    >>> RecorderState().resume
    False
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self.resume: Mapping[str, Any] | bool = False

    def state_dict(self) -> dict[str, Any]:
        """Flush the recording, and return its state as one item for each rank.

        Returns
        -------
        dict of str to bytes
            The item's name holds the rank, because ranks of a sharded model have different
            states.
        """
        state = {} if self._recorder is None else self._recorder.state_dict()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return {_name(): buffer.getvalue()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state of this rank as `resume`.

        Parameters
        ----------
        state_dict : mapping
            As `state_dict` returned it when the checkpoint was saved.

        Raises
        ------
        KeyError
            If the checkpoint holds no recording of this rank.
        """
        if _name() not in state_dict:
            raise KeyError(
                f"The checkpoint has no {_name()!r}, only {list(state_dict)}; resume with as "
                "many ranks as it was saved with."
            )
        buffer = io.BytesIO(state_dict[_name()])
        self.resume = torch.load(buffer, weights_only=True) or False


def _name() -> str:
    return f"rank_{dist.get_rank() if dist.is_initialized() else 0}"
