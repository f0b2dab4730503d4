"""Define the specification of a run: everything known when recording begins."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from math import inf, prod
from typing import Any, Final, Self, cast

from trajstore.format.sketch_size import MAX_BITS, SKETCH_VERSION, is_size, sketch_size

SKETCH_BITS: Final = 65536
"""Default number of signs in the sketch of a gradient."""

BASIS: Final = 3
"""Default number of basis vectors, along which gradients are stored exactly."""

PROBES: Final = 1024
"""Default number of fixed random projections."""

MAX_SHARED_EPOCHS: Final = 500
"""Largest number of epochs that share a window."""

FLUSH_ROWS: Final = 1024
"""Number of waiting rows that triggers a flush."""

FLUSH_BYTES: Final = 8 << 20
"""Size of the waiting rows in memory that triggers a flush."""


class SchemaError(ValueError):
    """Metadata that does not describe a valid trajectory.

    Attributes
    ----------
    problems : tuple of str
        All problems found, not only the first.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Specification of a run."""

    names: tuple[str, ...]
    """Names of the recorded parameter tensors."""
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    """Seed of all random signs."""
    sketch_bits: int
    """Number of signs in the sketch of a gradient, a power of two."""
    basis: int
    """Number of basis vectors: the anchor and ``basis - 1`` displacements."""
    probes: int
    """Number of fixed random projections, a power of two."""
    # `trajstore.format.windows.Windows` describes the next three fields. `reference_every` is
    # the user's choice, or cuts the epochs of a run of few epochs.
    steps_per_epoch: int | None
    reference_every: int | None
    total_steps: int | None
    exact: bool
    """Whether whole gradients and displacements are stored instead of sketches."""
    samples: int = 0
    """Largest number of example indices stored per step; older stores lack this field."""
    # `trajstore.format.sketch_size` determines the next two fields; older stores lack them.
    sketch_version: int = 1
    """Arrangement of sketches and probes (`docs/estimator.md`): 2, or 1 in older stores."""
    bits_per_number: int = 1
    """Bits for each number of a sketch, more than 1 only for small networks."""
    window_folds: int = 0
    """Number of folds in the sketch of a window's sum of gradients; 0 if no sums are stored."""
    displacement_sum: bool = False
    """Whether a sketch of the sum of each window's displacements x - r is stored."""
    energies: bool = False
    """Whether the energies of the gradient's blocks are stored, as window means."""
    float64: bool = False
    """Whether rows and parameter vectors are float64, as some of the parameters are."""
    scaled: bool = False
    """Whether products that leave the range of float32 are stored with powers of two."""
    shared_epochs: int = 1
    """Number of epochs that share a window, after the first `windows.OWN_WINDOWS` epochs."""
    window_steps: int | None = None
    """Number of steps in a window, chosen for a run without epochs; None if none was chosen."""
    compressed: bool = False
    """Whether the rows of an exact recording are compressed, so that gaps between tensors take no
    space."""

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(map(prod, self.shapes))

    @property
    def float_type(self) -> str:
        """Type of measured values and of parameter vectors: float32 or float64."""
        return "float64" if self.float64 else "float32"

    @property
    def sketch_numbers(self) -> int:
        """Number of numbers in the sketch of a gradient, a power of two."""
        return self.sketch_bits // self.bits_per_number

    @property
    def is_packed(self) -> bool:
        """Whether a sketch has a number for every parameter, so that nothing is folded."""
        return self.sketch_version > 1 and self.n_params <= self.sketch_numbers

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Build a spec from decoded JSON; a `SchemaError` lists all problems."""
        if problems := validate_spec(document):
            raise SchemaError(problems)
        return cls.from_valid_json(cast("Mapping[str, Any]", document))

    @classmethod
    def from_valid_json(cls, document: Mapping[str, Any]) -> Self:
        """Build a spec from decoded JSON in which `validate_spec` finds no problem."""
        shapes = tuple(map(tuple, document["shapes"]))
        return cls(**{**document, "names": tuple(document["names"]), "shapes": shapes})

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable description, the inverse of `from_json`."""
        shapes = [list(shape) for shape in self.shapes]
        return {**asdict(self), "names": list(self.names), "shapes": shapes}


def validate_spec(document: object) -> list[str]:
    """Return what makes decoded JSON an invalid spec, each as ``"key: problem"``."""
    if not isinstance(document, Mapping):
        return [f"spec: expected an object, got {document!r}"]
    problems = [f"{key}: missing" for key in _REQUIRED if key not in document]
    problems += [f"{key}: unknown" for key in document if key not in _RULES]
    problems += [
        f"{key}: expected {expected}, got {document[key]!r}"
        for key, (is_valid, expected) in _RULES.items()
        if key in document and not is_valid(document[key])
    ]
    if not problems and len(document["names"]) != len(document["shapes"]):
        problems.append(
            f"shapes: expected one shape for each of the {len(document['names'])} names, got "
            f"{len(document['shapes'])}"
        )
    return problems or _window_problems(document) or _sketch_problems(document)


def _window_problems(document: Mapping[str, Any]) -> list[str]:
    """Return what no recorder would choose in the lengths of windows."""
    n_epochs, n_steps = document.get("shared_epochs", 1), document.get("window_steps")
    is_free = document["reference_every"] is None
    has_epochs = document["steps_per_epoch"] is not None
    problems = []
    if n_epochs != 1 and not (is_free and has_epochs):
        problems.append(f"shared_epochs: expected 1 for these windows, got {n_epochs}")
    most = document["total_steps"] if is_free and not has_epochs else None
    if n_steps is not None and n_steps > (most or 0):
        expected = f"at most {most}, or None" if most else "None for these windows"
        problems.append(f"window_steps: expected {expected}, got {n_steps}")
    return problems


def _sketch_problems(document: Mapping[str, Any]) -> list[str]:
    """Return what no recorder would choose in the size of the sketch."""
    given = {name: document.get(name, 1) for name in ("bits_per_number", "sketch_bits")}
    expected = {"bits_per_number": 1, "sketch_bits": given["sketch_bits"]}
    if document.get("sketch_version", 1) > 1:
        n_params = sum(map(prod, document["shapes"]))
        expected = sketch_size(n_params, given["sketch_bits"])
    sums = ("energies", "window_folds", "displacement_sum")
    if document.get("float64") and any(map(document.get, sums)):
        return [f"float64: expected false for a run with {' or '.join(sums)}"]
    if document.get("compressed") and not document["exact"]:
        return ["compressed: expected false for a run that is not exact"]
    if document.get("float64") and document.get("scaled"):
        return ["scaled: expected false for a run in float64"]
    return [
        f"{name}: expected {expected[name]} for these shapes, got {given[name]}"
        for name in given
        if given[name] != expected[name]
    ]


def is_names(value: object) -> bool:
    """Whether decoded JSON is a list of different strings."""
    return (
        isinstance(value, (list, tuple))
        and set(map(type, value)) <= {str}
        and len(set(value)) == len(value)
    )


def _is_int(value: object, least: int, most: float = inf) -> bool:
    # isinstance would accept true, because bool is a subclass of int.
    return type(value) is int and least <= value <= most


def _is_version(value: object) -> bool:
    return _is_int(value, 1, SKETCH_VERSION)


def _is_bits(value: object) -> bool:
    return _is_int(value, 1, MAX_BITS) and not value & (value - 1)  # type: ignore[operator]


def _is_seed(value: object) -> bool:
    return _is_int(value, 0, (1 << 64) - 1)


def _is_natural(value: object) -> bool:
    return _is_int(value, 0)


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_int(value, 1)


def _is_shared(value: object) -> bool:
    return _is_int(value, 1, MAX_SHARED_EPOCHS)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_nonempty_names(value: object) -> bool:
    return is_names(value) and bool(value)


def _is_shapes(value: object) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    for shape in value:
        if not isinstance(shape, (list, tuple)) or not set(map(type, shape)) <= {int}:
            return False
        if min(shape, default=0) < 0 or prod(shape) >= 1 << 40:
            return False
    return True


_COUNT_OR_NONE: Final = (_is_count_or_none, "an integer of at least 1, or None")
_SIZE: Final = (is_size, "a power of two from 8 to 2**24")

_RULES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "names": (_is_nonempty_names, "a list of different strings"),
    "shapes": (_is_shapes, "a list of lists of integers"),
    "seed": (_is_seed, "an integer from 0 to 2**64 - 1"),
    "sketch_bits": _SIZE,
    "basis": (_is_natural, "an integer of at least 0"),
    "probes": _SIZE,
    "steps_per_epoch": _COUNT_OR_NONE,
    "reference_every": _COUNT_OR_NONE,
    "total_steps": _COUNT_OR_NONE,
    "exact": (_is_bool, "true or false"),
    "samples": (_is_natural, "an integer of at least 0"),
    "sketch_version": (_is_version, f"an integer from 1 to {SKETCH_VERSION}"),
    "bits_per_number": (_is_bits, f"a power of two from 1 to {MAX_BITS}"),
    "window_folds": (_is_natural, "an integer of at least 0"),
    "displacement_sum": (_is_bool, "true or false"),
    "energies": (_is_bool, "true or false"),
    "float64": (_is_bool, "true or false"),
    "scaled": (_is_bool, "true or false"),
    "shared_epochs": (_is_shared, f"an integer from 1 to {MAX_SHARED_EPOCHS}"),
    "window_steps": _COUNT_OR_NONE,
    "compressed": (_is_bool, "true or false"),
}

_REQUIRED: Final = [field.name for field in fields(RunSpec) if field.default is MISSING]
