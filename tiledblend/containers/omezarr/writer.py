"""One tile's way into its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.bytes.objects import Data, Draft, ObjectStore
from tiledblend.bytes.spool import Piece, Spool
from tiledblend.containers.digests import hasher
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.receipts import Receipt
from tiledblend.geometry import Tile

Array = NDArray[Any]
_ABSENT = np.iinfo(np.uint64).max


class TileWriter:
    """One tile's objects, drafted chunk by chunk and put whole by `finish`. Used by one thread.

    Each chunk is compressed when it is added and goes to its shard's draft: a tile costs no memory where objects are
    files, and its compressed size in a bucket. Every chunk of the tile that holds pixels is added exactly once, which
    `finish` asserts. `close` leaves nothing of a tile that was not finished.
    """

    def __init__(self, layout: ArrayLayout, store: ObjectStore, tile: Tile) -> None:
        from tiledblend.containers.omezarr.codecs import encoder

        self.layout, self.store, self.tile = layout, store, tile
        self._encode = encoder(layout.output.compressor)
        levels = layout.grid.stage_levels(tile.stage)
        kind = _Shard if layout.sharded else _ChunkObjects
        self._levels: dict[int, _Shard | _ChunkObjects] = {level: kind(layout, store, tile, level) for level in levels}
        shape = (layout.chunk_channels, layout.grid.chunk, layout.grid.chunk)
        self._buffer = np.empty((*shape[1:], shape[0]) if layout.interleaved else shape, layout.dtype)
        self._planes = self._buffer.transpose(2, 0, 1) if layout.interleaved else self._buffer

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Array) -> None:
        """Add all chunks of one row of chunks.

        pixels: (h, w, channels) in any memory order, exactly the tile's pixels of that level and row: h is the chunk
        side, or what is left of it at the canvas's end, and w the tile's width on that level.
        """
        chunks, side = self._levels[level], self.layout.grid.chunk
        chunks.check_row(row_in_tile, pixels)
        for column in range(chunks.columns):
            self._add_block(level, row_in_tile, column, pixels[:, column * side : (column + 1) * side])

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Array) -> None:
        """Add one chunk: (h, w, channels), exactly the tile's pixels of that level and place."""
        expected = (*self._levels[level].chunk_shape(chunk_row, chunk_col), self.layout.channels)
        if pixels.shape != expected or pixels.dtype != self.layout.dtype:
            place = f"{self.tile} level {level} chunk {chunk_row}, {chunk_col}"
            raise ValueError(f"{place} got {pixels.shape} {pixels.dtype}, needs {expected} {self.layout.dtype}")
        self._add_block(level, chunk_row, chunk_col, pixels)

    def _add_block(self, level: int, row: int, column: int, block: Array) -> None:
        for group in range(self.layout.channel_groups):
            self._levels[level].add(row, column, group, self._compressed(block, group))

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        """Add a chunk that is compressed already: the codec's bytes of one whole, padded chunk.

        chunk_row, chunk_col: inside the tile. group: the channel, or 0 where a chunk holds all channels. has_checksum:
        the bytes end in their crc32c.
        """
        self._levels[level].add(chunk_row, chunk_col, group, data, has_checksum=has_checksum)

    def finish(self) -> tuple[Receipt, ...]:
        """Put every object of the tile and return their receipts, in the order of `ArrayLayout.tile_objects`.

        Raises RuntimeError if a chunk is missing (a programming error), StorageError, ResourceError.
        """
        try:
            for chunks in self._levels.values():
                chunks.require_all()
            receipts = tuple(receipt for chunks in self._levels.values() for receipt in chunks.receipts())
            assert tuple(receipt.key for receipt in receipts) == self.layout.tile_objects(self.tile)
            shards = [chunks for chunks in self._levels.values() if isinstance(chunks, _Shard)]
            objects = [chunks for chunks in self._levels.values() if isinstance(chunks, _ChunkObjects)]
            self.store.put_drafts(shard.draft for shard in shards)
            self.store.put_many(item for chunks in objects for item in chunks.objects())
        finally:
            self.close()
        return receipts

    def close(self) -> None:
        """Discard what was not put."""
        for chunks in self._levels.values():
            chunks.close()
        self._levels.clear()

    def _compressed(self, block: Array, group: int) -> bytes:
        """One chunk of `block` (h, w, channels), padded with zeros and compressed."""
        height, width, _ = block.shape
        side = self.layout.grid.chunk
        if (height, width) != (side, side):
            self._planes[:, height:] = 0
            self._planes[:, :height, width:] = 0
        if self.layout.is_rgb:
            self._fill(block)
        else:
            np.copyto(self._planes[0, :height, :width], block[:, :, group])
        return self._encode(self._buffer)

    def _fill(self, block: Array) -> None:
        height, width, _ = block.shape
        if self.layout.interleaved:
            np.copyto(self._buffer[:height, :width], block)
        elif block.strides[2] == block.itemsize and block.strides[1] == block.itemsize * self.layout.channels > 1:
            _deinterleave()(block, [plane[:height, :width] for plane in self._planes])
        else:
            np.copyto(self._planes[:, :height, :width], block.transpose(2, 0, 1))


class _LevelChunks:
    """The chunks of a tile on one level: which there are, and that each is added once."""

    def __init__(self, layout: ArrayLayout, store: ObjectStore, tile: Tile, level: int) -> None:
        self.layout, self.store, self.tile, self.level = layout, store, tile, level
        self.region = layout.grid.tile_region(tile, level)
        self.rows, self.columns = layout.tile_chunks(tile, level)
        self._added = np.zeros((layout.channel_groups, self.rows, self.columns), bool)

    def chunk_shape(self, row: int, column: int) -> tuple[int, int]:
        """(height, width) of the pixels of a chunk that lie on the canvas."""
        height, width = self.region.shape
        side = self.layout.grid.chunk
        return min(side, height - row * side), min(side, width - column * side)

    def check_row(self, row: int, pixels: Array) -> None:
        expected = (self.chunk_shape(row, 0)[0], self.region.shape[1], self.layout.channels)
        if pixels.shape != expected or pixels.dtype != self.layout.dtype:
            raise ValueError(
                f"{self.tile} level {self.level} row {row} got {pixels.shape} {pixels.dtype}, "
                f"needs {expected} {self.layout.dtype}"
            )

    def claim(self, row: int, column: int, group: int) -> None:
        """Raise ValueError unless the chunk is a planned one and is added for the first time."""
        inside = 0 <= row < self.rows and 0 <= column < self.columns and 0 <= group < self.layout.channel_groups
        if not inside or self._added[group, row, column]:
            problem = "added twice" if inside else "not planned"
            raise ValueError(f"{self.tile} level {self.level}: chunk {(row, column, group)} {problem}")
        self._added[group, row, column] = True

    def require_all(self) -> None:
        """Raise RuntimeError if a chunk is missing."""
        if not self._added.all():
            added, planned = int(self._added.sum()), self._added.size
            raise RuntimeError(f"{self.tile} level {self.level}: {added} of {planned} chunks were added")


class _Shard(_LevelChunks):
    """Chunks with their checksums, then the index: zarr v3's sharding_indexed with the index at the end."""

    def __init__(self, layout: ArrayLayout, store: ObjectStore, tile: Tile, level: int) -> None:
        super().__init__(layout, store, tile, level)
        side = layout.grid.level_shard(level) // layout.grid.chunk
        self._index = np.full((layout.channel_groups, side, side, 2), _ABSENT, "<u8")
        self._key = layout.key(level, tile.row, tile.column)
        self._digest, self._size = hasher(), 0

    @cached_property
    def draft(self) -> Draft:
        """Begun with the first chunk."""
        return self.store.draft(self._key)

    def add(self, row: int, column: int, group: int, data: bytes, *, has_checksum: bool = False) -> None:
        """Write one compressed chunk. has_checksum: its crc32c is its end already."""
        from tiledblend.containers.omezarr.codecs import crc32c

        self.claim(row, column, group)
        start = self._size
        self._append(data)
        if not has_checksum:
            self._append(crc32c(data))
        self._index[group, row, column] = start, self._size - start

    def receipts(self) -> Iterator[Receipt]:
        """Write the index; the shard is whole then."""
        from tiledblend.containers.omezarr.codecs import crc32c

        table = self._index.tobytes()
        self._append(table + crc32c(table))
        yield Receipt(self._key, self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Discard a draft that was not put."""
        if "draft" in self.__dict__:
            self.draft.discard()

    def _append(self, data: bytes) -> None:
        self._digest.update(data)
        self.draft.append(data)
        self._size += len(data)


class _ChunkObjects(_LevelChunks):
    """Chunks that are objects of their own, kept in memory until the tile is whole: zarr v2."""

    def __init__(self, layout: ArrayLayout, store: ObjectStore, tile: Tile, level: int) -> None:
        super().__init__(layout, store, tile, level)
        self._spool = Spool()
        self._pieces: dict[tuple[int, int, int], list[Piece]] = {}

    def add(self, row: int, column: int, group: int, data: bytes, *, has_checksum: bool = False) -> None:
        """Keep one compressed chunk; its crc32c, where it has one, is not stored."""
        self.claim(row, column, group)
        self._pieces[group, row, column] = self._spool.keep(data[:-CRC_BYTES] if has_checksum else data)

    def objects(self) -> Iterator[tuple[str, Sequence[Data]]]:
        """(key, content) of each chunk in the order of its key."""
        per_tile = self.layout.grid.level_shard(self.level) // self.layout.grid.chunk
        top, left = self.tile.row * per_tile, self.tile.column * per_tile
        for (group, row, column), pieces in sorted(self._pieces.items()):
            yield self.layout.key(self.level, top + row, left + column, group), self._spool.parts(pieces)

    def receipts(self) -> Iterator[Receipt]:
        """Of every chunk."""
        for key, parts in self.objects():
            digest = hasher()
            for part in parts:
                digest.update(part)
            yield Receipt(key, sum(map(len, parts)), digest.hexdigest())

    def close(self) -> None:
        """Give the memory to the next tile."""
        self._pieces.clear()
        self._spool.release()


def _deinterleave() -> Callable[[Array, list[Array]], object]:
    """cv2.split: twice as fast as a numpy transpose, and the same bytes."""
    import cv2

    return cv2.split
