"""Which object holds which pixels, and one tile's way into its objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.encoding import CRC_BYTES, ChunkEncoding
from tiledblend.bytes.objects import Data, Draft, ObjectStore
from tiledblend.bytes.spool import Piece, Spool
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.errors import UsageError
from tiledblend.geometry import Grid, Region, Tile, ceil_div

Array = NDArray[Any]
_ABSENT = np.iinfo(np.uint64).max


class Receipt(NamedTuple):
    """Proof of one stored object. size: bytes. sha256: of its content, 64 hexadecimal digits."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ArrayLayout:
    """Where the pixels of every level lie in stored objects. Picklable; no I/O.

    channels: number of channels, at least 1. dtype: "uint8", "uint16" or "float32". is_rgb: the channels are RGB or
    RGBA: a chunk then holds all of them, otherwise one. The arrays are (c, y, x). OME-Zarr 0.5 and later: an object is
    a shard over all channels, `level/c/0/row/column`. 0.4: an object is a chunk, `level/channel/row/column`.
    """

    grid: Grid
    channels: int
    dtype: str
    is_rgb: bool
    output: OutputSpec

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UsageError(f"{self.channels} channels; at least 1 is needed")
        if np.dtype(self.dtype).name not in ("uint8", "uint16", "float32"):
            raise UsageError(f"dtype {self.dtype} cannot be written; use uint8, uint16 or float32")
        if (self.grid.chunk, self.grid.shard) != (self.output.chunk, self.output.shard):
            raise UsageError(f"grid of {self.grid.chunk}/{self.grid.shard} px is not that of the output {self.output}")

    @property
    def sharded(self) -> bool:
        """True when an object is a shard of many chunks (zarr v3), False when it is one chunk (zarr v2)."""
        return self.output.ome_zarr != "0.4"

    @property
    def interleaved(self) -> bool:
        """True when a chunk's bytes are (y, x, c): only where a chunk holds several channels."""
        return self.output.layout == "interleaved" and self.is_rgb and self.channels > 1

    @property
    def chunk_channels(self) -> int:
        """Channels in one chunk."""
        return self.channels if self.is_rgb else 1

    @property
    def chunk_bytes(self) -> int:
        """Raw bytes of one chunk; every stored chunk is whole, padded with 0 beyond the canvas."""
        return self.chunk_channels * self.grid.chunk**2 * np.dtype(self.dtype).itemsize

    @property
    def encoding(self) -> ChunkEncoding:
        """What another array's chunks must be encoded by to be taken as they are."""
        order = ("y", "x", "c") if self.interleaved else ("c", "y", "x")
        kept = order if self.chunk_channels > 1 else ("y", "x")
        return ChunkEncoding(self.dtype, self.grid.chunk, self.chunk_channels, kept, str(self.output.compressor))

    @property
    def channel_groups(self) -> int:
        """Chunks that lie over each other at one place."""
        return self.channels // self.chunk_channels

    def object_side(self, level: int) -> int:
        """Side in pixels of one object of a level."""
        return self.grid.level_shard(level) if self.sharded else self.grid.chunk

    def object_counts(self, level: int) -> tuple[int, int]:
        """(rows, columns) of objects of a level."""
        height, width = self.grid.level_shape(level)
        side = self.object_side(level)
        return ceil_div(height, side), ceil_div(width, side)

    def key(self, level: int, row: int, column: int, group: int = 0) -> str:
        """Key of the object at (row, column) of the level's object grid; group: the channel group (0.4 only)."""
        return f"{level}/c/0/{row}/{column}" if self.sharded else f"{level}/{group}/{row}/{column}"

    def level_objects(self, level: int) -> Iterator[str]:
        """Keys of one level's objects."""
        rows, columns = self.object_counts(level)
        for group in range(1 if self.sharded else self.channel_groups):
            for row in range(rows):
                for column in range(columns):
                    yield self.key(level, row, column, group)

    def planned_objects(self) -> Iterator[str]:
        """Keys of all pixel objects: complete means that every one of these is there."""
        for level in range(self.grid.levels):
            yield from self.level_objects(level)

    def object_count(self) -> int:
        """Number of `planned_objects`, without making them."""
        groups = 1 if self.sharded else self.channel_groups
        counts = (self.object_counts(level) for level in range(self.grid.levels))
        return groups * sum(rows * columns for rows, columns in counts)

    def tile_objects(self, tile: Tile) -> tuple[str, ...]:
        """Keys of the objects that the task of a tile writes, and nobody else."""
        return tuple(self.key(*place) for place in self._tile_places(tile))

    def tile_numbers(self, tile: Tile) -> list[int]:
        """Where `tile_objects` stand in `planned_objects`, from 0."""
        return [self._number(*place) for place in self._tile_places(tile)]

    def object_number(self, key: str) -> int | None:
        """Where a key stands in `planned_objects`, from 0; None for a key that is not one of these."""
        parts = key.split("/")
        if len(parts) != (5 if self.sharded else 4):
            return None
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(numbers) != 4 or numbers[0] >= self.grid.levels:
            return None
        level, group, row, column = numbers
        rows, columns = self.object_counts(level)
        groups = 1 if self.sharded else self.channel_groups
        planned = row < rows and column < columns and group < groups and key == self.key(level, row, column, group)
        return self._number(level, row, column, group) if planned else None

    def _tile_places(self, tile: Tile) -> Iterator[tuple[int, int, int, int]]:
        """(level, row, column, group) of a tile's objects."""
        for level in self.grid.stage_levels(tile.stage):
            if self.sharded:
                yield level, tile.row, tile.column, 0
                continue
            per_tile = self.grid.level_shard(level) // self.grid.chunk
            rows, columns = self.tile_chunks(tile, level)
            for group in range(self.channel_groups):
                for row in range(rows):
                    for column in range(columns):
                        yield level, tile.row * per_tile + row, tile.column * per_tile + column, group

    def _number(self, level: int, row: int, column: int, group: int) -> int:
        first, rows, columns = self._numbering[level]
        return first + (group * rows + row) * columns + column

    @cached_property
    def _numbering(self) -> tuple[tuple[int, int, int], ...]:
        """(number of the first object, rows, columns) of each level."""
        found, first, groups = list[tuple[int, int, int]](), 0, 1 if self.sharded else self.channel_groups
        for level in range(self.grid.levels):
            rows, columns = self.object_counts(level)
            found.append((first, rows, columns))
            first += groups * rows * columns
        return tuple(found)

    def tile_chunks(self, tile: Tile, level: int) -> tuple[int, int]:
        """(rows, columns) of chunks of a tile that hold pixels of the level."""
        height, width = self.grid.tile_region(tile, level).shape
        return ceil_div(height, self.grid.chunk), ceil_div(width, self.grid.chunk)

    def owns(self, key: str) -> bool:
        """True if `key` is one of `planned_objects` or a level's metadata document."""
        level, slash, _ = key.partition("/")
        document = slash and level.isdecimal() and int(level) < self.grid.levels and key == self.array_key(int(level))
        return bool(document) or self.object_number(key) is not None

    def key_region(self, key: str) -> tuple[int, Region]:
        """(level, region of that level) which the object of a planned key holds."""
        level, _, *_, row, column = key.split("/")
        side = self.object_side(int(level))
        y0, x0 = int(row) * side, int(column) * side
        return int(level), Region(y0, x0, y0 + side, x0 + side) & Region.of_shape(self.grid.level_shape(int(level)))

    def array_key(self, level: int) -> str:
        """Key of a level's metadata document."""
        return f"{level}/zarr.json" if self.sharded else f"{level}/.zarray"

    def array_metadata(self, level: int) -> dict[str, Any]:
        """The zarr.json (v3) or .zarray (v2) document of a level."""
        shape = [self.channels, *self.grid.level_shape(level)]
        inner = [self.chunk_channels, self.grid.chunk, self.grid.chunk]
        return self._v3_metadata(level, shape, inner) if self.sharded else self._v2_metadata(shape, inner)

    def _v3_metadata(self, level: int, shape: list[int], inner: list[int]) -> dict[str, Any]:
        from tiledblend.containers.omezarr.codecs import v3_metadata

        little = {"name": "bytes", "configuration": {"endian": "little"}}
        stored: dict[str, Any] = {"name": "bytes"} if np.dtype(self.dtype).itemsize == 1 else little
        transpose = [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}] if self.interleaved else []
        sharding = {
            "chunk_shape": inner,
            "codecs": [*transpose, stored, *v3_metadata(self.output.compressor, self.dtype), {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        side = self.object_side(level)
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": np.dtype(self.dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.channels, side, side]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if self.dtype == "float32" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["c", "y", "x"],
            "attributes": {},
        }

    def _v2_metadata(self, shape: list[int], inner: list[int]) -> dict[str, Any]:
        from tiledblend.containers.omezarr.codecs import v2_metadata

        return {
            "zarr_format": 2,
            "shape": shape,
            "chunks": inner,
            "dtype": np.dtype(self.dtype).newbyteorder("<").str,
            "fill_value": 0.0 if self.dtype == "float32" else 0,
            "order": "C",
            "filters": None,
            "compressor": v2_metadata(self.output.compressor),
            "dimension_separator": "/",
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` understands: what the root attributes keep."""
        output = asdict(replace(self.output, levels=self.grid.levels, codec=str(self.output.compressor)))
        return {
            "shape": list(self.grid.shape),
            "channels": self.channels,
            "dtype": self.dtype,
            "is_rgb": self.is_rgb,
            "output": output,
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> ArrayLayout:
        """Layout of an `as_dict` document. Raises UsageError, KeyError, TypeError, ValueError for another one."""
        output = OutputSpec(**document["output"])
        height, width = document["shape"]
        grid = output.grid((int(height), int(width)))
        return cls(grid, int(document["channels"]), str(document["dtype"]), bool(document["is_rgb"]), output)


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
        self._digest, self._size = hashlib.sha256(), 0

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
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            yield Receipt(key, sum(map(len, parts)), digest.hexdigest())

    def close(self) -> None:
        """Give the memory to the next tile."""
        self._pieces.clear()
        self._spool.release()


class ShardIndex:
    """Where the chunks of a stored shard are; the inverse of what `TileWriter` writes."""

    def __init__(self, layout: ArrayLayout, level: int) -> None:
        self.side = layout.grid.level_shard(level) // layout.grid.chunk
        self.shape = layout.channel_groups, self.side, self.side, 2

    @cached_property
    def nbytes(self) -> int:
        """Length of the stored index with its checksum."""
        return int(np.prod(self.shape)) * 8 + 4

    def parse(self, tail: bytes) -> NDArray[np.uint64] | None:
        """(group, row, column, [offset, length]) of the shard's last `nbytes` bytes; None if they are damaged."""
        from tiledblend.containers.omezarr.codecs import crc32c

        if len(tail) != self.nbytes or crc32c(tail[:-CRC_BYTES]) != tail[-CRC_BYTES:]:
            return None
        return np.frombuffer(tail[:-CRC_BYTES], "<u8").astype(np.uint64).reshape(self.shape)


def _deinterleave() -> Callable[[Array, list[Array]], object]:
    """cv2.split: twice as fast as a numpy transpose, and the same bytes."""
    import cv2

    return cv2.split
