"""Keep a vector in a file that tasks read, so that it never becomes part of a graph."""

import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=False)
class VectorFile:
    """A float32 vector in a file; called with a slice it reads that part."""

    path: str  # in NumPy's format, mapped into memory where it is read

    def __call__(self, elements: slice) -> npt.NDArray[np.float32]:
        """Read a part of the vector."""
        part: Any = np.load(self.path, mmap_mode="r")[elements]
        return np.asarray(part, np.float32)


def write_vector_file(values: npt.NDArray[np.float32]) -> VectorFile:
    """Write a vector to Dask's temporary directory for as long as the result lives."""
    # On a cluster of several machines all of them must see the directory, which
    # ``dask.config`` sets as ``temporary-directory``.
    directory = dask.config.get("temporary-directory", None)
    with tempfile.NamedTemporaryFile(
        prefix="trajstore-", suffix=".npy", dir=directory, delete=False
    ) as file:
        np.save(file, values)
    vector = VectorFile(file.name)
    # Only the original object in this process removes the file, not its copies elsewhere.
    weakref.finalize(vector, Path(file.name).unlink, missing_ok=True)
    return vector
