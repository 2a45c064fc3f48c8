"""zarr's directory as an image's store: what is not there is noted, and what no sound array has is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, StorePath

from tiledblend.bytes.archive import split_member
from tiledblend.geometry import Region
from tiledblend.sources.zarr.dense import dense_shard
from tiledblend.sources.zarr.grid import ABSENT_ENTRY, ObjectGrid

JOINED_BYTES = 1 << 26
"""zarr joins neighbouring chunks of a shard, and what lies between them, into reads of at most a quarter of this."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object that was read and lacks something. index: a shard's; None: the object itself is not stored."""

    key: str
    index: bytes | None


SEEN: ContextVar[list[Seen] | None] = ContextVar("tiledblend_seen", default=None)
"""What the stores below note for the read that runs. Set inside its coroutine: threads and event loops vary."""


def note(grid: ObjectGrid, key: str, byte_range: ByteRequest | None, found: Buffer | None) -> None:
    """Note, for the read that runs, an object that is not stored, or a shard's index that lacks chunks.

    Raises ValueError for bytes that an object does not have.
    """
    if found is not None and grid.coords(key) is not None:
        _require_whole_answer(grid, key, byte_range, len(found))
    seen = SEEN.get()
    if seen is None:
        return
    if found is None:
        seen.append(Seen(key, None))
        return
    if grid.index is None:
        return
    size, at_end = grid.index
    if byte_range is None:
        index = found[-size:] if at_end else found[:size]
    elif (isinstance(byte_range, SuffixByteRequest) and at_end and byte_range.suffix == size) or (
        isinstance(byte_range, RangeByteRequest) and not at_end and (byte_range.start, byte_range.end) == (0, size)
    ):
        index = found
    else:
        return
    stored = index.to_bytes()
    if len(stored) == size and ABSENT_ENTRY in stored:
        seen.append(Seen(key, stored))


def _require_whole_answer(grid: ObjectGrid, key: str, byte_range: ByteRequest | None, length: int) -> None:
    """zarr-python takes an empty answer for a missing chunk: of an empty file, or of a place beyond a shard's end.

    Or where a shard's index says that a chunk has no bytes: for those that are not stored it has a mark of its own.
    """
    if isinstance(byte_range, RangeByteRequest):
        asked = max(1, byte_range.end - byte_range.start)
    elif isinstance(byte_range, SuffixByteRequest):
        asked = byte_range.suffix
    else:
        asked = grid.index[0] if grid.index is not None and byte_range is None else 1
    if length < asked:
        raise ValueError(f"{key} has {length} of {asked} bytes that must be there; it is damaged or truncated")


class ImageStore(Protocol):
    """What an image's stores offer besides zarr's own. has_changed: an object is not what it was. newest: latest
    modification time, in ns, of what was read, where objects are files."""

    has_changed: bool
    newest: int

    def expect(self, regions: Sequence[Region], *, fetch: bool = True) -> int:
        """As `RasterSource.expect`, of regions of the array."""

    def renew(self, listed: str) -> None:
        """The objects were listed anew; `listed` is the listing's digest."""


def store_path(path: str, grid: ObjectGrid) -> Any:
    """What zarr-python opens an array at a path or URL from; its store is an `ImageStore`."""
    if split_member(path) is not None:
        from tiledblend.sources.zarr.archived import archive_path

        return archive_path(path, grid)
    if "://" not in path:
        return StorePath(WatchedStore(path, grid))
    from tiledblend.sources.zarr.remote import zarr_path

    return zarr_path(path, grid)


class WatchedStore(LocalStore):
    """zarr's directory, read only, that notes what is not there and refuses objects no sound array has.

    newest: latest modification time, in ns, of the objects that were read.
    """

    has_changed = False

    def __init__(self, root: str, grid: ObjectGrid) -> None:
        super().__init__(root, read_only=True)
        self._grid = grid
        self.newest = 0

    def expect(self, regions: Sequence[Region], *, fetch: bool = True) -> int:
        """0: files are read when they are needed."""
        return 0

    def renew(self, listed: str) -> None:
        """Forget the times of the objects: they were listed anew."""
        self.newest = 0

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As zarr's own."""
        found = self._dense(key, prototype, byte_range)
        if found is None:
            found = await super().get(key, prototype, byte_range)  # type: ignore[arg-type, unused-ignore]
        note(self._grid, key, byte_range, found)
        return found

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As zarr's own, of versions that have it."""
        found = self._dense(key, prototype, byte_range)
        if found is None:
            found = super().get_sync(key, prototype=prototype, byte_range=byte_range)  # type: ignore[misc, unused-ignore]
        note(self._grid, key, byte_range, found)
        return found

    def _dense(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest | None) -> Buffer | None:
        """The whole of a shard that is larger than its pixels could be, without its dead bytes; None for all else.

        Notes the object's time. Raises ValueError for what no sound array has.
        """
        if self._grid.coords(key) is None:
            return None
        try:
            found = os.stat(self.root / key)
        except OSError:
            return None
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            # A pipe would be waited for, and a device has no end.
            raise ValueError(f"chunk object {key} is no regular file; it is damaged")
        self.newest = max(self.newest, found.st_mtime_ns)
        require_sound_size(self._grid, key, found.st_size, byte_range)
        if byte_range is not None or found.st_size <= self._grid.most_bytes:
            return None
        with open(self.root / key, "rb", buffering=0) as file:
            data = dense_shard(self._grid, key, found.st_size, lambda at, size: os.pread(file.fileno(), size, at))
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


def require_sound_size(grid: ObjectGrid, key: str, size: int, byte_range: ByteRequest | None = None) -> None:
    """Raise ValueError for what is larger than its pixels could be: it would be read into memory.

    A shard may be: who rewrites a chunk in it may leave the old one there. Parts of it may not.
    """
    most = grid.most_bytes
    if isinstance(byte_range, RangeByteRequest) and grid.has_plain_index:
        size, most = byte_range.end - byte_range.start, max(most, JOINED_BYTES)
    elif grid.has_plain_index:
        return
    if size > most:
        raise ValueError(f"chunk object {key} has {size:,} bytes, more than its pixels can take ({grid.most_bytes:,})")
