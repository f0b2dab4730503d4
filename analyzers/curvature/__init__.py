"""Curvature of the loss along a path: sharpness, smoothness, convexity, scale invariance.

`edge_of_stability`, `smoothness`, `convexity` and `scale_invariance` are the analyses;
`update_products` supplies the products of updates and gradients that they share. The
package may import `analyzers.geometry` and what lies below it; of the other topics it
knows nothing. `plots` draws results without computing any. Begin reading with
`edge_of_stability`, which needs recorded scalars only, then `update_products`.
"""
