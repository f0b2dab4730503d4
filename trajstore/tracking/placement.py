"""Placement of the parameters: all in this process, or sharded over the ranks of a group.

A rank keeps the blocks of the flat vector that its shards reach into, one after the other,
with zeros for the elements of other ranks. Linear functions of the vectors and inner products
are sums over the ranks: one all-reduce completes them.
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

GATHER_CHUNK: Final = 1 << 24
"""Elements to gather at once."""


class Piece(NamedTuple):
    """The part of a parameter that a rank holds."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # distances of its elements in the flat vector
    first: int  # place of its first element in the flat vector

    @property
    def blocks(self) -> tuple[int, int]:
        """Range of the blocks it reaches into: the first, and the one after the last."""
        reach = sum(
            (n - 1) * by for n, by in zip(self.shape, self.strides, strict=True)
        )
        return self.first // BLOCK, (self.first + reach) // BLOCK + 1


@dataclass(frozen=True, slots=False, eq=False)
class Placement:
    """The part of the flat vector that a rank keeps."""

    layout: Layout  # of the whole tensors
    pieces: tuple[Piece | None, ...]  # for each layer; None where other ranks count it
    group: Any = None  # ranks that hold the tensors together; None if all are here

    @property
    def is_first(self) -> bool:
        """Whether results are gathered on this rank."""
        return self.group is None or dist.get_rank(self.group) == 0

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        """Numbers of the blocks that are kept here, int64 (local block,)."""
        kept = [np.arange(*piece.blocks) for piece in self.pieces if piece is not None]
        return np.concatenate([np.zeros(0, np.int64), *kept])

    @cached_property
    def size(self) -> int:
        """Length of the part of the flat vector that is kept here; never 0."""
        return BLOCK * max(1, len(self._blocks))

    @cached_property
    def layer_of_block(self) -> npt.NDArray[np.int64]:
        """Index of the layer that every local block belongs to, (local block,)."""
        layers = self.layout.layer_of_block[self._blocks]
        return (
            np.resize(layers, self.size // BLOCK) if len(layers) else np.zeros(1, int)
        )

    @cached_property
    def spans(self) -> list[Span]:
        """The blocks that are kept here, in as few spans as possible."""
        blocks = self._blocks
        starts = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
        stops = np.append(starts[1:], len(blocks))
        return [
            Span(BLOCK * int(blocks[i]), BLOCK * int(i), BLOCK * int(j - i))
            for i, j in zip(starts, stops, strict=True)
        ]

    def local(self, by_layer: Sequence[Any]) -> list[Any]:
        """Select the items, one for each layer, of the layers that have a piece here."""
        return [
            item
            for item, piece in zip(by_layer, self.pieces, strict=True)
            if piece is not None
        ]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of the pieces in a vector (size,)."""
        views, start = [], 0
        for piece in self.local(self.pieces):
            first, stop = piece.blocks
            within = piece.first - first * BLOCK
            offset = flat.storage_offset() + start + within
            views.append(flat.as_strided(piece.shape, piece.strides, offset))
            start += (stop - first) * BLOCK
        return views

    def all_reduce(self, *tensors: Tensor) -> None:
        """Sum tensors over the ranks, in place."""
        if self.group is None:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        sums = flat.split([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view(tensor.shape))

    def all_agree(self, *, here: bool) -> bool:
        """Whether a condition holds on all ranks."""
        if self.group is None:
            return here
        votes = torch.tensor(float(here), device=_device_of(self.group))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.group)
        return bool(votes)

    def block_max(self, values: Tensor) -> Tensor:
        """Set values of local blocks, float32 (local block,), to their maximum over ranks."""
        # Values are not negative. The maxima of all blocks, (block,), are returned.
        if self.group is None:
            return values
        blocks = torch.from_numpy(self._blocks).to(values.device)
        whole = values.new_zeros(self.layout.size // BLOCK)
        whole[blocks] = values[: len(blocks)]
        dist.all_reduce(whole, dist.ReduceOp.MAX, group=self.group)
        values[: len(blocks)] = whole[blocks]
        return whole

    def gather(self, vector: Tensor) -> Tensor:
        """Return the whole vector, (layout.size,), in the first rank's host memory."""
        # Elements of other ranks are zero in `vector`, (size,). If all is here it is
        # returned itself; ranks other than the first get an empty one.
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

    def scatter(self, whole: Tensor, out: Tensor) -> None:
        """Copy each rank's part of the first rank's vector, (layout.size,), to `out`."""
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

    def scatter_blocks(self, whole: Tensor, out: Tensor) -> None:
        """Copy each rank's part of the first rank's values, (block,), to `out`."""
        if self.group is None:
            out.copy_(whole)
            return
        values = out.new_empty(self.layout.size // BLOCK)
        if self.is_first:
            values.copy_(whole)
        dist.broadcast(values, group_src=0, group=self.group)
        blocks = torch.from_numpy(self._blocks).to(out.device)
        out[: len(blocks)] = values[blocks]

    def broadcast(self, value: Any) -> Any:
        """Return the first rank's value, small and picklable, on every rank."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.group)
        return values[0]

    def _parts(self) -> Iterator[tuple[int, slice]]:
        for start in range(0, self.layout.size, GATHER_CHUNK):
            yield start, slice(start, min(start + GATHER_CHUNK, self.layout.size))

    def _copy(self, start: int, part: Tensor, vector: Tensor, *, into: Tensor) -> None:
        """Copy between a part of the whole vector and this rank's vector."""
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


def unsharded(layout: Layout) -> Placement:
    """Return the placement of whole tensors in one process."""
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
    """Return this rank's tensors, by layer, and their placement; collective over `group`."""
    # `parameters` of this rank are ordinary tensors or DTensors.
    if group is None:
        shapes_here = tuple(tuple(p.shape) for p in parameters.values())
        return [*parameters.values()], unsharded(Layout(tuple(parameters), shapes_here))
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
    # If a piece has copies, the one on the lowest rank counts.
    lower = _from_all(pieces, group)[: dist.get_rank(group)]
    own = [
        None if any(of_rank[i] == piece for of_rank in lower) else piece
        for i, piece in enumerate(pieces)
    ]
    return tensors, Placement(layout, tuple(own), group)


def _from_all(value: Any, group: Any) -> list[Any]:
    """Return the values of all ranks."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _piece(parameter: Any, layout: Layout, i: int) -> Piece | None:
    """Return the piece of a parameter on this rank, None if there is none."""
    if parameter is None or parameter.numel() == 0:
        return None
    if not is_divided(parameter):
        return _whole(layout, i)
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - half a second

    mesh = parameter.device_mesh
    divisions = list(
        zip(parameter.placements, mesh.shape, mesh.get_coordinate(), strict=True)
    )
    # Where FSDP divides shards of tensor parallelism, its placement is marked as strided and
    # comes first.
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
    """Return this rank's part of a tensor, sharded like its parameter if that is given."""
    if tensor is None or not is_divided(tensor):
        return tensor
    if like is not None and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def _device_of(group: Any) -> torch.device:
    """Return a device that the group's communication backend works on."""
    return torch.device("cpu" if dist.get_backend(group) == "gloo" else "cuda")
