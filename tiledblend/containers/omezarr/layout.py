"""Which object holds which pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.encoding import ChunkEncoding
from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.errors import UsageError
from tiledblend.geometry import Grid, Region, Tile, ceil_div

if TYPE_CHECKING:
    from tiledblend.containers.omezarr.writer import TileWriter
    from tiledblend.containers.place import Place

Array = NDArray[Any]


@dataclass(frozen=True)
class ArrayLayout:
    """Where the pixels of every level lie in stored objects. Picklable; no I/O.

    channels: number of channels, at least 1. dtype: "uint8", "uint16" or "float32". is_rgb: the channels are RGB or
    RGBA: a chunk then holds all of them, otherwise one. The arrays are (c, y, x). OME-Zarr 0.5 and later: an object is
    a shard over all channels, `level/c/0/row/column`. 0.4: an object is a chunk, `level/channel/row/column`.
    packed: the objects become the members of one file (.ozx).
    """

    grid: Grid
    channels: int
    dtype: str
    is_rgb: bool
    output: OutputSpec
    packed: bool = False

    def __post_init__(self) -> None:
        if self.packed and not self.sharded:
            raise UsageError("an .ozx holds OME-Zarr 0.5 or later; use --ome-zarr 0.6 or 0.5")
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
            **({"packed": True} if self.packed else {}),
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> ArrayLayout:
        """Layout of an `as_dict` document. Raises UsageError, KeyError, TypeError, ValueError for another one."""
        output = OutputSpec(**document["output"])
        height, width = document["shape"]
        grid = output.grid((int(height), int(width)))
        facts = int(document["channels"]), str(document["dtype"]), bool(document["is_rgb"])
        return cls(grid, *facts, output, bool(document.get("packed", False)))

    def object_reads(self) -> int:
        """As `Container.object_reads`: the last level of each stage that another one follows."""
        groups, found = 1 if self.sharded else self.channel_groups, 0
        for stage in range(1, self.grid.stages):
            rows, columns = self.object_counts(stage * self.grid.stage - 1)
            found += rows * columns * groups
        return found

    @property
    def documents(self) -> int:
        """As `Container.documents`: of the arrays, of the group, and the manifest."""
        return self.grid.levels + (1 if self.sharded else 2) + 1

    @property
    def is_drafted(self) -> bool:
        """As `Container.is_drafted`: shards."""
        return self.sharded

    def writer(self, store: ObjectStore, tile: Tile) -> TileWriter:
        """As `Container.writer`."""
        from tiledblend.containers.omezarr.writer import TileWriter

        return TileWriter(self, store, tile)

    def read(self, store: ObjectStore, level: int, region: Region) -> Array:
        """As `Container.read`."""
        from tiledblend.containers.omezarr.stored import read_region

        return read_region(self, store, level, region)

    def problem(self, key: str, data: bytes) -> str | None:
        """As `Container.problem`."""
        from tiledblend.containers.omezarr.stored import object_problem

        return object_problem(self, key, data)

    def place(self, final: ObjectStore) -> Place:
        """As `Container.place`."""
        if self.packed:
            from tiledblend.containers.ozx.place import OzxPlace

            return OzxPlace(final)
        from tiledblend.containers.omezarr.place import ZarrPlace

        return ZarrPlace(final)
