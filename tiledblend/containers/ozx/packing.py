"""Files into one zip archive: stored, ZIP64 throughout, documents first (RFC-9, "OME-Zarr zip files").

The same members give the same bytes: no time is kept. Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from tiledblend.bytes.objects import write_fully
from tiledblend.errors import StorageError

PIECE_BYTES = 1 << 22
_WIDE, _VERSION, _UNIX = 0xFFFFFFFF, 45, 3
_DATE = 0x21  # 1980-01-01, the first day that the format knows
_MODE = 0o100644 << 16


class Packer:
    """A zip archive that grows in a file. Used by one thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at = descriptor, 0
        self._central: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        """A member of these bytes."""
        self._begin(name, len(data), zlib.crc32(data))
        self._write(data)

    def add_file(self, name: str, source: int, size: int, check: Callable[[], None]) -> None:
        """A member of a file's `size` bytes. check: asked between pieces whether the run may go on.

        Raises StorageError when the file is shorter.
        """
        start, crc = self._at, 0
        # Its checksum stands before it and is known after it.
        self._write(bytes(len(_local(name, size, 0))))
        offset = 0
        while offset < size:
            piece = os.pread(source, min(PIECE_BYTES, size - offset), offset)
            if not piece:
                raise StorageError(f"{name} has {offset} of {size} bytes; run again with --resume")
            crc = zlib.crc32(piece, crc)
            self._write(piece)
            offset += len(piece)
            check()
        os.pwrite(self._descriptor, _local(name, size, crc), start)
        self._central.append(_entry(name, size, crc, start))

    def finish(self, comment: dict[str, Any]) -> None:
        """Write the directory; nothing can be added any more."""
        start, directory = self._at, b"".join(self._central)
        text = json.dumps(comment).encode()
        count, size = len(self._central), len(directory)
        versions = _VERSION | _UNIX << 8, _VERSION
        end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, *versions, 0, 0, count, count, size, start)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _WIDE, _WIDE, len(text))
        self._write(directory + end64 + locator + end + text)

    def _begin(self, name: str, size: int, crc: int) -> None:
        self._central.append(_entry(name, size, crc, self._at))
        self._write(_local(name, size, crc))

    def _write(self, data: bytes) -> None:
        write_fully(self._descriptor, [data])
        self._at += len(data)


def comment_of(version: str) -> dict[str, Any]:
    """What an archive says of itself: the OME-Zarr version, and that its documents come first."""
    return {"ome": {"version": version, "zipFile": {"centralDirectory": {"jsonFirst": True}}}}


def documents_first(documents: Iterable[str]) -> list[str]:
    """Breadth first: the root's, then those of its members.

    >>> documents_first(["1/zarr.json", "zarr.json", "0/zarr.json"])
    ['zarr.json', '0/zarr.json', '1/zarr.json']
    """
    return sorted(documents, key=lambda name: (name.count("/"), [_order(part) for part in name.split("/")]))


def _order(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)


def _local(name: str, size: int, crc: int) -> bytes:
    text, extra = name.encode(), struct.pack("<2H2Q", 1, 16, size, size)
    fields = _VERSION, 0, 0, 0, _DATE, crc, _WIDE, _WIDE, len(text), len(extra)
    return struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + text + extra


def _entry(name: str, size: int, crc: int, start: int) -> bytes:
    text, extra = name.encode(), struct.pack("<2H3Q", 1, 24, size, size, start)
    versions, sizes = (_VERSION | _UNIX << 8, _VERSION), (_WIDE, _WIDE, len(text), len(extra), 0)
    fields = *versions, 0, 0, 0, _DATE, crc, *sizes, 0, 0, _MODE, _WIDE
    return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields) + text + extra
