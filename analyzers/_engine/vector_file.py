"""A vector that tasks read from a file, so that it is never part of a graph."""

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
    """A float32 vector in a file; called with a slice it reads that part.

    Attributes
    ----------
    path : str
        A file in NumPy's format, mapped into memory where it is read.
    """

    path: str

    def __call__(self, elements: slice) -> npt.NDArray[np.float32]:
        """Read a part."""
        part: Any = np.load(self.path, mmap_mode="r")[elements]
        return np.asarray(part, np.float32)


def write_vector_file(values: npt.NDArray[np.float32]) -> VectorFile:
    """Write a vector into Dask's temporary directory, for as long as the result lives.

    On a cluster of several machines ``dask.config``'s ``temporary-directory`` has to be
    one that all of them see.

    Parameters
    ----------
    values : numpy.ndarray
        float32, one-dimensional.

    Returns
    -------
    VectorFile
        Removes its file when it is collected, in this process only.
    """
    directory = dask.config.get("temporary-directory", None)
    with tempfile.NamedTemporaryFile(
        prefix="trajstore-", suffix=".npy", dir=directory, delete=False
    ) as file:
        np.save(file, values)
    vector = VectorFile(file.name)
    # Copies that were sent elsewhere do not remove it.
    weakref.finalize(vector, Path(file.name).unlink, missing_ok=True)
    return vector
