"""The paper's statements, tested on runs."""

from analyzers.no_wrong_turns.claims.from_runs import findings
from analyzers.no_wrong_turns.claims.verdict import Finding

__all__ = ["Finding", "findings"]
