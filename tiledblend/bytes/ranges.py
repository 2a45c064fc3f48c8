"""Stored bytes by offset: local files, objects by URL (`remote`), and a file-like view for parsers."""

from __future__ import annotations

import io
import os
import stat
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from tiledblend.bytes.buckets import path_of_file_url
from tiledblend.errors import BadInputError, TiledblendError, resource_error


class ByteReader(ABC):
    """Read-only bytes of one object, by offset; safe to use from several threads, without a file position.

    uri: what messages call it and what opens it again. size: in bytes, when it was opened.
    """

    uri: str
    size: int
    has_latency = False
    """True when a read is a request to a server."""

    @abstractmethod
    def pread(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises BadInputError when the object has fewer."""

    def pread_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, size), in the order asked. Readers with latency fetch them together."""
        return [self.pread(offset, size) for offset, size in ranges]

    def expect(self, ranges: Sequence[tuple[int, int]], *, fetch: bool = True) -> int:
        """Each (offset, size) will be read soon, once. Readers with latency fetch them meanwhile, neighbours together.

        Returns the number of requests for them. fetch: False only counts.
        """
        return 0

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """{"uri", "size", "modified" (ns) or "etag"} as it is stored now."""

    def is_as_opened(self) -> bool:
        """False if the object is not the one that was opened. Here True: for readers that see it at every read."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Give back handles; a later read opens them again."""


class LocalFile(ByteReader):
    """A file of this machine. The handle is opened at the first read of a process and kept until collected.

    Raises BadInputError when the path is missing, no regular file, or not readable.
    """

    def __init__(self, path: str) -> None:
        self.uri = path
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        found = self._stat()
        self.size, self._modified = found.st_size, found.st_mtime_ns

    def pread(self, offset: int, size: int) -> bytes:
        """As `ByteReader.pread`. One system call, no lock."""
        if offset < 0 or size < 0:
            raise BadInputError(f"{self.uri}: asked for {size} bytes at {offset}; the file is damaged")
        handle = self._handle if self._handle is not None else self._open()
        try:
            data = os.pread(handle, size, offset)
            if len(data) < size:
                data = self._rest(handle, data, offset, size)
        except OSError as error:
            raise _input_error(error, f"{self.uri}: cannot read {size} bytes at {offset}") from error
        return data

    def identity(self) -> dict[str, Any]:
        """As `ByteReader.identity`, with "modified" in nanoseconds."""
        found = self._stat()
        return {"uri": self.uri, "size": found.st_size, "modified": found.st_mtime_ns}

    def is_as_opened(self) -> bool:
        """By size and modification time of what the path names now."""
        found = self._stat()
        return (found.st_size, found.st_mtime_ns) == (self.size, self._modified)

    def close(self) -> None:
        """As `ByteReader.close`."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._handle = self._finalizer = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_bytes, (self.uri,)

    def _rest(self, handle: int, data: bytes, offset: int, size: int) -> bytes:
        # One call returns at most 2 GiB, and a network file system may return less than asked.
        parts = [data]
        have = len(data)
        while have < size:
            part = os.pread(handle, size - have, offset + have)
            if not part:
                raise BadInputError(
                    f"{self.uri}: input changed or truncated: {have} of {size} bytes at {offset}; "
                    f"it had {self.size} bytes when it was opened; restore it and run again"
                )
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                try:
                    handle = os.open(self.uri, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise _input_error(error, f"{self.uri}: cannot be opened") from error
                self._finalizer = weakref.finalize(self, os.close, handle)
                self._handle = handle
            return self._handle

    def _stat(self) -> os.stat_result:
        try:
            found = os.stat(self.uri)
        except FileNotFoundError:
            raise BadInputError(f"{self.uri}: no such file") from None
        except OSError as error:
            raise _input_error(error, f"{self.uri}: cannot be opened") from error
        except ValueError as error:
            raise BadInputError(f"{self.uri}: cannot be opened: {error}") from error
        if not stat.S_ISREG(found.st_mode):
            raise BadInputError(f"{self.uri}: not a regular file")
        return found


def _input_error(error: OSError, where: str) -> TiledblendError:
    """Of this process's limits, or of the input."""
    return resource_error(error, where) or BadInputError(f"{where}: {error.strerror or type(error).__name__}")


class SeekableBytes(io.RawIOBase):
    """A read-only file object over a `ByteReader`, for parsers that seek. Not thread-safe.

    Small reads are served from the last blocks of `block` bytes (at most `blocks` of them are kept).
    """

    def __init__(self, reader: ByteReader, *, block: int = 1 << 16, blocks: int = 64) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0
        self._block = block
        self._blocks = blocks
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    @property
    def name(self) -> str:
        """Last part of the reader's URI."""
        return self._reader.uri.rstrip("/").rsplit("/", 1)[-1]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As of every file object; a position beyond the end reads nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""
        rest = max(0, self._reader.size - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        data = self._fetch(self._position, size) if size else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """All bytes from the position on."""
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """As of every file object."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _fetch(self, offset: int, size: int) -> bytes:
        if size > 4 * self._block:
            return self._reader.pread(offset, size)
        first, last = offset // self._block, (offset + size - 1) // self._block
        data = b"".join(self._at(index) for index in range(first, last + 1))
        start = offset - first * self._block
        return data[start : start + size]

    def _at(self, index: int) -> bytes:
        data = self._kept.get(index)
        if data is None:
            start = index * self._block
            data = self._reader.pread(start, min(self._block, self._reader.size - start))
            self._kept[index] = data
            if len(self._kept) > self._blocks:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(index)
        return data


def identity_of(path: str) -> dict[str, Any]:
    """As `ByteReader.identity`, without reading: {"uri", "size", "modified" (ns) or "etag"} of a path or URL."""
    if "://" in path and not path.lower().startswith("file://"):
        from tiledblend.bytes.remote import remote_identity

        return remote_identity(path)
    return open_bytes(path).identity()


def read_whole(path: str, limit: int) -> bytes:
    """All bytes of a local path or URL. Raises BadInputError when it is missing or has more than `limit` bytes."""
    reader = open_bytes(path)
    if reader.size > limit:
        raise BadInputError(f"{path}: {reader.size:,} bytes, more than the {limit >> 20:,} MiB that are read at once")
    try:
        return reader.pread(0, reader.size)
    finally:
        reader.close()


def open_bytes(path_or_url: str | os.PathLike[str]) -> ByteReader:
    """The bytes of a local path or URL. Raises BadInputError when it cannot be read."""
    path = os.fspath(path_or_url)
    if "!/" in path:
        from tiledblend.bytes.archive import open_member, split_member

        if split_member(path) is not None:
            return open_member(path)
    scheme, separator, _ = path.partition("://")
    if separator and scheme.lower() == "file":
        return LocalFile(path_of_file_url(path))
    if separator and scheme.isalnum():
        from tiledblend.bytes.remote import RemoteFile

        return RemoteFile(path)
    return LocalFile(path)
