"""Keep the results of the golden cases as arrays in one file."""

import json
from collections import defaultdict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[Any]

RESULTS: Final = Path(__file__).with_name("results.npz")
"""The file of the results.

Its array ``description`` is JSON as bytes, and describes the variables of every case. For
each dtype, one array holds the values of these variables, one variable after another.
``arithmetic`` is the digest that the function of that name returned.
"""


def description(result: xr.Dataset) -> dict[str, Any]:
    """Return everything in a result except its numbers, as a JSON object."""
    return {
        str(name): _describe(result, str(name))
        for name in sorted(map(str, result.variables))
    }


def _describe(result: xr.Dataset, name: str) -> dict[str, Any]:
    variable = result.variables[name]
    described: dict[str, Any] = {
        "kind": "coordinate" if name in result.coords else "variable",
        "dims": list(variable.dims),
        "shape": list(variable.shape),
        "dtype": "text" if variable.dtype.kind in "OUT" else variable.dtype.name,
        "units": variable.attrs.get("units"),
    }
    if described["dtype"] == "text":
        described["text"] = variable.values.tolist()
    return described


def numbers(result: xr.Dataset) -> dict[str, Array]:
    """Return the numbers in a result by variable."""
    return {
        name: result.variables[name].values
        for name, described in description(result).items()
        if described["dtype"] != "text"
    }


def arithmetic() -> str:
    """Return a digest of results that depend on the rounding of this processor.

    BLAS and NumPy choose kernels for the processor, so the order of sums and the last digit
    of functions differ between processors.
    """
    matrix = np.random.default_rng(0).standard_normal((65, 4096)).astype(np.float32)
    angles = np.linspace(-3, 3, 1000)
    # Products of two matrices are left out: their rounding depends on the number of threads.
    results = [
        *(matrix @ matrix[0], matrix[0] @ matrix[1], matrix.sum(1)),
        *(np.exp(angles), np.log(angles + 4), np.cos(angles)),
        *(angles @ angles[::-1], np.linalg.svd(matrix[:5, :8].astype(np.float64))[1]),
    ]
    return sha256(b"".join(np.asarray(x).tobytes() for x in results)).hexdigest()


def keep(results: Mapping[str, xr.Dataset], path: Path = RESULTS) -> None:
    """Write the results of the cases to a file."""
    descriptions, pieces = {}, defaultdict[str, list[Array]](list)
    for case, result in results.items():
        descriptions[case] = description(result)
        for values in numbers(result).values():
            pieces[values.dtype.name].append(values.reshape(-1))
    text = json.dumps(descriptions).encode()
    joined: dict[str, Any] = {k: np.concatenate(v) for k, v in pieces.items()}
    np.savez_compressed(
        path,
        description=np.frombuffer(text, np.uint8),
        arithmetic=np.array(arithmetic()),
        **joined,
    )


def is_same_arithmetic(path: Path = RESULTS) -> bool:
    """Return whether this processor rounds like the processor that recorded the results."""
    with np.load(path) as stored:
        return str(stored["arithmetic"]) == arithmetic()


class Kept(NamedTuple):
    """The kept result of a case.

    Attributes
    ----------
    description : dict
        The description of the result, from `description`.
    numbers : dict from str to numpy.ndarray
        The numbers in the result by variable, from `numbers`.
    """

    description: dict[str, Any]
    numbers: dict[str, Array]


def kept_results(path: Path = RESULTS) -> dict[str, Kept]:
    """Read the results of all cases from a file."""
    with np.load(path) as stored:
        remaining = dict(stored)
    text = remaining.pop("description").tobytes()
    remaining.pop("arithmetic")
    results = {}
    for case, variables in json.loads(text).items():
        values = {}
        for name, described in variables.items():
            dtype, shape = described["dtype"], described["shape"]
            if dtype != "text":
                n = int(np.prod(shape))
                values[name] = remaining[dtype][:n].reshape(shape)
                remaining[dtype] = remaining[dtype][n:]
        results[case] = Kept(variables, values)
    return results
