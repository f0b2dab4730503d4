"""Deprecated names of public functions."""

from analyzers._renamed import renamed
from analyzers.geometry.theory import step_contraction
from analyzers.gradients.branches import compare_branches

scales = renamed(compare_branches, "analyzers.scales")
step_bound = renamed(step_contraction, "analyzers.step_bound")
