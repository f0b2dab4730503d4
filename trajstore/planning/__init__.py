"""Predict the size and the errors of a recording."""
