"""Conditions on the loss under which gradient methods are known to converge.

`alpha_beta`, `aiming` and `polyak_lojasiewicz` each evaluate one condition along a recorded
path. The package may import `analyzers.geometry` and the layers below it, but no other
topic. `arrays` needs NumPy only, and `plots` draws results without computing any. Begin
with `aiming`, the shortest of the three. The only algorithm is in `arrays`: an exact
intersection of half-planes for `alpha_beta`.
"""
