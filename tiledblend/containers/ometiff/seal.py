"""Checksums at the very end of an OME-TIFF, behind all that readers of TIFF look at: what `verify` holds it to.

In order: byte length (8 bytes) and CRC-32C (4 bytes) of each part of the file, then the footer: a digest of the job
that made it, how many parts there are, and a checksum of both. The parts cover every byte before: the header, each
tile's part, the directories, and last, packed, what the file was made from (`Origin`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.verify import Mode, VerifyReport
from tiledblend.errors import BadInputError, StorageError, VerificationError

_FOOTER = struct.Struct("<32sQI8s")
_MAGIC = b"tblend-O"
_WITHOUT_ORIGIN = b"tblend-2"
_PART = np.dtype([("size", "<u8"), ("crc", "<u4")])
_READ_BYTES = 1 << 24
_MOST_ORIGIN = 1 << 28


def job_digest(identity: dict[str, Any]) -> bytes:
    """SHA-256 of what decides a file's bytes, plain JSON values: its inputs' names are not to be read in the file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).digest()


def seal(sizes: Sequence[int], checksums: Sequence[int], job: bytes) -> bytes:
    """The last bytes of a file whose parts have these lengths and CRC-32C sums, made by the job of this digest."""
    parts = np.empty(len(sizes), _PART)
    parts["size"], parts["crc"] = sizes, checksums
    table = parts.tobytes()
    return table + _FOOTER.pack(job, len(sizes), checksum([table, job]), _MAGIC)


@dataclass(frozen=True)
class Origin:
    """What a file was made from. layout: as of `TiffLayout.as_dict`. description: the job's mapping, None where a
    script made it. passed: by level, which tiles are an input's own bytes, plane after plane."""

    layout: dict[str, Any]
    description: dict[str, Any] | None
    passed: list[NDArray[np.bool_]]

    def packed(self) -> bytes:
        """As it is stored: not to be read by chance, since it names the inputs."""
        bits = [base64.b64encode(np.packbits(level).tobytes()).decode() for level in self.passed]
        sizes = [level.size for level in self.passed]
        document = {"layout": self.layout, "description": self.description, "passed": bits, "tiles": sizes}
        return zlib.compress(json.dumps(document, sort_keys=True, allow_nan=False).encode(), 6)

    @classmethod
    def of_packed(cls, data: bytes) -> Origin:
        """The inverse of `packed`. Raises ValueError, KeyError, TypeError, zlib.error."""
        document = json.loads(zlib.decompressobj().decompress(data, _MOST_ORIGIN))
        stored = zip(document["passed"], document["tiles"], strict=True)
        passed = [
            np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=size).astype(bool)
            for bits, size in stored
        ]
        return cls(document["layout"], document["description"], passed)


def read_origin(path: str | os.PathLike[str]) -> Origin | None:
    """What a file was made from; None for one that does not say. Raises VerificationError, StorageError."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts = _parts(file.fileno(), size, path)
            file.seek(size - 8)
            if file.read() != _MAGIC:
                return None
            length = int(parts["size"][-1])
            return Origin.of_packed(os.pread(file.fileno(), length, int(parts["size"][:-1].sum())))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise VerificationError(f"{path}: what it says of its inputs is damaged") from error


def part_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, size) of every part of a file, its header's first. Raises VerificationError, OSError."""
    with open(path, "rb") as file:
        sizes = _parts(file.fileno(), os.fstat(file.fileno()).st_size, path)["size"].tolist()
    return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))


def checksum(parts: Sequence[bytes | bytearray]) -> int:
    """CRC-32C of these bytes, one after the other."""
    crc = google_crc32c.Checksum()
    for part in parts:
        crc.update(part)
    return int.from_bytes(crc.digest(), "big")


def stored_checksum(descriptor: int, offset: int, size: int) -> int | None:
    """CRC-32C of a part of an open file; None when the file ends before. Raises OSError."""
    crc, end = google_crc32c.Checksum(), offset + size
    while offset < end:
        data = os.pread(descriptor, min(end - offset, _READ_BYTES), offset)
        if not data:
            return None
        crc.update(data)
        offset += len(data)
    return int.from_bytes(crc.digest(), "big")


def verify_ometiff(path: str | os.PathLike[str], mode: Mode = "full") -> VerifyReport:
    """Check an OME-TIFF that tiledblend wrote against the checksums at its end. fast: its length only.

    Raises BadInputError when there is no such file, VerificationError when it has no checksums, StorageError.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts = _parts(file.fileno(), size, path)
            damaged = tuple(_damaged(file.fileno(), parts)) if mode == "full" else ()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadInputError(f"{path}: no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return VerifyReport(str(path), mode, len(parts), size, 0, True, (), (), damaged, (), (), ())


def stored_job(path: Path) -> bytes | None:
    """The digest of the job that made a file; None where tiledblend made none. Raises StorageError."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _FOOTER.size))
            footer = file.read()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return footer[:32] if len(footer) == _FOOTER.size and footer.endswith((_MAGIC, _WITHOUT_ORIGIN)) else None


def _parts(descriptor: int, size: int, path: Path) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    footer = os.pread(descriptor, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) == _FOOTER.size and footer.endswith((_MAGIC, _WITHOUT_ORIGIN)):
        job, count, crc, _ = _FOOTER.unpack(footer)
        length = count * _PART.itemsize
        table = os.pread(descriptor, length, max(0, size - _FOOTER.size - length)) if length < size else b""
        if checksum([table, job]) == crc and len(table) == length:
            parts = np.frombuffer(table, _PART)
            if int(parts["size"].sum()) + length + _FOOTER.size == size:
                return parts
    raise VerificationError(f"{path}: cut short, changed at its end, or not written by tiledblend: no checksums there")


def _damaged(descriptor: int, parts: np.ndarray[tuple[int], np.dtype[np.void]]) -> Iterator[str]:
    offset = 0
    for size, crc in parts.tolist():
        if stored_checksum(descriptor, offset, size) != crc:
            yield f"bytes {offset} to {offset + size}"
        offset += size
