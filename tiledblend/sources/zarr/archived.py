"""zarr-python's view of a folder in a zip archive (.ozx)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from tiledblend.bytes.archive import DEFLATED, open_archive, split_member
from tiledblend.geometry import Region
from tiledblend.sources.zarr.dense import dense_shard
from tiledblend.sources.zarr.grid import ObjectGrid
from tiledblend.sources.zarr.stored import note, require_sound_size

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class ArchiveStore(MemoryStore):
    """The objects of one array in an archive, read only: stored members by range, deflated ones unpacked whole."""

    has_changed = False
    newest = 0

    def __init__(self, path: str, grid: ObjectGrid) -> None:
        super().__init__(read_only=True)
        found = split_member(path)
        assert found is not None
        self._archive, self._grid = open_archive(found[0]), grid
        self._prefix = f"{found[1]}/" if found[1] else ""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As zarr's own."""
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As zarr's own, of versions that have it."""
        data = self._bytes(key, byte_range)
        found = None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)
        note(self._grid, key, byte_range, found)
        return found

    def expect(self, regions: Sequence[Region], *, fetch: bool = True) -> int:
        """0: members are read when they are needed."""
        return 0

    def renew(self, listed: str) -> None:
        """Nothing to forget: an archive that changes is opened anew."""

    def _bytes(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        name = self._prefix + key
        member = self._archive.members.get(name)
        if member is None:
            return None
        if self._grid.coords(key) is not None:
            require_sound_size(self._grid, key, member.size, byte_range)
        if member.method == DEFLATED or (byte_range is None and member.size <= self._grid.most_bytes):
            # A whole one is checked by the archive's own CRC-32.
            data = self._archive.read(name, max(self._grid.most_bytes, 1 << 20))
            return data if byte_range is None or data is None else data[slice(*_span(byte_range, len(data)))]
        if byte_range is None:
            return dense_shard(self._grid, key, member.size, lambda at, size: self._read(name, at, size))
        start, end = _span(byte_range, member.size)
        return self._read(name, start, end - start)

    def _read(self, name: str, at: int, size: int) -> bytes:
        return self._archive.reader.pread(self._archive.start(name) + at, size) if size > 0 else b""


def _span(byte_range: ByteRequest, size: int) -> tuple[int, int]:
    """(first, end) of a request of an object, inside of it."""
    if isinstance(byte_range, RangeByteRequest):
        return min(byte_range.start, size), min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return min(byte_range.offset, size), size
    assert isinstance(byte_range, SuffixByteRequest)
    return max(0, size - byte_range.suffix), size


def archive_path(path: str, grid: ObjectGrid) -> Any:
    """What zarr-python opens an array in an archive from."""
    return StorePath(ArchiveStore(path, grid))
