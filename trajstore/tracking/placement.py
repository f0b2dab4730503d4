"""Describe where the parameters are: all in this process, or sharded over a group of ranks.

A rank keeps the blocks of the flat vector that contain elements of its shards, one block after
another; elements of other ranks are zero. Linear functions and inner products of such vectors are
sums over the ranks, so one all-reduce completes them.
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
from trajstore.tracking.reduction import Reduction

Integers = npt.NDArray[np.int64]

GATHER_CHUNK: Final = 1 << 24
"""Number of elements to gather in one batch."""


class Piece(NamedTuple):
    """The part of a parameter that a rank holds."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # strides of the part in the flat vector, in elements
    first: int  # index of the first element in the flat vector

    def runs(self) -> tuple[Integers, int]:
        """Return the first elements of runs of neighbours in the flat vector, and their length."""
        n_outer, n = self._n_outer()
        return self.first + _offsets(self.shape[:n_outer], self.strides[:n_outer]), n

    def kept(self, *, with_gaps: bool = False) -> tuple[Integers, tuple[int, ...]]:
        """Return the blocks that a rank keeps for the piece, and the strides of the piece in them."""
        # Blocks between runs are left out if all runs lie in their blocks in the same way.
        n_outer, n = self._n_outer()
        starts, _ = self.runs()
        blocks = np.arange(starts[0] // BLOCK, (starts[-1] + n - 1) // BLOCK + 1)
        pitch = self.strides[n_outer - 1] if n_outer else 0
        per_run = int((starts[0] + n - 1) // BLOCK - blocks[0] + 1)
        if with_gaps or pitch % BLOCK or per_run * BLOCK >= pitch:
            return blocks, self.strides
        blocks = np.add.outer(starts // BLOCK, np.arange(per_run)).reshape(-1)
        strides = [BLOCK * per_run * by for by in _strides(self.shape[:n_outer])]
        return blocks, (*strides, *self.strides[n_outer:])

    def _n_outer(self) -> tuple[int, int]:
        """Return the number of dimensions whose neighbours are not adjacent, and a run's length."""
        n_outer, n = len(self.shape), 1
        while n_outer and n in {self.strides[n_outer - 1], n * self.shape[n_outer - 1]}:
            n_outer -= 1
            n *= self.shape[n_outer]
        return n_outer, n


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> Integers:
    """Return the offset of each element of an array, in row-major order."""
    offsets = np.zeros(1, np.int64)
    for size, by in zip(shape, strides, strict=True):
        offsets = np.add.outer(offsets, by * np.arange(size)).reshape(-1)
    return offsets


@dataclass(frozen=True, slots=False, eq=False)
class Placement:
    """The part of the flat vector that a rank keeps."""

    layout: Layout  # layout of the whole tensors
    # One piece per layer; None if this rank has no piece of the layer, or if a lower rank has a
    # copy of the piece.
    pieces: tuple[Piece | None, ...]
    group: Any = None  # process group that shares the tensors; None without sharding
    # Whether all blocks between the elements of a piece are kept, so that spans are few.
    with_gaps: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that results are gathered on."""
        return self.group is None or dist.get_rank(self.group) == 0

    @cached_property
    def kept(self) -> list[tuple[Integers, tuple[int, ...]]]:
        """The blocks that are kept for each piece on this rank, and its strides in them."""
        pieces = [piece for piece in self.pieces if piece is not None]
        return [piece.kept(with_gaps=self.with_gaps) for piece in pieces]

    @cached_property
    def _blocks(self) -> Integers:
        """Indexes of the blocks that this rank keeps, int64 (local block,)."""
        return np.concatenate([np.zeros(0, np.int64), *(b for b, _ in self.kept)])

    @cached_property
    def size(self) -> int:
        """Length of the part of the flat vector that this rank keeps; never 0."""
        return BLOCK * max(1, len(self._blocks))

    @cached_property
    def layer_of_block(self) -> npt.NDArray[np.int64]:
        """Index of the layer of each local block, (local block,)."""
        layers = self.layout.layer_of_block[self._blocks]
        return (
            np.resize(layers, self.size // BLOCK) if len(layers) else np.zeros(1, int)
        )

    @cached_property
    def spans(self) -> list[Span]:
        """The blocks that this rank keeps, in as few spans as possible."""
        blocks = self._blocks
        starts = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
        stops = np.append(starts[1:], len(blocks))
        return [
            Span(BLOCK * int(blocks[i]), BLOCK * int(i), BLOCK * int(j - i))
            for i, j in zip(starts, stops, strict=True)
        ]

    def local(self, by_layer: Sequence[Any]) -> list[Any]:
        """Return the items of the layers that have a piece on this rank."""
        return [
            item
            for item, piece in zip(by_layer, self.pieces, strict=True)
            if piece is not None
        ]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the pieces as views of a vector (size,)."""
        views, start = [], flat.storage_offset()
        for piece, (blocks, strides) in zip(
            self.local(self.pieces), self.kept, strict=True
        ):
            within = piece.first - int(blocks[0]) * BLOCK
            views.append(flat.as_strided(piece.shape, strides, start + within))
            start += len(blocks) * BLOCK
        return views

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over the ranks."""
        if self.group is None:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        sums = flat.split([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view(tensor.shape))

    def start_reduction(
        self, *tensors: Tensor, large: Tensor | None = None
    ) -> Reduction:
        """Begin to sum tensors over the ranks; `finish` replaces those of the first rank."""
        return Reduction(tensors, large, self.group)

    def all_agree(self, *, here: bool) -> bool:
        """Return whether a condition holds on all ranks."""
        if self.group is None:
            return here
        votes = torch.tensor(float(here), device=_device_of(self.group))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.group)
        return bool(votes)

    def block_max(self, values: Tensor) -> Tensor:
        """Replace values of local blocks, float32 (local block,), by their maxima over ranks."""
        # No value may be negative, because missing blocks count as 0. Returns the maxima for all
        # blocks, (block,).
        if self.group is None:
            return values
        blocks = torch.from_numpy(self._blocks).to(values.device)
        whole = values.new_zeros(self.layout.size // BLOCK)
        whole[blocks] = values[: len(blocks)]
        dist.all_reduce(whole, dist.ReduceOp.MAX, group=self.group)
        values[: len(blocks)] = whole[blocks]
        return whole

    def block_sum(self, values: Tensor) -> Tensor:
        """Return the sums over ranks of values of local blocks, float32 (block,)."""
        if self.group is None:
            return values
        blocks = torch.from_numpy(self._blocks).to(values.device)
        whole = values.new_zeros(self.layout.size // BLOCK)
        whole[blocks] = values[: len(blocks)]
        dist.all_reduce(whole, group=self.group)
        return whole

    def gather(self, vector: Tensor) -> Tensor:
        """Return the whole vector, (layout.size,), in the first rank's host memory."""
        # Elements of other ranks are zero in `vector`, (size,). Without sharding, `vector` itself
        # is returned. Ranks other than the first get an empty vector.
        if self.group is None:
            return vector
        size = self.layout.size if self.is_first else 0
        whole = torch.empty(size, dtype=vector.dtype)
        for start, part in self._parts():
            buffer = vector.new_zeros(part.stop - part.start)
            self._copy(start, buffer, vector, target=buffer)
            dist.reduce(buffer, group_dst=0, group=self.group)
            if self.is_first:
                whole[part] = buffer.cpu()
        return whole

    def scatter(self, whole: Tensor, out: Tensor) -> None:
        """Copy this rank's part of the first rank's vector, (layout.size,), to `out`."""
        if self.group is None:
            out.copy_(whole)
            return
        is_on_other_rank = torch.ones_like(out, dtype=torch.bool)
        for view in self.views(is_on_other_rank):
            view.fill_(False)
        for start, part in self._parts():
            buffer = out.new_empty(part.stop - part.start)
            if self.is_first:
                buffer.copy_(whole[part])
            dist.broadcast(buffer, group_src=0, group=self.group)
            self._copy(start, buffer, out, target=out)
        out.masked_fill_(is_on_other_rank, 0)

    def scatter_blocks(self, whole: Tensor, out: Tensor) -> None:
        """Copy this rank's part of the first rank's block values, (block,), to `out`."""
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
        """Return the first rank's value, which must be small and picklable, on every rank."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.group)
        return values[0]

    def copy_from_first(self, tensor: Tensor) -> None:
        """Copy the first rank's values of a tensor to the other ranks."""
        if self.group is not None:
            dist.broadcast(tensor, group_src=0, group=self.group)

    def _parts(self) -> Iterator[tuple[int, slice]]:
        for start in range(0, self.layout.size, GATHER_CHUNK):
            yield start, slice(start, min(start + GATHER_CHUNK, self.layout.size))

    def _copy(
        self, start: int, part: Tensor, vector: Tensor, *, target: Tensor
    ) -> None:
        """Copy between a part of the whole vector and this rank's vector, into `target`."""
        stop = start + len(part)
        first, last = np.searchsorted(self._blocks, [start // BLOCK, stop // BLOCK])
        of_vector = vector[first * BLOCK : last * BLOCK].view(-1, BLOCK)
        of_part, blocks = (
            part.view(-1, BLOCK),
            self._blocks[first:last] - start // BLOCK,
        )
        index = torch.from_numpy(blocks).to(part.device)
        if target is part:
            of_part[index] = of_vector
        else:
            of_vector.copy_(of_part[index])


def unsharded(layout: Layout) -> Placement:
    """Return the placement of whole tensors in one process."""
    pieces = [
        _whole_piece(layout, i) if size > 0 else None
        for i, size in enumerate(layout.sizes)
    ]
    return Placement(layout, tuple(pieces))


def _whole_piece(layout: Layout, i: int) -> Piece:
    shape = layout.shapes[i]
    return Piece(shape, _strides(shape), int(layout.offsets[i]))


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[k + 1 :]) for k in range(len(shape)))


def is_divided(tensor: Tensor) -> bool:
    """Return whether a tensor is a `torch.distributed.tensor.DTensor`."""
    # Importing that class for an isinstance test would take half a second.
    is_wrapper: Any = is_traceable_wrapper_subclass
    return type(tensor).__name__ == "DTensor" and bool(is_wrapper(tensor))


def place(
    parameters: dict[str, Tensor], group: Any
) -> tuple[list[Tensor | None], Placement]:
    """Return this rank's tensors, one per layer, and their placement."""
    # A collective call over `group`. The parameters are ordinary tensors or DTensors.
    if group is None:
        whole_shapes = tuple(tuple(p.shape) for p in parameters.values())
        return [*parameters.values()], unsharded(
            Layout(tuple(parameters), whole_shapes)
        )
    shapes: dict[str, tuple[int, ...]] = {}
    own_shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    for rank_shapes in _gather_objects(own_shapes, group):
        for name, shape in rank_shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"Ranks disagree on the shape of {name!r}: {shapes[name]} and {shape}. "
                    "All ranks of the group must hold parts of one model."
                )
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    tensors = [parameters.get(name) for name in layout.names]
    pieces = [_piece(tensor, layout, i) for i, tensor in enumerate(tensors)]
    # If several ranks have copies of a piece, the copy on the lowest rank counts.
    lower_ranks = _gather_objects(pieces, group)[: dist.get_rank(group)]
    own = [
        None if any(rank_pieces[i] == piece for rank_pieces in lower_ranks) else piece
        for i, piece in enumerate(pieces)
    ]
    is_on_cpu = all(t.device.type == "cpu" for t in tensors if t is not None)
    return tensors, Placement(layout, tuple(own), group, with_gaps=not is_on_cpu)


def _gather_objects(value: Any, group: Any) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _piece(parameter: Any, layout: Layout, i: int) -> Piece | None:
    """Return the piece of a parameter on this rank, or None if the rank has no elements."""
    if parameter is None or parameter.numel() == 0:
        return None
    if not is_divided(parameter):
        return _whole_piece(layout, i)
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - half a second

    mesh = parameter.device_mesh
    divisions = list(
        zip(parameter.placements, mesh.shape, mesh.get_coordinate(), strict=True)
    )
    # If FSDP divides the shards of tensor parallelism, FSDP's placement comes first and is not a
    # `Shard`, but a strided shard. The division by tensor parallelism must be applied first.
    divisions.sort(key=lambda division: not isinstance(division[0], Shard))
    offset, shape = [0] * parameter.ndim, list(parameter.shape)
    for kind, n, coordinate in divisions:
        if isinstance(kind, Replicate):
            continue
        # torch.chunk divides in this way.
        length = -(-shape[kind.dim] // n)
        start = min(coordinate * length, shape[kind.dim])
        offset[kind.dim] += start
        shape[kind.dim] = min(length, shape[kind.dim] - start)
    local_shape = tuple(parameter.to_local().shape)
    if local_shape != tuple(shape):
        raise NotImplementedError(
            f"The shard of {layout.names[i]!r} on this rank has the shape {local_shape}, "
            f"expected {tuple(shape)} for {parameter.placements}: only tensors that are "
            "divided like torch.chunk divides them can be recorded."
        )
    if prod(shape) == 0:
        return None
    strides = _strides(parameter.shape)
    first = sum(n * by for n, by in zip(offset, strides, strict=True))
    return Piece(tuple(shape), strides, int(layout.offsets[i]) + first)


def local_part(tensor: Any, like: Any = None) -> Any:
    """Return this rank's part of a tensor; if `like` is given, shard the tensor like it first."""
    if tensor is None or not is_divided(tensor):
        return tensor
    if like is not None and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def _device_of(group: Any) -> torch.device:
    """Return a device that the communication backend of a group supports."""
    return torch.device("cpu" if dist.get_backend(group) == "gloo" else "cuda")
