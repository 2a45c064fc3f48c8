"""The first bytes of files that may hold outlines."""

from __future__ import annotations

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
_BLANKS = b"\xef\xbb\xbf \t\r\n"


def could_be_outlines(head: bytes) -> bool:
    """True when a file of these first bytes may hold outlines: text of JSON or XML, gzip, Parquet.

    >>> could_be_outlines(b' {"type": "Feat'), could_be_outlines(b"II*")
    (True, False)
    """
    return head.startswith((GZIP, PARQUET)) or first_sign(head) in (b"{", b"[", b"<")


def first_sign(text: bytes) -> bytes:
    """The first byte after a byte order mark and blanks; empty when there is none."""
    return text.lstrip(_BLANKS)[:1]
