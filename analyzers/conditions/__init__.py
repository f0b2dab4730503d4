"""Conditions on the loss under which gradient methods are known to converge.

`alpha_beta`, `aiming` and `polyak_lojasiewicz` each evaluate one condition along a recorded
path. The package may import `analyzers.geometry` and what lies below it; of the other
topics it knows nothing. `arrays` needs NumPy only, and `plots` draws results without
computing any. Begin reading with `aiming`, the shortest of the three; `arrays` holds the
one algorithm, an exact intersection of half-planes for `alpha_beta`.
"""
