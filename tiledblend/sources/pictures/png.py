"""PNG's own checksums, looked at before a decoder that only warns of some of them. PNG specification, section 5."""

from __future__ import annotations

import zlib


def check_png(data: bytes) -> None:
    """Raise ValueError unless every chunk up to IEND is whole and has its CRC."""
    at = 8
    view = memoryview(data)
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        kind = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"damaged PNG: checksum of its chunk {kind!r} at byte {at}")
        if kind == b"IEND":
            return
        at = end + 4
    raise ValueError(f"truncated PNG: no end in its {len(data)} bytes")
