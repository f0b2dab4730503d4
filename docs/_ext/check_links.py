"""Check that the internal links of the built site lead somewhere."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Page(NamedTuple):
    """The anchors and the links of a page."""

    anchors: set[str]
    links: list[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.page.anchors.add(value)
            if name in {"href", "src"} and value:
                self.page.links.append(value)


def read_page(path: Path) -> Page:
    """Read the anchors and links of an HTML file."""
    reader = _Reader()
    reader.feed(path.read_text())
    return reader.page


def broken_links(site: Path) -> list[str]:
    """Return the internal links without a target, each with its page."""
    site = site.resolve()
    pages = {path: read_page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            if not parts.path:
                target = path
            if target.is_dir():
                target /= "index.html"
            exists = target.exists() and target.is_relative_to(site)
            fragment = unquote(parts.fragment)
            if exists and fragment and target in pages:
                exists = fragment in pages[target].anchors
            if not exists:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


if __name__ == "__main__":
    found = broken_links(Path(sys.argv[1]))
    print("\n".join(found) or "All internal links have a target.")
    sys.exit(bool(found))
