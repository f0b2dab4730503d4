"""Graph network for properties of molecules.

P. Battaglia et al., "Relational inductive biases, deep learning, and graph networks", 2018,
arXiv 1806.01261, algorithm 1. Sizes follow the workload OGBG of the AlgoPerf benchmark (G.
Dahl et al., 2023, arXiv 2306.07179), in which a node also receives the edges that it sends.
"""

from typing import Final

import torch
from torch import Tensor, nn

from train.graphs import Graphs

WIDTH: Final = 256
N_ROUNDS: Final = 5
"""Rounds of messages."""

DROPOUT: Final = 0.1


class Round(nn.Module):
    """Updates edges, then nodes, then one vector for each graph."""

    def __init__(self, n_edge: int, n_node: int, n_graph: int, width: int) -> None:
        super().__init__()
        self.edge = _layer(n_edge + 2 * n_node + n_graph, width)
        self.node = _layer(n_node + 2 * width + n_graph, width)
        self.graph = _layer(2 * width + n_graph, width)

    def forward(
        self, graphs: Graphs, nodes: Tensor, edges: Tensor, whole: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new vectors of nodes, edges and graphs."""
        senders, receivers = graphs.edges
        of_node, of_edge = graphs.graph_of_node, graphs.graph_of_node[senders]
        edges = self.edge(
            torch.cat([edges, nodes[senders], nodes[receivers], whole[of_edge]], 1)
        )
        sent, received = (_sums(edges, ends, len(nodes)) for ends in graphs.edges)
        nodes = self.node(torch.cat([nodes, sent, received, whole[of_node]], 1))
        sums = (
            _sums(x, i, len(whole)) for x, i in ((nodes, of_node), (edges, of_edge))
        )
        return nodes, edges, self.graph(torch.cat([*sums, whole], 1))


class GraphNetwork(nn.Module):
    """Predicts properties of whole graphs after rounds of messages along their edges."""

    def __init__(self, n_outputs: int, *, width: int, n_rounds: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.node = nn.Linear(9, width)
        self.edge = nn.Linear(3, width)
        self.rounds = nn.ModuleList(
            Round(width, width, width if i else n_outputs, width)
            for i in range(n_rounds)
        )
        self.head = nn.Linear(width, n_outputs)

    def forward(self, graphs: Graphs) -> Tensor:
        """Map N graphs to logits (N, n_outputs)."""
        nodes = self.node(graphs.node_features.float())
        edges = self.edge(graphs.edge_features.float())
        whole = nodes.new_zeros(len(graphs), self.n_outputs)
        for layer in self.rounds:
            nodes, edges, whole = layer(graphs, nodes, edges, whole)
        logits: Tensor = self.head(whole)
        return logits


def _layer(n_in: int, n_out: int) -> nn.Sequential:
    """Return a linear layer with normalisation, ReLU and dropout."""
    return nn.Sequential(
        nn.Linear(n_in, n_out),
        nn.LayerNorm(n_out, eps=1e-6),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
    )


def _sums(rows: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Add up the rows of each group, shape (n_groups, ...)."""
    return rows.new_zeros(n_groups, *rows.shape[1:]).index_add(0, group, rows)


def graph_network(n_outputs: int = 128) -> GraphNetwork:
    """Return a graph network of five rounds: 3,554,176 parameters with 128 outputs."""
    return GraphNetwork(n_outputs, width=WIDTH, n_rounds=N_ROUNDS)
