"""Compare chunks with the checks of a store, also after the store has grown."""

from dataclasses import dataclass, field

from trajstore.format.document import Document
from trajstore.format.run_spec import SchemaError
from trajstore.reading.version import replacement, version_of
from trajstore.store.chunks import CheckedStore, ChunkChecks, open_checks
from trajstore.store.opening import open_checked


@dataclass(eq=False)
class LiveChecks:
    """The checks of a store's chunks, as of the newest commit that a reader has seen."""

    location: str
    store: CheckedStore
    document: Document  # opened, or newer
    _of: dict[str, ChunkChecks] = field(default_factory=dict)

    def of(self, path: str) -> ChunkChecks | None:
        """Return the checks of an array, None if the store has none."""
        if path not in self._of and (stored := self.document.checks.of(path)):
            self._of[path] = open_checks(self.store, path, stored)
        return self._of.get(path)

    def renew(self) -> bool:
        """Take the checks of a newer commit, if there is one; refuse a resumed recording."""
        try:
            newest = open_checked(self.location).document
        except (SchemaError, FileNotFoundError):
            return False
        version = version_of(self.document, is_written=False)
        if problem := replacement(newest, version):
            raise ValueError(
                f"{self.location} has changed since it was opened: {problem}. Open the run "
                "again, and repeat the computations."
            )
        if newest.checksum == self.document.checksum:
            return False
        self.document, self._of = newest, {}
        return True
