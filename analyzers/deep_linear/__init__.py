"""Deep linear networks compared with their closed form under gradient flow.

`linear_modes` follows the singular modes of the product of recorded weights and compares
them with the closed form. The package may import `analyzers.geometry` and the layers below
it, but no other topic. `arrays` needs NumPy and SciPy only, and `plots` draws results
without computing any. Begin with `arrays`, which states the model.
"""
