"""The paper's statements, tested on runs."""

from analyzers.claims.from_runs import findings
from analyzers.claims.verdict import Finding

__all__ = ["Finding", "findings"]
