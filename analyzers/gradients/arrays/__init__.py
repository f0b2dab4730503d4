"""Array functions of the comparisons between gradients."""
