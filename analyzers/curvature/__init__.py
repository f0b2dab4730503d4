"""Smoothness, convexity, sharpness, the edge of stability and scale invariance."""
