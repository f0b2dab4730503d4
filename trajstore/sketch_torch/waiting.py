"""Tell whether looking at numbers makes the host wait for a device."""

from torch import Tensor


def answers_at_once(vector: Tensor) -> bool:
    """Whether code can read numbers of a vector without waiting for a device."""
    return vector.is_cpu
