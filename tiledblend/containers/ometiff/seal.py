"""Checksums at the very end of an OME-TIFF, behind all that readers of TIFF look at: what `verify` holds it to.

In order: byte length (8 bytes) and CRC-32C (4 bytes) of each part of the file, then the footer: a digest of the job
that made it, how many parts there are, and a checksum of both. The parts cover every byte before: the header, each
tile's part, the directories.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tiledblend.containers.verify import Mode, VerifyReport
from tiledblend.errors import BadInputError, StorageError, VerificationError

_FOOTER = struct.Struct("<32sQI8s")
_MAGIC = b"tblend-2"
_PART = np.dtype([("size", "<u8"), ("crc", "<u4")])
_READ_BYTES = 1 << 24


def job_digest(identity: dict[str, Any]) -> bytes:
    """SHA-256 of what decides a file's bytes, plain JSON values: its inputs' names are not to be read in the file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).digest()


def seal(sizes: Sequence[int], checksums: Sequence[int], job: bytes) -> bytes:
    """The last bytes of a file whose parts have these lengths and CRC-32C sums, made by the job of this digest."""
    parts = np.empty(len(sizes), _PART)
    parts["size"], parts["crc"] = sizes, checksums
    table = parts.tobytes()
    return table + _FOOTER.pack(job, len(sizes), checksum([table, job]), _MAGIC)


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
    return footer[:32] if len(footer) == _FOOTER.size and footer.endswith(_MAGIC) else None


def _parts(descriptor: int, size: int, path: Path) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    footer = os.pread(descriptor, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) == _FOOTER.size and footer.endswith(_MAGIC):
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
