"""Keep a vector in a file that tasks read, so that graphs do not contain the vector."""

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
    """A vector in a file; a call with a slice reads that part."""

    path: str  # .npy file, which is mapped into memory for reading

    def __call__(self, elements: slice) -> npt.NDArray[np.floating[Any]]:
        """Read a part of the vector."""
        part: Any = np.load(self.path, mmap_mode="r")[elements]
        return np.array(part)


def write_vector_file(values: npt.NDArray[np.floating[Any]]) -> VectorFile:
    """Write a vector to a temporary file that lasts as long as the returned object."""
    # On a cluster, every machine must see the directory of the file: Dask's setting
    # ``temporary-directory``, or the system's default where that is not set.
    directory = dask.config.get("temporary-directory", None)
    with tempfile.NamedTemporaryFile(
        prefix="trajstore-", suffix=".npy", dir=directory, delete=False
    ) as file:
        np.save(file, values)
    vector = VectorFile(file.name)
    # Only the original object removes the file; copies in other processes do not.
    weakref.finalize(vector, Path(file.name).unlink, missing_ok=True)
    return vector
