"""Define keys of a run's attrs and names of measurements for training and analysis.

`train` writes them and `analyzers` reads them; neither imports the other. The strings
are part of the format: if a string changes, analyses can no longer read older stores.
"""

from collections.abc import Mapping
from typing import Any, Final

TRAINING: Final = "training"
"""Key of ``run.attrs`` for the settings of the training run, by name."""

BRANCH: Final = "branch"
"""Key of ``run.attrs`` for the origin of a run that branched off another one."""

DATA: Final = "data"
"""Key of ``run.attrs`` for a note on the data set."""

FULL_BATCH: Final = "full_batch"
"""Name of the measurement of full-batch gradients, and of the setting to train with them."""

SAME_BATCH: Final = "same_batch"
"""Name of the measurement of gradients on a step's own batch, made after the step."""

FIXED_BATCHES: Final = "fixed_batches"
"""Name of the measurement of gradients on batches that stay the same during training."""

UPDATE: Final = "update"
"""Name of the measurement of updates, which ``Recorder(..., updates=True)`` makes."""

OPTIMIZERS: Final = (
    "sgd",
    "momentum",
    "adam",
    "adamw",
    "nadamw",
    "nsgd",
    "spsmax",
    "ngn",
    "sign-sgd",
    "lion",
    "muon",
    "soap",
)
"""Values of the setting ``optimizer``, in the order in which figures show them."""

DECOUPLED_DECAY: Final = ("adamw", "nadamw", "sign-sgd", "lion", "muon", "soap")
"""Optimizers whose weight decay shrinks parameters and leaves gradients as they are."""

MOMENTUM: Final = 0.9
"""Momentum coefficient of the optimizer ``"momentum"``."""

CONTROLS: Final = (
    "none",
    "random-labels",
    "label-noise",
    "noise-gradients",
    "random-walk",
)
"""Values of the setting ``control``, from memorisable labels to pure noise."""

ENVIRONMENT_SETTINGS: Final = ("data_dir", "device", "num_workers")
"""Settings that may differ between the parts of a resumed run."""

NON_ESSENTIAL_SETTINGS: Final = (
    *ENVIRONMENT_SETTINGS,
    "full_gradients",
    "kernel_every",
    "kernel_examples",
    "measure_every",
    "n_eigenvalues",
    "record_samples",
    "same_batch_every",
    "sharpness_every",
    "sharpness_examples",
)
"""Settings of the recording and the machine; they do not change the parameters."""

LINES: Final = "losses-towards"
PLANE: Final = "losses-on-plane"
"""Groups of results: losses on lines to a target, and on the plane of a path."""


def training_settings(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the training settings in a run's attrs, empty if it has none."""
    settings: Mapping[str, Any] = attrs.get(TRAINING, {})
    return settings


def uses_all_data(attrs: Mapping[str, Any]) -> bool:
    """Return whether a run's attrs say that every step uses all data."""
    # The settings of traj-train say so, or ``Recorder(attrs={"full_batch": True})``.
    settings: Any = attrs.get(TRAINING)
    said = settings.get(FULL_BATCH) if isinstance(settings, Mapping) else None
    return said is True or attrs.get(FULL_BATCH) is True
