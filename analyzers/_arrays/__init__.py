"""The mathematics of the analyses, on plain arrays."""
