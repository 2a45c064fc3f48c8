"""zarr-python's view of a bucket: its own store over this process's client, with failures told in one line."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import ObjectStore, StorePath

from tiledblend.bytes.buckets import Repeating, client_of, connections, is_beyond, repeated, split_url
from tiledblend.bytes.expected import EXPECTED_BYTES, Expected, merge_ranges, uses_of
from tiledblend.bytes.remote import LargerError, StoredState, is_absent, ranged, told, whole
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.zarr.dense import dense_shard
from tiledblend.sources.zarr.grid import ENTRY_BYTES, ObjectGrid
from tiledblend.sources.zarr.inline_loop import run_inline
from tiledblend.sources.zarr.stored import note

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

ABSENT = (1 << 64) - 1
MOST_INDEXES, INDEX_BYTES = 256, 1 << 20
"""Indexes of shards that are kept, and the largest of them."""
Range = tuple[int, int]


class BucketStore(ObjectStore[Any]):
    """The objects of a bucket or web server, read only. A failed request is a StorageError that names the object.

    What is not there is noted for the read that runs. Chunks of a shard that are expected come together, by merged
    range requests, and its index is asked for once.

    has_changed: an object was found to be another one than before.
    """

    has_changed = False
    newest = 0

    def __init__(self, root: str, folder: str, grid: ObjectGrid) -> None:
        super().__init__(client_of(root), read_only=True)
        self._root, self._prefix, self._grid = root, f"{folder.rstrip('/')}/", grid
        self._lock = threading.Lock()
        self._indexes: OrderedDict[str, Buffer] = OrderedDict()
        self._expected: OrderedDict[str, Expected] = OrderedDict()
        self._versions: dict[str, str] = {}
        self._listed: str | None = None

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As zarr's own."""
        found = await self._found(key, prototype, byte_range)
        # What that says is of the image, not of the store.
        note(self._grid, key.removeprefix(self._prefix), byte_range, found)
        return found

    async def _found(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        with told(f"{self._root}/{key}", "cannot be read"):
            found = self._known(key, prototype, byte_range)
            if found is None:
                found = await self._asked(key, prototype, byte_range)
                if found is not None and self._is_index(byte_range) and len(found) <= INDEX_BYTES:
                    with self._lock:
                        self._indexes[key] = found
                        while len(self._indexes) > MOST_INDEXES:
                            self._indexes.popitem(last=False)
            return found

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """As zarr's own, of versions that have it, without its merging: `expect` has done that."""
        for number, byte_range in enumerate(byte_ranges):
            yield [(number, await self.get(key, prototype, byte_range))]

    def expect(self, regions: Sequence[Region], *, fetch: bool = True) -> int:
        """Regions of the array that will be read soon: how many requests fetch what is not under way yet."""
        wanted: dict[str, list[list[int]]] = {}
        for region in regions:
            for name, numbers in self._grid.chunks_of(region).items():
                wanted.setdefault(self._prefix + name, []).append(numbers)
        count = sum(len(numbers) for groups in wanted.values() for numbers in groups)
        # what could not be kept would be fetched twice
        fetch = fetch and count * self._grid.chunk_bytes <= EXPECTED_BYTES
        return sum(self._expect_of(key, groups, fetch) for key, groups in wanted.items())

    def _expect_of(self, key: str, groups: Sequence[Sequence[int]], fetch: bool) -> int:
        """groups: numbers of chunks of an object, of each read."""
        count = int(np.prod(self._grid.inner))
        parts = [numbers for numbers in groups if len(numbers) < count]
        requests = 0
        if wholes := len(groups) - len(parts):
            # zarr asks for an object as a whole where it needs all of it
            requests += self._fetch(key, [(0, self._grid.most_bytes)] * wholes, fetch, is_whole=True)
        if parts and self._grid.has_plain_index:
            asks, ranges = self._ranges(key, [number for numbers in parts for number in numbers])
            requests += asks + self._fetch(key, ranges, fetch)
        return requests

    def _ranges(self, key: str, numbers: Iterable[int]) -> tuple[int, list[Range]]:
        """(requests that the index took, (offset, size) of the chunks that are stored)."""
        assert self._grid.index is not None
        size, at_end = self._grid.index
        asked = SuffixByteRequest(size) if at_end else RangeByteRequest(0, size)
        with self._lock:
            is_known = key in self._indexes
        index = run_inline(lambda: self._found(key, default_buffer_prototype(), asked))
        if index is None or len(index) != size:
            return 1, []
        entries = np.frombuffer(index.to_bytes(), "<u8", size // ENTRY_BYTES * 2).reshape(-1, 2)
        places = [(int(entries[number, 0]), int(entries[number, 1])) for number in numbers]
        # what a damaged index says is for zarr to refuse
        sound = [(at, n) for at, n in places if at != ABSENT and at + n < ABSENT and 0 < n <= self._grid.most_bytes]
        return 0 if is_known else 1, sound

    def _fetch(self, key: str, ranges: Sequence[Range], fetch: bool, *, is_whole: bool = False) -> int:
        with self._lock:
            expected = self._expected.setdefault(key, Expected())
            self._expected.move_to_end(key)
            while len(self._expected) > 1 and sum(one.size for one in self._expected.values()) > 2 * EXPECTED_BYTES:
                self._expected.popitem(last=False)
        ranges = [place for place in ranges if not expected.holds(*place)]
        merged = merge_ranges(ranges)
        if fetch:
            uses = uses_of(merged, ranges)
            for number, (offset, size) in enumerate(merged):
                span = None if is_whole else (offset, size)
                expected.put(offset, size, connections().submit(self._request, key, span), uses[number])
        return len(merged)

    def _request(self, key: str, span: Range | None) -> bytes | None:
        """Bytes of an object, as it was when its first bytes were read; None where there is none."""
        uri = f"{self._root}/{key}"
        with told(uri, "cannot be read"):
            try:
                state, data = repeated(lambda: self._whole(key) if span is None else ranged(self._root, key, *span))
            except Exception as error:
                if is_absent(error, uri):
                    return None
                if is_beyond(error):
                    return b""
                raise
        with self._lock:
            first = self._versions.setdefault(key, state.version)
        if state.version != first:
            self.has_changed = True
            raise BadInputError(f"{uri}: the input changed while it was read; run again on settled inputs")
        return data

    def _whole(self, key: str) -> tuple[StoredState, bytes]:
        """A whole object; of a shard that is larger than its pixels could be, without its dead bytes."""
        uri = f"{self._root}/{key}"
        try:
            return whole(uri, self._grid.most_bytes)
        except LargerError as error:
            if not self._grid.has_plain_index:
                raise
            state = error.state
        name = key.removeprefix(self._prefix)
        data = dense_shard(self._grid, name, state.size, lambda at, size: ranged(self._root, key, at, size)[1])
        return state, data

    def renew(self, listed: str) -> None:
        """Keep nothing of objects that were rewritten since a listing of digest `listed` was last made."""
        with self._lock:
            if listed != self._listed:
                self._listed = listed
                self._indexes.clear()
                self._expected.clear()
                self._versions.clear()

    def _known(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        """What is kept or under way already."""
        with self._lock:
            index = self._indexes.get(key) if self._is_index(byte_range) else None
            expected = self._expected.get(key)
        if index is not None or expected is None:
            return index
        data = None
        if byte_range is None:
            data = expected.take(0, self._grid.most_bytes)
        elif isinstance(byte_range, RangeByteRequest):
            data = expected.take(byte_range.start, byte_range.end - byte_range.start)
        return None if data is None else prototype.buffer.from_bytes(data)

    def _is_index(self, byte_range: ByteRequest | None) -> bool:
        if self._grid.index is None:
            return False
        size, at_end = self._grid.index
        if at_end:
            return isinstance(byte_range, SuffixByteRequest) and byte_range.suffix == size
        return isinstance(byte_range, RangeByteRequest) and (byte_range.start, byte_range.end) == (0, size)

    async def _asked(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        if isinstance(byte_range, RangeByteRequest) and byte_range.start == byte_range.end:
            # Clients refuse to ask for nothing.
            return prototype.buffer.from_bytes(b"")
        tries = Repeating()
        while True:
            try:
                return await super().get(key, prototype, byte_range)
            except Exception as error:
                if is_beyond(error):
                    # No bytes, as a file would give there.
                    return prototype.buffer.from_bytes(b"")
                if is_absent(error, f"{self._root}/{key}"):
                    return None
                if not tries.pause_after(error):
                    raise


def zarr_path(uri: str, grid: ObjectGrid) -> StorePath:
    """What zarr-python opens an array at a URL from."""
    root, key = split_url(uri)
    return StorePath(BucketStore(root, key, grid), key)
