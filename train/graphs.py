"""Batches of graphs of different sizes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """One or several graphs, whose nodes and edges are joined end to end."""

    node_features: Tensor  # (node, 9)
    edge_features: Tensor  # (edge, 3)
    edges: Tensor  # int64 (2, edge): the nodes at which edges begin and end
    graph_of_node: Tensor  # int64 (node,), ascending from 0
    n_graphs: int = 1

    def __len__(self) -> int:
        return self.n_graphs

    def to(self, device: Any) -> "Graphs":
        """Return the graphs on a device."""
        return Graphs(
            self.node_features.to(device),
            self.edge_features.to(device),
            self.edges.to(device),
            self.graph_of_node.to(device),
            self.n_graphs,
        )


def join(graphs: list[Graphs], **_: Any) -> Graphs:
    """Join graphs to a batch."""
    node_counts = [len(graph.node_features) for graph in graphs]
    first_nodes = torch.tensor([0, *node_counts[:-1]]).cumsum(0).tolist()
    return Graphs(
        torch.cat([graph.node_features for graph in graphs]),
        torch.cat([graph.edge_features for graph in graphs]),
        torch.cat(
            [g.edges + first for g, first in zip(graphs, first_nodes, strict=True)], 1
        ),
        torch.repeat_interleave(torch.tensor(node_counts)),
        len(graphs),
    )


# Data loaders join graphs as they stack tensors; torch documents this table for this purpose.
default_collate_fn_map[Graphs] = join
