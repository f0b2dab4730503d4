"""Results of the golden cases as arrays in one file."""

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
"""What the cases returned.

``description`` is JSON as bytes: the variables of every case. For each dtype there is one
array: the values of these variables, one after the other. ``arithmetic`` is what the
function of that name returned.
"""


def description(result: xr.Dataset) -> dict[str, Any]:
    """Return everything of a result but its numbers, as JSON has it."""
    return {
        str(name): _describe(result, str(name))
        for name in sorted(map(str, result.variables))
    }


def _describe(result: xr.Dataset, name: str) -> dict[str, Any]:
    variable = result.variables[name]
    found: dict[str, Any] = {
        "kind": "coordinate" if name in result.coords else "variable",
        "dims": list(variable.dims),
        "shape": list(variable.shape),
        "dtype": "text" if variable.dtype.kind in "OUT" else variable.dtype.name,
        "units": variable.attrs.get("units"),
    }
    if found["dtype"] == "text":
        found["text"] = variable.values.tolist()
    return found


def numbers(result: xr.Dataset) -> dict[str, Array]:
    """Return the numbers of a result, by variable."""
    return {
        name: result.variables[name].values
        for name, found in description(result).items()
        if found["dtype"] != "text"
    }


def arithmetic() -> str:
    """Return a digest of how this processor rounds.

    BLAS and NumPy choose their kernels by the processor; sums differ in their order, and
    functions in the last digit.
    """
    matrix = np.random.default_rng(0).standard_normal((65, 4096)).astype(np.float32)
    angles = np.linspace(-3, 3, 1000)
    # No product of two matrices: its rounding depends on the number of threads.
    results = [
        *(matrix @ matrix[0], matrix[0] @ matrix[1], matrix.sum(1)),
        *(np.exp(angles), np.log(angles + 4), np.cos(angles)),
        *(angles @ angles[::-1], np.linalg.svd(matrix[:5, :8].astype(np.float64))[1]),
    ]
    return sha256(b"".join(np.asarray(x).tobytes() for x in results)).hexdigest()


def keep(results: Mapping[str, xr.Dataset]) -> None:
    """Write what the cases have returned."""
    descriptions, pieces = {}, defaultdict[str, list[Array]](list)
    for case, result in results.items():
        descriptions[case] = description(result)
        for values in numbers(result).values():
            pieces[values.dtype.name].append(values.reshape(-1))
    text = json.dumps(descriptions).encode()
    joined: dict[str, Any] = {k: np.concatenate(v) for k, v in pieces.items()}
    np.savez_compressed(
        RESULTS,
        description=np.frombuffer(text, np.uint8),
        arithmetic=np.array(arithmetic()),
        **joined,
    )


def is_same_arithmetic() -> bool:
    """Whether this processor rounds like the one that recorded."""
    with np.load(RESULTS) as stored:
        return str(stored["arithmetic"]) == arithmetic()


class Kept(NamedTuple):
    """What a case had returned.

    Attributes
    ----------
    description : dict
        As `description` returns it.
    numbers : dict from str to numpy.ndarray
        As `numbers` returns them.
    """

    description: dict[str, Any]
    numbers: dict[str, Array]


def kept_results() -> dict[str, Kept]:
    """Read what the cases had returned."""
    with np.load(RESULTS) as stored:
        left = dict(stored)
    text = left.pop("description").tobytes()
    left.pop("arithmetic")
    results = {}
    for case, variables in json.loads(text).items():
        values = {}
        for name, found in variables.items():
            if found["dtype"] != "text":
                n = int(np.prod(found["shape"]))
                flat = left[found["dtype"]]
                values[name] = flat[:n].reshape(found["shape"])
                left[found["dtype"]] = flat[n:]
        results[case] = Kept(variables, values)
    return results
