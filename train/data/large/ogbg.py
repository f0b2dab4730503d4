"""ogbg-molpcba: molecules as graphs, with 128 measured properties.

W. Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020,
arXiv 2005.00687, in its published CSV files, split by scaffold. Edges go both ways.
"""

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from train.data import Splits
from train.data.digits import digits
from train.graphs import Graphs

N_PROPERTIES: Final = 128
N_NODE_FEATURES: Final = 9
N_EDGE_FEATURES: Final = 3

DOWNLOAD_ADVICE: Final = (
    "Download and unpack pcba.zip from ogb.stanford.edu, and pass the directory with raw/ "
    "and split/ as --data-dir; or use --data embedded."
)


class Tables(NamedTuple):
    """The data set as arrays, with the nodes and edges of all graphs end to end."""

    node_features: npt.NDArray[np.float32]
    edge_features: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int64]  # (edge, 2), numbers of nodes within a graph
    first_node: npt.NDArray[np.int64]  # (graph + 1,)
    first_edge: npt.NDArray[np.int64]  # (graph + 1,)
    labels: npt.NDArray[np.float32]  # (graph, 128): 0, 1, or NaN where not measured


def ogbg(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load molecules, or digits as graphs of neighbouring pixels as a stand-in."""
    if data == "embedded":
        train, validation = (PixelGraphs(*part.tensors) for part in digits())
        return Splits(train, validation, N_PROPERTIES)
    root = _root(directory)
    molecules = Molecules(_read(root / "raw"))
    train_indices, validation_indices = (
        _csv(root / "split" / "scaffold" / f"{name}.csv.gz", np.int64)[:, 0].tolist()
        for name in ("train", "valid")
    )
    return Splits(
        Subset(molecules, train_indices),
        Subset(molecules, validation_indices),
        N_PROPERTIES,
    )


class Molecules(Dataset[Any]):
    """Graphs of molecules and their properties, float32 (128,), NaN where not measured."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __len__(self) -> int:
        return len(self._tables.labels)

    def __getitem__(self, index: int) -> tuple[Graphs, Tensor]:
        t = self._tables
        nodes = slice(*t.first_node[index : index + 2])
        edges = slice(*t.first_edge[index : index + 2])
        graph = both_ways(
            torch.from_numpy(t.node_features[nodes]),
            torch.from_numpy(t.edge_features[edges]),
            torch.from_numpy(t.edges[edges]).T,
        )
        return graph, torch.from_numpy(t.labels[index])


class PixelGraphs(Dataset[Any]):
    """Dark pixels of digits, joined to their neighbours; ten properties are measured."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images[:, 0], labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Graphs, Tensor]:
        image = self._images[index]
        number = torch.full((8, 8), -1)
        dark = image > 0
        number[dark] = torch.arange(int(dark.sum()))
        features = torch.zeros(int(dark.sum()), N_NODE_FEATURES)
        features[:, 0] = 16 * image[dark]
        features[:, 1:3] = dark.nonzero()
        right = torch.stack([number[:, :-1].flatten(), number[:, 1:].flatten()])
        down = torch.stack([number[:-1].flatten(), number[1:].flatten()])
        edges = torch.cat([right, down], 1)
        edge_features = F.one_hot(
            torch.tensor([0] * right.shape[1] + [1] * down.shape[1]), N_EDGE_FEATURES
        ).float()
        exists = (edges >= 0).all(0)
        properties = torch.full((N_PROPERTIES,), torch.nan)
        properties[:10] = F.one_hot(self._labels[index], 10).float()
        graph = both_ways(features, edge_features[exists], edges[:, exists])
        return graph, properties


def both_ways(node_features: Tensor, edge_features: Tensor, edges: Tensor) -> Graphs:
    """Return a graph in which every edge also goes back."""
    return Graphs(
        node_features,
        edge_features.repeat(2, 1),
        torch.cat([edges, edges.flip(0)], 1),
        torch.zeros(len(node_features), dtype=torch.int64),
    )


def _read(raw: Path) -> Tables:
    """Read the tables of all molecules."""
    counts = {
        name: _csv(raw / f"num-{name}-list.csv.gz", np.int64)[:, 0]
        for name in ("node", "edge")
    }
    tables = Tables(
        _csv(raw / "node-feat.csv.gz", np.float32),
        _csv(raw / "edge-feat.csv.gz", np.float32),
        _csv(raw / "edge.csv.gz", np.int64),
        np.concatenate([[0], counts["node"].cumsum()]),
        np.concatenate([[0], counts["edge"].cumsum()]),
        _csv(raw / "graph-label.csv.gz", np.float32),
    )
    found = (
        tables.node_features.shape,
        tables.edge_features.shape,
        tables.edges.shape,
        tables.labels.shape,
    )
    n_nodes, n_edges = int(tables.first_node[-1]), int(tables.first_edge[-1])
    expected = (
        (n_nodes, N_NODE_FEATURES),
        (n_edges, N_EDGE_FEATURES),
        (n_edges, 2),
        (len(counts["node"]), N_PROPERTIES),
    )
    if found != expected:
        raise ValueError(
            f"The tables in {raw} do not fit: their shapes are {found}, expected "
            f"{expected}; download them again."
        )
    return tables


def _csv(path: Path, dtype: type) -> npt.NDArray[Any]:
    """Read a table of numbers; empty fields are NaN."""
    try:
        # NumPy reads gzip by the ending of the name.
        return np.loadtxt(
            path,
            delimiter=",",
            dtype=dtype,
            ndmin=2,
            converters=(lambda text: float(text or "nan"))
            if dtype == np.float32
            else None,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"OGBG: {path} is missing. {DOWNLOAD_ADVICE}"
        ) from error


def _root(directory: str | None) -> Path:
    """Return the directory with the folders raw and split."""
    if directory is None:
        raise FileNotFoundError(f"OGBG: no directory was given. {DOWNLOAD_ADVICE}")
    root = Path(directory)
    for folder in (root, root / "pcba", root / "ogbg_molpcba"):
        if (folder / "raw").is_dir():
            return folder
    raise FileNotFoundError(f"OGBG: it is not in {directory}. {DOWNLOAD_ADVICE}")
