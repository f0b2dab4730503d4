"""Where the elements of the parameters lie: all here, or divided among the ranks of a group.

A rank keeps those blocks of the flat vector that its shards reach into, one after the other,
with zeros for the elements of others. Whatever is linear in the vectors, and inner products
are sums of what the ranks find in their own elements: one all-reduce makes them whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trajstore.format.layout import BLOCK, Layout
from trajstore.sketch_torch.fold import Span

GATHERED: Final = 1 << 24
"""Elements that are gathered at once."""


class Piece(NamedTuple):
    """The part of a parameter that a rank holds.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    strides : tuple of int
        Distances of its elements in the flat vector.
    first : int
        Place of its first element in the flat vector.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    @property
    def blocks(self) -> tuple[int, int]:
        """The first of the blocks it reaches into, and the one after the last."""
        reach = sum(
            (n - 1) * by for n, by in zip(self.shape, self.strides, strict=True)
        )
        return self.first // BLOCK, (self.first + reach) // BLOCK + 1


@dataclass(frozen=True, slots=False, eq=False)
class Placement:
    """The part of the flat vector that a rank keeps.

    Attributes
    ----------
    layout : Layout
        Names, shapes and places of the whole tensors.
    pieces : tuple of Piece or None
        What this rank holds of each tensor, None where others count it.
    group : torch.distributed.ProcessGroup or None
        The ranks that hold the tensors together; None if all are here.
    """

    layout: Layout
    pieces: tuple[Piece | None, ...]
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that results are gathered on."""
        return self.group is None or dist.get_rank(self.group) == 0

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        """Numbers of the blocks that are kept here, shape (local block,)."""
        kept = [np.arange(*piece.blocks) for piece in self.pieces if piece is not None]
        return np.concatenate([np.zeros(0, np.int64), *kept])

    @cached_property
    def size(self) -> int:
        """Length of the part of the flat vector that is kept here; never 0."""
        return BLOCK * max(1, len(self._blocks))

    @cached_property
    def layer_of_block(self) -> npt.NDArray[np.int64]:
        """Index of the tensor that every local block belongs to."""
        layers = self.layout.layer_of_block[self._blocks]
        return (
            np.resize(layers, self.size // BLOCK) if len(layers) else np.zeros(1, int)
        )

    @cached_property
    def spans(self) -> list[Span]:
        """The blocks that are kept here, as few spans as there can be."""
        blocks = self._blocks
        starts = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
        stops = np.append(starts[1:], len(blocks))
        return [
            Span(BLOCK * int(blocks[i]), BLOCK * int(i), BLOCK * int(j - i))
            for i, j in zip(starts, stops, strict=True)
        ]

    def held(self, tensors: Sequence[Any]) -> list[Any]:
        """Choose those of some things, one for each tensor, that have a piece here."""
        return [
            tensor
            for tensor, piece in zip(tensors, self.pieces, strict=True)
            if piece is not None
        ]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of the pieces in a vector of shape ``(size,)``."""
        views, start = [], 0
        for piece in self.held(self.pieces):
            first, stop = piece.blocks
            within = piece.first - first * BLOCK
            offset = flat.storage_offset() + start + within
            views.append(flat.as_strided(piece.shape, piece.strides, offset))
            start += (stop - first) * BLOCK
        return views

    def add_up(self, *tensors: Tensor) -> None:
        """Add tensors up over the ranks, in place."""
        if self.group is None:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        sums = flat.split([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view(tensor.shape))

    def agree(self, *, here: bool) -> bool:
        """Return whether something is so on all ranks."""
        if self.group is None:
            return here
        votes = torch.tensor(float(here), device=_device_of(self.group))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.group)
        return bool(votes)

    def largest_of_blocks(self, values: Tensor) -> Tensor:
        """Replace values of local blocks by the largest that a rank has for the block.

        Parameters
        ----------
        values : torch.Tensor
            float32, shape ``(local block,)``, not negative; overwritten.

        Returns
        -------
        torch.Tensor
            Those of all blocks of the flat vector, shape ``(block,)``.
        """
        if self.group is None:
            return values
        blocks = torch.from_numpy(self._blocks).to(values.device)
        whole = values.new_zeros(self.layout.size // BLOCK)
        whole[blocks] = values[: len(blocks)]
        dist.all_reduce(whole, dist.ReduceOp.MAX, group=self.group)
        values[: len(blocks)] = whole[blocks]
        return whole

    def gather(self, vector: Tensor) -> Tensor:
        """Return the whole of a vector on the first rank, in the host's memory.

        Parameters
        ----------
        vector : torch.Tensor
            Shape ``(size,)``, zero where elements belong to others.

        Returns
        -------
        torch.Tensor
            Shape ``(layout.size,)``; the vector itself if all is here, and nothing, shape
            ``(0,)``, on other ranks.
        """
        if self.group is None:
            return vector
        size = self.layout.size if self.is_first else 0
        whole = torch.empty(size, dtype=vector.dtype)
        for start, part in self._parts():
            buffer = vector.new_zeros(part.stop - part.start)
            self._copy(start, buffer, vector, into=buffer)
            dist.reduce(buffer, group_dst=0, group=self.group)
            if self.is_first:
                whole[part] = buffer.cpu()
        return whole

    def spread(self, whole: Tensor, out: Tensor) -> None:
        """Give every rank its part of a vector that the first one has.

        Parameters
        ----------
        whole : torch.Tensor
            Shape ``(layout.size,)`` on the first rank; ignored on others.
        out : torch.Tensor
            Shape ``(size,)``; overwritten.
        """
        if self.group is None:
            out.copy_(whole)
            return
        of_others = torch.ones_like(out, dtype=torch.bool)
        for view in self.views(of_others):
            view.fill_(False)
        for start, part in self._parts():
            buffer = out.new_empty(part.stop - part.start)
            if self.is_first:
                buffer.copy_(whole[part])
            dist.broadcast(buffer, group_src=0, group=self.group)
            self._copy(start, buffer, out, into=out)
        out.masked_fill_(of_others, 0)

    def spread_over_blocks(self, whole: Tensor, out: Tensor) -> None:
        """Give every rank the values of its blocks, which the first one has.

        Parameters
        ----------
        whole : torch.Tensor
            Shape ``(block,)`` on the first rank; ignored on others.
        out : torch.Tensor
            Shape ``(local block,)``; overwritten.
        """
        if self.group is None:
            out.copy_(whole)
            return
        values = out.new_empty(self.layout.size // BLOCK)
        if self.is_first:
            values.copy_(whole)
        dist.broadcast(values, group_src=0, group=self.group)
        blocks = torch.from_numpy(self._blocks).to(out.device)
        out[: len(blocks)] = values[blocks]

    def tell(self, found: Any) -> Any:
        """Return on every rank what the first one has found, small and picklable."""
        if self.group is None:
            return found
        told = [found]
        dist.broadcast_object_list(told, group_src=0, group=self.group)
        return told[0]

    def _parts(self) -> Iterator[tuple[int, slice]]:
        for start in range(0, self.layout.size, GATHERED):
            yield start, slice(start, min(start + GATHERED, self.layout.size))

    def _copy(self, start: int, part: Tensor, vector: Tensor, *, into: Tensor) -> None:
        """Copy between a part of the whole vector and this rank's."""
        for span in self.spans:
            first = max(start, span.start)
            length = min(start + len(part), span.start + span.length) - first
            if length <= 0:
                continue
            of_part = part[first - start : first - start + length]
            local = span.local + first - span.start
            of_vector = vector[local : local + length]
            target, source = (
                (of_part, of_vector) if into is part else (of_vector, of_part)
            )
            target.copy_(source)


def all_here(layout: Layout) -> Placement:
    """Return the placement of tensors that are whole, in one process."""
    pieces = [
        _whole(layout, i) if size > 0 else None for i, size in enumerate(layout.sizes)
    ]
    return Placement(layout, tuple(pieces))


def _whole(layout: Layout, i: int) -> Piece:
    shape = layout.shapes[i]
    return Piece(shape, _strides(shape), int(layout.offsets[i]))


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[k + 1 :]) for k in range(len(shape)))


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is a `torch.distributed.tensor.DTensor`."""
    # To import that class takes half a second.
    is_wrapper: Any = is_traceable_wrapper_subclass
    return bool(is_wrapper(tensor)) and type(tensor).__name__ == "DTensor"


def place(
    parameters: dict[str, Tensor], group: Any
) -> tuple[list[Tensor | None], Placement]:
    """Find out which rank holds what, together with the other ranks.

    Parameters
    ----------
    parameters : dict from str to torch.Tensor
        Those of this rank, ordinary tensors or DTensors.
    group : torch.distributed.ProcessGroup or None
        The ranks that hold the model; None if all of it is here.

    Returns
    -------
    tensors : list of torch.Tensor or None
        Those of this rank, in the order of the layout.
    placement : Placement
        What this rank keeps.

    Raises
    ------
    ValueError
        If ranks disagree on the shape of a parameter.
    """
    if group is None:
        shapes_here = tuple(tuple(p.shape) for p in parameters.values())
        return [*parameters.values()], all_here(Layout(tuple(parameters), shapes_here))
    shapes: dict[str, tuple[int, ...]] = {}
    here = {name: tuple(p.shape) for name, p in parameters.items()}
    for of_rank in _from_all(here, group):
        for name, shape in of_rank.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"Ranks disagree on the shape of {name!r}: {shapes[name]} and {shape}. "
                    "All ranks of the group must hold parts of one model."
                )
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    tensors = [parameters.get(name) for name in layout.names]
    pieces = [_piece(tensor, layout, i) for i, tensor in enumerate(tensors)]
    # Of copies of a piece, that on the first of the ranks counts.
    lower = _from_all(pieces, group)[: dist.get_rank(group)]
    own = [
        None if any(of_rank[i] == piece for of_rank in lower) else piece
        for i, piece in enumerate(pieces)
    ]
    return tensors, Placement(layout, tuple(own), group)


def _from_all(found: Any, group: Any) -> list[Any]:
    """Return what every rank has found."""
    everywhere: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everywhere, found, group=group)
    return everywhere


def _piece(parameter: Any, layout: Layout, i: int) -> Piece | None:
    """Return what lies here of a parameter, None if nothing does."""
    if parameter is None or parameter.numel() == 0:
        return None
    if not is_divided(parameter):
        return _whole(layout, i)
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - half a second

    mesh = parameter.device_mesh
    divisions = list(
        zip(parameter.placements, mesh.shape, mesh.get_coordinate(), strict=True)
    )
    # What FSDP divides after tensor parallelism has is marked as strided, and comes first.
    divisions.sort(key=lambda division: not isinstance(division[0], Shard))
    offset, shape = [0] * parameter.ndim, list(parameter.shape)
    for kind, n, coordinate in divisions:
        if isinstance(kind, Replicate):
            continue
        # As torch.chunk divides.
        length = -(-shape[kind.dim] // n)
        start = min(coordinate * length, shape[kind.dim])
        offset[kind.dim] += start
        shape[kind.dim] = min(length, shape[kind.dim] - start)
    found = tuple(parameter.to_local().shape)
    if found != tuple(shape):
        raise NotImplementedError(
            f"The shard of {layout.names[i]!r} that lies here has the shape {found}, "
            f"expected {tuple(shape)} of {parameter.placements}: it is not divided as "
            "torch.chunk divides, and cannot be recorded."
        )
    if prod(shape) == 0:
        return None
    strides = _strides(parameter.shape)
    first = sum(n * by for n, by in zip(offset, strides, strict=True))
    return Piece(tuple(shape), strides, int(layout.offsets[i]) + first)


def local_part(tensor: Any, like: Any = None) -> Any:
    """Return what lies here of a tensor, sharded as another one is.

    Parameters
    ----------
    tensor : torch.Tensor or None
        May be a DTensor.
    like : torch.Tensor, optional
        The parameter whose gradient it is.

    Returns
    -------
    torch.Tensor or None
        An ordinary tensor.
    """
    if tensor is None or not is_divided(tensor):
        return tensor
    if like is not None and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def _device_of(group: Any) -> torch.device:
    """Return a device that the group's backend can work on."""
    return torch.device("cpu" if dist.get_backend(group) == "gloo" else "cuda")
