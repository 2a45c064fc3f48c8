"""Members of a zip archive by name, read where they lie: an OME-Zarr in one file (.ozx, OME-NGFF's RFC-9).

A member has a path of its own, the archive's with "!/" and its name: `/data/x.ozx!/0/zarr.json`. What is stored is read
by range; what is deflated (RFC-9 advises against it) is unpacked whole. Format: PKWARE APPNOTE 6.3.10, 4.3 and 4.5.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tiledblend.bytes.ranges import ByteReader, identity_of, open_bytes
from tiledblend.errors import BadInputError

MARK = "!/"
MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
SUFFIXES = (".ozx", ".zip")
"""What an archive's address on a server ends with; files of this machine are known by their content."""
MAX_MEMBERS, MAX_DIRECTORY_BYTES = 4_000_000, 1 << 29
KEPT = 8
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_WIDE = 0xFFFFFFFF
STORED, DEFLATED = 0, 8


class Member(NamedTuple):
    """offset: of the local header. packed, size: bytes as stored, and unpacked. method: 0 stored, 8 deflated."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int


def split_member(path: str) -> tuple[str, str] | None:
    """(archive, name inside) of a member's path or of a folder in an archive; None for any other path.

    >>> split_member("s3://slides/x.ozx!/0/zarr.json")
    ('s3://slides/x.ozx', '0/zarr.json')
    """
    archive, mark, name = path.partition(MARK)
    if not mark:
        return None
    is_archive = archive.lower().endswith(SUFFIXES) if "://" in archive else os.path.isfile(archive)
    return (archive, name.strip("/")) if is_archive else None


class Archive:
    """The members of a zip archive, by its directory.

    Raises BadInputError for one that is damaged, split or encrypted.
    """

    def __init__(self, reader: ByteReader) -> None:
        self.reader = reader
        self.members: dict[str, Member] = dict(_directory(reader))
        self._starts: dict[str, int] = {}

    def read(self, name: str, limit: int) -> bytes | None:
        """A whole member, checked by its CRC-32; None if there is none. Raises BadInputError above `limit` bytes."""
        member = self.members.get(name)
        if member is None:
            return None
        where = f"{self.reader.uri}{MARK}{name}"
        if member.size > limit:
            raise BadInputError(f"{where}: has {member.size:,} bytes, more than an object of its kind ({limit:,})")
        data = self.reader.pread(self.start(name), member.packed)
        if member.method == DEFLATED:
            unpack = zlib.decompressobj(-15)
            try:
                data = unpack.decompress(data, member.size + 1)
            except zlib.error as error:
                raise BadInputError(f"{where}: damaged: {error}") from error
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise BadInputError(f"{where}: fails its checksum (CRC-32); restore the archive")
        return data

    def start(self, name: str) -> int:
        """Where a member's bytes begin: its own header may be longer than the directory says."""
        known = self._starts.get(name)
        if known is None:
            member = self.members[name]
            header = self.reader.pread(member.offset, _LOCAL.size)
            signature, *_, name_length, extra_length = _LOCAL.unpack(header)
            if signature != b"PK\x03\x04":
                raise BadInputError(
                    f"{self.reader.uri}{MARK}{name}: the archive's directory does not say where it lies"
                )
            known = self._starts[name] = member.offset + _LOCAL.size + name_length + extra_length
        return known

    def names_below(self, folder: str) -> list[str]:
        """Names right inside a folder, sorted."""
        prefix = f"{folder}/" if folder else ""
        return sorted({name[len(prefix) :].partition("/")[0] for name in self.members if name.startswith(prefix)})

    def below(self, folder: str) -> Iterator[tuple[str, Member]]:
        """(name inside the folder, member) of all that lie in it, at any depth."""
        prefix = f"{folder}/" if folder else ""
        return ((name[len(prefix) :], member) for name, member in self.members.items() if name.startswith(prefix))


class MemberReader(ByteReader):
    """One member's bytes. Raises BadInputError when there is none."""

    def __init__(self, path: str, archive: Archive, name: str, limit: int) -> None:
        member = archive.members.get(name)
        if member is None:
            raise BadInputError(f"{path}: no such member of the archive")
        self.uri, self.size, self.has_latency = path, member.size, archive.reader.has_latency
        self._archive, self._name = archive, name
        self._unpacked = archive.read(name, limit) if member.method == DEFLATED else None

    def pread(self, offset: int, size: int) -> bytes:
        """As `ByteReader.pread`."""
        return self.pread_many([(offset, size)])[0]

    def pread_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """As `ByteReader.pread_many`."""
        for offset, size in ranges:
            if offset < 0 or size < 0 or offset + size > self.size:
                raise BadInputError(
                    f"{self.uri}: asked for {size} bytes at {offset}, it has {self.size}; it is damaged"
                )
        if self._unpacked is not None:
            return [self._unpacked[offset : offset + size] for offset, size in ranges]
        start = self._archive.start(self._name)
        return self._archive.reader.pread_many([(start + offset, size) for offset, size in ranges])

    def identity(self) -> dict[str, Any]:
        """That of the archive."""
        return self._archive.reader.identity()

    def is_as_opened(self) -> bool:
        """As the archive."""
        return self._archive.reader.is_as_opened()

    def close(self) -> None:
        """The archive stays open."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_bytes, (self.uri,)


def open_member(path: str, limit: int = MAX_DIRECTORY_BYTES) -> MemberReader:
    """The bytes of a member's path. limit: of one that has to be unpacked."""
    found = split_member(path)
    if found is None:
        raise BadInputError(f"{path}: is in no archive")
    return MemberReader(path, open_archive(found[0]), found[1], limit)


def open_archive(path: str, *, fresh: bool = False) -> Archive:
    """The archive at a path or URL; the last few of a process are kept, until they change.

    fresh: a server is asked whether it has changed, too.
    """
    return _ARCHIVES.get(path, fresh)


class _Archives:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], tuple[Any, Archive]] = OrderedDict()

    def get(self, path: str, fresh: bool) -> Archive:
        state, key = _state_of(path, fresh), (path, os.getpid())
        with self._lock:
            known = self._kept.get(key)
            if known is not None and state in (None, known[0]):
                self._kept.move_to_end(key)
                return known[1]
        state = state or _state_of(path, True)
        archive = Archive(open_bytes(path))
        with self._lock:
            self._kept[key] = state, archive
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return archive


_ARCHIVES = _Archives()


def _state_of(path: str, fresh: bool) -> Any:
    """What changes when a file does; None for an object that is not to be asked for: its reader refuses an answer of
    another version by itself."""
    if "://" in path:
        return identity_of(path) if fresh else None
    try:
        found = os.stat(path)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be opened: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def _directory(reader: ByteReader) -> Iterator[tuple[str, Member]]:
    count, size, offset, base = _end(reader)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES or offset + size > reader.size:
        raise _damaged(reader, f"its directory of {count:,} members and {size:,} bytes is not one of an image")
    data, at, found = reader.pread(offset, size), 0, 0
    while at < size:
        if at + _CENTRAL.size > size:
            raise _damaged(reader, "its directory is cut off")
        found += 1
        signature, _, _, flags, method, _, _, crc, packed, full, n, m, k, _, _, _, start = _CENTRAL.unpack_from(
            data, at
        )
        if signature != b"PK\x01\x02":
            raise _damaged(reader, "its directory is not one")
        at += _CENTRAL.size
        name, extra = data[at : at + n], data[at + n : at + n + m]
        at += n + m + k
        text = name.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        if text.endswith("/"):
            continue
        if flags & 1 or method not in (STORED, DEFLATED):
            raise _damaged(reader, f"{text} is {'encrypted' if flags & 1 else f'packed by method {method}'}")
        full, packed, start = _wide(extra, full, packed, start)
        if base + start + packed > reader.size or (method == STORED and packed != full):
            raise _damaged(reader, f"{text} is said to have {packed} bytes at {start}")
        yield text, Member(base + start, packed, full, method, crc)
    # Some writers count no further than 16 bits.
    if count not in (found, found & 0xFFFF):
        raise _damaged(reader, f"its directory has {found} members, and says {count}")


def _end(reader: ByteReader) -> tuple[int, int, int, int]:
    """(members, bytes of the directory, where it begins, what was put before the archive)."""
    tail_at = max(0, reader.size - (1 << 16) - 22)
    tail = reader.pread(tail_at, reader.size - tail_at)
    at = tail.rfind(_END)
    while at >= 0 and (at + 22 > len(tail) or at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail)):
        at = tail.rfind(_END, 0, at)
    if at < 0:
        raise _damaged(reader, "it has no directory at its end: it was cut off")
    disk, directory_disk, _, count, size, offset, _ = struct.unpack_from("<4H2IH", tail, at + 4)
    if disk != directory_disk or disk not in (0, 0xFFFF):
        raise _damaged(reader, "it is one of several parts; join them")
    end = tail_at + at
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
        end = int.from_bytes(tail[at - 12 : at - 4], "little")
        record = reader.pread(end, 56) if end + 56 <= reader.size else b""
        if record[:4] != _END64:
            raise _damaged(reader, "its ZIP64 directory is not where it should be")
        count, size, offset = struct.unpack_from("<3Q", record, 32)
    base = end - size - offset
    if base < 0:
        raise _damaged(reader, "its directory lies beyond its end")
    return count, size, base + offset, base


def _wide(extra: bytes, full: int, packed: int, start: int) -> tuple[int, int, int]:
    """(size, packed size, offset), those that need 64 bits from the extra field 1."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra[: at + 4 + length], at + 4))
            full, packed, start = (next(values, v) if v == _WIDE else v for v in (full, packed, start))
            break
        at += 4 + length
    return full, packed, start


def _damaged(reader: ByteReader, what: str) -> BadInputError:
    return BadInputError(f"{reader.uri}: zip archive: {what}")
