from .ngn import NGN
from .normalized_sgd import NormalizedSGD
from .sps_max import SPSmax

__all__ = ["NGN", "NormalizedSGD", "SPSmax"]
