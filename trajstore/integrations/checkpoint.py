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
    ``holder = RecorderState()``, then give ``holder.resume`` to the new recorder. The number of
    ranks may be another one than at the time of saving.

    Parameters
    ----------
    recorder : trajstore.Recorder, optional
        The recorder whose state is saved; not needed for loading.
    every_rank : bool, default: False
        Whether every rank has a recording of its own, as when ranks train different models. By
        default, one recording belongs to all ranks. Give the same value for loading.

    Attributes
    ----------
    resume : dict or False
        The state that was loaded, for the option `resume` of `trajstore.Recorder`; False
        before a checkpoint was loaded, and on ranks that do not write a recording.

    Examples
    --------
    >>> RecorderState().resume
    False
    """

    def __init__(
        self, recorder: Recorder | None = None, *, every_rank: bool = False
    ) -> None:
        self._recorder, self._every_rank = recorder, every_rank
        self.resume: Mapping[str, Any] | bool = False

    def state_dict(self) -> dict[str, Any]:
        """Flush the recording, and return its state as one item.

        Returns
        -------
        dict of str to bytes
            The item's name holds the rank. Ranks that do not write a recording have no item.
        """
        state = {} if self._recorder is None else self._recorder.state_dict()
        if not self._has_item:
            return {}
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
        if not self._has_item:
            return
        if _name() not in state_dict:
            raise KeyError(
                f"The checkpoint has no {_name()!r}, only {list(state_dict)}: no recording was "
                "saved with it, or, with `every_rank=True`, fewer ranks saved it."
            )
        buffer = io.BytesIO(state_dict[_name()])
        self.resume = torch.load(buffer, weights_only=True) or False

    @property
    def _has_item(self) -> bool:
        """Whether this rank's state is part of the checkpoint."""
        return self._every_rank or _rank() == 0


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _name() -> str:
    return f"rank_{_rank()}"
