"""Curvature of the loss along a path: sharpness, smoothness, convexity, scale invariance.

`edge_of_stability`, `smoothness`, `convexity` and `scale_invariance` are the analyses;
`update_products` supplies products of updates and gradients to them. The package may
import `analyzers.geometry` and the layers below it, but no other topic. `plots` draws
results without computing any. Begin with `edge_of_stability`, which needs only recorded
scalars, and continue with `update_products`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
