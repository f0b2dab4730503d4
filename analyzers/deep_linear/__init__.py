"""Deep linear networks compared with their closed form under gradient flow.

`linear_modes` follows the singular modes of a product of recorded weights and sets them
against the closed form. The package may import `analyzers.geometry` and what lies below
it; of the other topics it knows nothing. `arrays` needs NumPy and SciPy only, and `plots`
draws results without computing any. Begin reading with `arrays`, which states the model.
"""
