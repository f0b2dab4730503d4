"""Errors of gamma in recorded training runs, from which plans extrapolate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Optimizer = Literal["sgd", "momentum", "adaptive"]
"""Kinds of optimizers: SGD without and with momentum, and all others."""


class MeanRatios(NamedTuple):
    """Errors of the means of n steps of an epoch, with windows of one epoch."""

    signs: float  # part from signs, relative to that of a step over sqrt(n)
    distance: float  # part from the distance, relative to that of a step


MEAN_RATIOS: Final[Mapping[Optimizer, MeanRatios]] = {
    "sgd": MeanRatios(0.28, 0),
    "momentum": MeanRatios(0.87, 0),
    "adaptive": MeanRatios(0.64, 0.82),
}
"""Measured by ``benchmarks/calibration.py``. The updates of SGD in a window add up to a known
vector, from which distances follow: only the part from signs is left."""

SUM_RATIO: Final = 0.75
"""Error of the mean distance of a window from the sum of its displacements, as a sketch would have
it of the displacements that probes have to tell; 0.6 to 0.9 in three runs of
``benchmarks/calibration.py``."""

END_ERROR_RATIOS: Final = (0.7, 2.7)
"""Range of errors in first and last epochs relative to mid-run (``benchmarks/accuracy.py``)."""

DECAYED_END_RATIOS: Final = (1.3, 33)
"""Range of the standard errors of epoch means in the last fifth of a cosine schedule, relative to mid-run
(``benchmarks/planning_ends.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredErrors:
    """Errors of gamma measured in one run with a constant rate, mid-run."""

    n_steps: int
    epoch: float  # length of an epoch, as a fraction of the run
    shares: tuple[float, ...]  # window lengths as fractions of the run, ascending
    # For each measured basis size: root-mean-square standard error of gamma from signs at each window
    # length, relative to the error of a sketch without weights or basis.
    ratios: Mapping[int, tuple[float, ...]]
    # For each of these sizes, with windows of one epoch and `PROBES` probes: the part of the
    # error that comes from the distance to the target, if probes alone estimate the distance.
    from_distance: Mapping[int, float]


MEASURED_RUNS: Final = {
    "digits ResNet": MeasuredErrors(
        n_steps=550,
        epoch=0.04,
        shares=(0.0054, 0.0109, 0.02, 0.04, 0.08, 0.16),
        ratios={
            0: (0.619, 0.623, 0.635, 0.668, 0.725, 0.786),
            1: (0.349, 0.352, 0.362, 0.388, 0.422, 0.451),
            3: (0.282, 0.281, 0.285, 0.296, 0.315, 0.334),
        },
        from_distance={0: 9.39e-5, 1: 6.49e-5, 3: 5.4e-5},
    ),
    "digits MLP": MeasuredErrors(
        n_steps=550,
        epoch=0.04,
        shares=(0.0054, 0.0109, 0.02, 0.04, 0.08, 0.16),
        ratios={
            0: (0.922, 0.931, 0.951, 0.997, 1.111, 1.243),
            1: (0.802, 0.809, 0.825, 0.865, 0.962, 1.078),
            3: (0.633, 0.539, 0.439, 0.375, 0.378, 0.45),
        },
        from_distance={0: 7.68e-4, 1: 7.11e-4, 3: 2.72e-4},
    ),
    "English transformer": MeasuredErrors(
        n_steps=565,
        epoch=0.2,
        shares=(0.0248, 0.0496, 0.0992, 0.2, 0.4, 0.8),
        ratios={
            0: (0.465, 0.478, 0.508, 0.581, 0.734, 0.581),
            1: (0.443, 0.456, 0.484, 0.557, 0.706, 0.558),
            3: (0.422, 0.43, 0.456, 0.535, 0.687, 0.535),
        },
        from_distance={0: 1.22e-4, 1: 1.23e-4, 3: 1.21e-4},
    ),
    "LSTM": MeasuredErrors(
        n_steps=300,
        epoch=0.0833,
        shares=(0.01, 0.02, 0.04, 0.0833, 0.167, 0.333),
        ratios={3: (0.845, 0.838, 0.85, 0.858, 0.94, 1.056)},
        from_distance={3: 7.48e-4},
    ),
    "heavy tails": MeasuredErrors(
        n_steps=300,
        epoch=0.0667,
        shares=(0.00667, 0.0167, 0.0333, 0.0667, 0.133, 0.267),
        ratios={
            0: (1.047, 1.009, 1.03, 1.047, 1.077, 1.111),
            1: (0.988, 0.977, 0.985, 1.013, 1.015, 1.051),
            3: (0.96, 0.951, 0.962, 0.989, 0.985, 1.023),
        },
        from_distance={0: 0.00066, 1: 0.000608, 3: 0.000533},
    ),
    "GRU": MeasuredErrors(
        n_steps=320,
        epoch=0.125,
        shares=(0.125,),
        ratios={0: (0.92,), 1: (0.866,), 3: (0.781,)},
        from_distance={0: 0.00033, 1: 0.000327, 3: 0.000302},
    ),
    "label noise": MeasuredErrors(
        n_steps=300,
        epoch=0.0833,
        shares=(0.0833,),
        ratios={0: (1.045,), 1: (1.051,), 3: (0.821,)},
        from_distance={0: 0.00189, 1: 0.00188, 3: 0.00168},
    ),
    "ratings": MeasuredErrors(
        n_steps=320,
        epoch=0.125,
        shares=(0.125,),
        ratios={0: (0.065,), 1: (0.064,), 3: (0.063,)},
        from_distance={0: 3.7e-05, 1: 3.7e-05, 3: 3.67e-05},
    ),
    "weight decay": MeasuredErrors(
        n_steps=300,
        epoch=0.0667,
        shares=(0.0667,),
        ratios={0: (1.048,), 1: (0.915,), 3: (0.818,)},
        from_distance={0: 0.000654, 1: 0.000632, 3: 0.000602},
    ),
}
"""Measured by ``benchmarks/planning.py``."""
