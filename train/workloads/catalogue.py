"""Registry of all workloads by name."""

from typing import Final

from train.settings import Training
from train.workloads.alpha_beta import ALPHA_BETA
from train.workloads.alpha_beta_large import ALPHA_BETA_LARGE
from train.workloads.counter_examples import COUNTER_EXAMPLES
from train.workloads.deep_linear import DEEP_LINEAR
from train.workloads.definition import Workload
from train.workloads.digits import DIGITS
from train.workloads.english import ENGLISH
from train.workloads.known import KnownWorkload
from train.workloads.no_wrong_turns import NO_WRONG_TURNS

WORKLOADS: Final[dict[str, Workload]] = {
    **DIGITS,
    **ENGLISH,
    **COUNTER_EXAMPLES,
    **DEEP_LINEAR,
    **NO_WRONG_TURNS,
    **ALPHA_BETA,
    **ALPHA_BETA_LARGE,
}


def known() -> dict[str, KnownWorkload]:
    """Return all workloads without their models and data, as `train.workloads.known` reads."""
    return {
        name: KnownWorkload(workload.summary, workload.settings)
        for name, workload in WORKLOADS.items()
    }


def settings_of(name: str) -> Training:
    """Return the default settings of a workload."""
    return WORKLOADS[name].settings
