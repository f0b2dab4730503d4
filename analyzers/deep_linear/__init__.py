"""Deep linear networks compared with their closed form."""
