"""Follow the tensors that the optimizers hold while their groups change."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from trajstore.tracking.backends.memory import check_tensor

Named = Callable[[], Mapping[str, Tensor]]


class Change(NamedTuple):
    """What has changed in the groups of the optimizers."""

    tensors: list[Tensor | None]
    """The tensors to follow, one per layer; None if a layer is not on this rank."""
    idle: list[int]
    """Layers whose tensors no optimizer holds; the optimizers do not use their gradients."""
    n_added: int
    """Number of tensors that are held for the first time, and belong to no layer."""


class HeldTensors:
    """The recorded tensors, as the optimizers hold them."""

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor | None],
        optimizers: Sequence[Optimizer],
        named: Named,
    ) -> None:
        self._names, self._tensors, self._optimizers = names, list(tensors), optimizers
        self.named = named
        """Returns the current tensors of the model by name."""
        self._order = self._held()
        self.ids = [*map(id, self._order)]
        """`id` of every tensor that the optimizers held at the last call of `change`."""
        self._seen = {*self.ids, *(id(t) for t in tensors if t is not None)}
        # Keeps the numbers in `_seen` from being used for new tensors.
        self._strangers: list[Tensor] = []

    def idle(self) -> list[int]:
        """Return the layers whose tensors no optimizer holds, if there are optimizers."""
        held = {*self.ids}
        return [
            i
            for i, t in enumerate(self._tensors)
            if self._optimizers and t is not None and id(t) not in held
        ]

    def change(self) -> Change | None:
        """Return what has changed since the last call; None if nothing has."""
        held = self._held()
        ids = [*map(id, held)]
        if ids == self.ids:
            return None
        before, self._order, self.ids = self._order, held, ids
        if not held:
            # The user empties the groups for a moment, or ends the training.
            return Change(self._tensors, [*range(len(self._names))], 0)
        now, recorded = {*ids}, {id(t) for t in self._tensors if t is not None}
        known, current = now & recorded, self.named()
        for i, old in enumerate(self._tensors):
            if old is None or id(old) in now:
                continue
            new = current.get(self._names[i])
            if new is None or id(new) not in now or id(new) in known:
                new = _at_the_place_of(old, before, held)
            if new is not None and id(new) not in known | recorded:
                check_tensor(new, self._names[i], old.shape)
                self._tensors[i] = new
                known.add(id(new))
        added = [t for t in held if id(t) not in known | self._seen]
        self._seen |= now
        self._strangers += held
        return Change(list(self._tensors), self.idle(), len(added))

    def replace(self, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Record other tensors, by name, and return the tensors of all layers."""
        for i, old in enumerate(self._tensors):
            new = tensors.get(self._names[i], old)
            if new is not None and old is not None:
                check_tensor(new, self._names[i], old.shape)
            self._tensors[i] = new
        return list(self._tensors)

    def _held(self) -> list[Tensor]:
        return [
            p
            for o in self._optimizers
            for group in o.param_groups
            for p in group["params"]
        ]


def _at_the_place_of(
    old: Tensor, before: Sequence[Tensor], held: Sequence[Tensor]
) -> Tensor | None:
    """Return the tensor that has taken the place of another one in the groups, if any."""
    if len(before) != len(held):
        return None
    places = [new for was, new in zip(before, held, strict=True) if was is old]
    return places[0] if places and places[0].shape == old.shape else None
