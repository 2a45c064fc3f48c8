"""BigTIFF's own bytes: header, values and directories (IFDs), little-endian. No pixels and no files.

The format is TIFF 6.0 with 8-byte offsets: a directory is a count, entries of 20 bytes in the order of their tags, and
the next directory's offset.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

HEADER_BYTES = 16
FIRST_POINTER = 8
"""Where in the header the first directory's offset stands; 0 there is a file without an image."""
Kind = Literal["ascii", "undefined", "short", "long", "rational", "long8", "ifd8"]
_KINDS = {
    "ascii": (2, "<u1"),
    "undefined": (7, "<u1"),
    "short": (3, "<u2"),
    "long": (4, "<u4"),
    "rational": (5, "<u4"),
    "long8": (16, "<u8"),
    "ifd8": (18, "<u8"),
}


def header(first: int = 0) -> bytes:
    """The file's first bytes. first: offset of the first directory."""
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, first)


def rational(value: float) -> tuple[int, int]:
    """The nearest fraction of two 32-bit numbers.

    >>> rational(0.25)
    (1, 4)
    """
    nearest = Fraction(value).limit_denominator(max(1, int((2**32 - 1) / max(value, 1.0))))
    return nearest.numerator, nearest.denominator


class Value(NamedTuple):
    """A tag's value as its entry holds it. field: 8 bytes, the value itself or its offset."""

    kind: int
    length: int
    field: bytes


class Tail:
    """What follows the tiles of a file: values and directories, each with the offset that it will have.

    >>> tail = Tail(16)
    >>> tail.directory({256: tail.value("long", [7])})
    16
    >>> len(tail.data())
    40
    """

    def __init__(self, end: int) -> None:
        # Directories and values begin at even offsets (TIFF 6.0); 8 suits memory maps.
        self.start = -(-end // 8) * 8
        self._parts = [bytes(self.start - end)]
        self._end = self.start

    def data(self) -> bytes:
        """All bytes, from the end of the tiles on."""
        return b"".join(self._parts)

    def value(self, kind: Kind, values: Sequence[Any] | Any) -> Value:
        """A tag's value; what does not fit into its entry is placed here. Entries may share one."""
        code, dtype = _KINDS[kind]
        if kind == "ascii":
            data, count = bytes(values) + b"\0", len(values) + 1
        else:
            flat = np.asarray(values, dtype).ravel()
            data, count = flat.tobytes(), flat.size // (2 if kind == "rational" else 1)
        if len(data) <= 8:
            return Value(code, count, data.ljust(8, b"\0"))
        return Value(code, count, struct.pack("<Q", self._add(data)))

    def directory(self, tags: Mapping[int, Value], following: int = 0) -> int:
        """Place a directory; returns its offset. following: offset of the next one."""
        entries = [struct.pack("<HHQ8s", tag, *tags[tag]) for tag in sorted(tags)]
        return self._add(struct.pack("<Q", len(entries)) + b"".join(entries) + struct.pack("<Q", following))

    def _add(self, data: bytes) -> int:
        offset = self._end
        padding = bytes(-len(data) % 8)
        self._parts += [data, padding]
        self._end += len(data) + len(padding)
        return offset
