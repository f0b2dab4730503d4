"""Notice that the blocks of `recorder.step()` do not change the parameters."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from trajstore.recording.loops.copies import copy_of
from trajstore.tracking.placement import local_part

N_STILL: Final = 3
"""Number of blocks at the start of a recording after which users are told: one without a write that
tensors count, and two in which all elements stay the same."""

STILL: Final = (
    "No parameter changed in the first blocks of recorder.step(). A row holds the parameters with "
    "which its block begins: if the update comes before the block, the gradient belongs to other "
    "parameters, and gamma is wrong. If the update makes new tensors, the recorder does not see "
    "them. Write the update inside the block, and update a mapping of parameters in place, as in "
    "`parameters.update(new)`, or give it to recorder.step(gradients, parameters)."
)


class StillBlocks:
    """Compares the parameters at the beginning and at the end of the first blocks."""

    def __init__(self) -> None:
        self._n_still = 0
        # None where a block is not watched.
        self._before: list[Tensor] | None = None
        self._versions: list[int] = []
        self._copies: list[Any] = []

    def enter(self, parameters: Mapping[str, Tensor]) -> None:
        """Note the parameters with which a block begins."""
        if self._n_still == N_STILL:
            return
        self._before = [*parameters.values()]
        self._versions = _versions(self._before)
        # Writes through `.data` are not counted, so later blocks need a closer look.
        if self._n_still:
            self._copies = [copy_of(local_part(t)) for t in self._before]

    def leave(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether no parameter has changed in the first blocks, now that the last of them ends."""
        before, self._before = self._before, None
        copies, self._copies = self._copies, []
        if before is None:
            return False
        now = [*parameters.values()]
        is_still = (
            [*map(id, now)] == [*map(id, before)]
            and _versions(now) == self._versions
            and all(map(_is_equal, copies, now))
        )
        self._n_still = self._n_still + 1 if is_still else N_STILL
        return is_still and self._n_still == N_STILL


def _versions(tensors: list[Tensor]) -> list[int]:
    """Return the numbers of counted writes; tensors made in inference mode count none."""
    return [0 if t.is_inference() else t._version for t in tensors]


def _is_equal(copy: Tensor, tensor: Any) -> bool:
    return torch.equal(copy, local_part(tensor).detach())
