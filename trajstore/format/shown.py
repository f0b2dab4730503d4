"""Show names from stores as plain text.

A store may come from an untrusted source, and names of its parameters, scalars, measurements and
snapshots may hold anything: sequences that control a terminal, characters that reverse the text
after them, or halves of characters that cannot be encoded.
"""


def shown(text: str, *, keep: str = "") -> str:
    r"""Return text with escapes such as ``\x1b`` for characters that are not printable."""
    # Characters in `keep`, such as line breaks of a message, stay.
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
