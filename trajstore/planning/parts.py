"""Parts of the errors of gamma in recorded training runs, from which plans extrapolate."""

from dataclasses import dataclass
from typing import Final

from trajstore.planning.measured import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts of the error of gamma, mid-run, with default options and windows of one epoch."""

    optimizer: Optimizer
    share: float  # length of windows, as a fraction of the run
    # Error from the sketch, relative to a sketch without weights or basis, and without the growth
    # that a decaying rate causes.
    signs: float
    mean_signs: (
        float  # of epoch means, relative to that of a step over the root of their steps
    )
    # With SGD, what the rounded ends of windows leave of the error from signs in a mean, relative to
    # ends whose elements are normal numbers.
    ends: float
    has_sum: bool  # whether the sum of a window's gradients is known
    # Error from the distance over its growth within windows: that of the distance, or with SGD that
    # of the ends.
    distance: float
    mean_distance: float  # of epoch means, relative to that of a step
    mean_distance_alone: float  # the same if the sum of displacements is not known


PARTS: Final = {
    "mlp5k": Parts(
        optimizer="sgd",
        share=0.0667,
        signs=0.82,
        mean_signs=0.158,
        distance=0.00137,
        mean_distance=0.9,
        mean_distance_alone=0.9,
        ends=0.23,
        has_sum=True,
    ),
    "mlp13k": Parts(
        optimizer="sgd",
        share=0.0667,
        signs=0.839,
        mean_signs=0.173,
        distance=0.00159,
        mean_distance=0.894,
        mean_distance_alone=0.894,
        ends=1.3,
        has_sum=True,
    ),
    "mlp82k": Parts(
        optimizer="sgd",
        share=0.0667,
        signs=0.95,
        mean_signs=0.19,
        distance=0.00151,
        mean_distance=0.898,
        mean_distance_alone=0.898,
        ends=1.9,
        has_sum=True,
    ),
    "LSTM": Parts(
        optimizer="sgd",
        share=0.0833,
        signs=0.835,
        mean_signs=0.0889,
        distance=0.00117,
        mean_distance=0.96,
        mean_distance_alone=0.96,
        ends=1.68,
        has_sum=True,
    ),
    "label noise": Parts(
        optimizer="sgd",
        share=0.0833,
        signs=0.804,
        mean_signs=0.219,
        distance=0.00393,
        mean_distance=0.863,
        mean_distance_alone=0.863,
        ends=2.41,
        has_sum=True,
    ),
    "heavy tails": Parts(
        optimizer="momentum",
        share=0.0667,
        signs=0.958,
        mean_signs=0.67,
        distance=0.00123,
        mean_distance=0.688,
        mean_distance_alone=0.688,
        ends=0.789,
        has_sum=True,
    ),
    "momentum": Parts(
        optimizer="momentum",
        share=0.0833,
        signs=0.975,
        mean_signs=0.422,
        distance=0.00128,
        mean_distance=0.829,
        mean_distance_alone=0.829,
        ends=0.487,
        has_sum=True,
    ),
    "residual": Parts(
        optimizer="momentum",
        share=0.125,
        signs=1.14,
        mean_signs=0.901,
        distance=0.00148,
        mean_distance=0.552,
        mean_distance_alone=0.552,
        ends=0.0,
        has_sum=True,
    ),
    "cnn": Parts(
        optimizer="momentum",
        share=0.0667,
        signs=1.0,
        mean_signs=0.904,
        distance=0.00107,
        mean_distance=0.734,
        mean_distance_alone=0.734,
        ends=0.0,
        has_sum=True,
    ),
    "GRU": Parts(
        optimizer="adaptive",
        share=0.125,
        signs=0.793,
        mean_signs=1.0,
        distance=0.000303,
        mean_distance=0.163,
        mean_distance_alone=0.782,
        ends=0.0,
        has_sum=False,
    ),
    "ratings": Parts(
        optimizer="adaptive",
        share=0.125,
        signs=0.0687,
        mean_signs=1.0,
        distance=4.52e-05,
        mean_distance=0.135,
        mean_distance_alone=0.592,
        ends=0.0,
        has_sum=False,
    ),
    "convolutions, NAdam": Parts(
        optimizer="adaptive",
        share=0.125,
        signs=0.513,
        mean_signs=1.0,
        distance=0.000384,
        mean_distance=0.135,
        mean_distance_alone=0.592,
        ends=0.0,
        has_sum=False,
    ),
    "mlp86k, Adam": Parts(
        optimizer="adaptive",
        share=0.125,
        signs=0.723,
        mean_signs=0.659,
        distance=0.000423,
        mean_distance=0.179,
        mean_distance_alone=0.723,
        ends=0.0,
        has_sum=True,
    ),
    "vision transformer": Parts(
        optimizer="adaptive",
        share=0.125,
        signs=0.701,
        mean_signs=1.0,
        distance=0.00034,
        mean_distance=0.176,
        mean_distance_alone=0.74,
        ends=0.0,
        has_sum=False,
    ),
    "transformer": Parts(
        optimizer="adaptive",
        share=0.167,
        signs=0.907,
        mean_signs=0.429,
        distance=0.000461,
        mean_distance=0.145,
        mean_distance_alone=0.722,
        ends=0.0,
        has_sum=True,
    ),
    "vocabulary": Parts(
        optimizer="adaptive",
        share=0.0833,
        signs=0.092,
        mean_signs=0.663,
        distance=1.83e-05,
        mean_distance=0.173,
        mean_distance_alone=0.693,
        ends=0.0,
        has_sum=True,
    ),
}
"""Measured by ``benchmarks/planning_parts.py``."""
