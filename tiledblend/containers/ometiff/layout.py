"""Which tile of an OME-TIFF lies in which part: pure arithmetic over levels, planes and a run's tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.objects import Data, ObjectStore
from tiledblend.containers.ometiff.encode import encoder
from tiledblend.containers.ometiff.kept import KeptLevel, KeptTiles
from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.errors import UsageError
from tiledblend.geometry import Grid, Region, Tile, ceil_div
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.tiff.encoded import NotKept, tiles_of

if TYPE_CHECKING:
    from tiledblend.containers.ometiff.part import TilePart
    from tiledblend.containers.ometiff.place import TiffPlace

FORMAT = 2
"""Revision of the order of tiles: a file is resumed by the same one."""
PIXEL_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}
"""numpy's name → OME's."""


@dataclass(frozen=True)
class TiffLayout:
    """How a result lies in a file. Picklable; no I/O.

    grid: its chunks are the file's tiles. is_rgb: RGB(A) pixels in one plane; other images have a plane a channel.
    stored: the grid's levels that the file has, level 0 first; shapes: (y, x) of each, at most the grid's. own_levels:
    a chunk of any level is the image's own, where one layer alone decides it and its image has that level. kept: how
    each level is stored, where that is the base's own way (`--compression keep`).

    A part is what one of the run's tiles puts: its own TIFF tiles of its stage's levels (`stage/row/column.part`), and,
    where a stage follows, the pixels of its last level without loss (`.pixels`), kept only while the run lasts.
    """

    grid: Grid
    channels: int
    dtype: str
    is_rgb: bool
    alpha: Alpha
    options: TiffOptions
    stored: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    own_levels: bool = False
    kept: tuple[KeptLevel, ...] = ()

    @classmethod
    def of_grid(
        cls, grid: Grid, channels: int, dtype: str, options: TiffOptions, *, is_rgb: bool, alpha: Alpha
    ) -> TiffLayout:
        """With every level of the grid."""
        levels = range(grid.levels)
        shapes = tuple(map(grid.level_shape, levels))
        return cls(grid, channels, dtype, is_rgb and channels in (3, 4), alpha, options, tuple(levels), shapes)

    def require_fit(self, where: str) -> None:
        """Raise UsageError when the file `where` cannot hold such pixels."""
        compression, has_alpha = self.options.compression, self.alpha is not Alpha.NONE
        if self.dtype not in PIXEL_TYPES:
            raise UsageError(f"{where}: {self.dtype} is not written as OME-TIFF; {', '.join(PIXEL_TYPES)} are")
        if compression == "jpeg" and (self.dtype != "uint8" or has_alpha):
            what = f"{self.dtype}{' with alpha' if has_alpha else ''}"
            raise UsageError(f"{where}: jpeg holds uint8 without alpha, not {what}; use --compression deflate")
        if compression == "jpeg2000" and self.dtype == "float32":
            raise UsageError(f"{where}: jpeg2000 holds uint8 and uint16, not float32; use --compression deflate")

    @property
    def planes(self) -> int:
        """Pages of one level."""
        return 1 if self.is_rgb else self.channels

    @property
    def samples(self) -> int:
        """Values of one pixel in one plane."""
        return self.channels if self.is_rgb else 1

    @property
    def pixels(self) -> int:
        """Of all levels."""
        return sum(height * width for height, width in self.shapes)

    @property
    def raw_bytes(self) -> int:
        """Of all tiles, uncompressed."""
        tile = self.options.tile**2 * self.channels * np.dtype(self.dtype).itemsize
        counts = (self.counts(number) for number in range(len(self.shapes)))
        return sum(rows * columns for rows, columns in counts) * tile

    def counts(self, number: int) -> tuple[int, int]:
        """(rows, columns) of tiles of one plane of a level of the file."""
        height, width = self.shapes[number]
        return ceil_div(height, self.options.tile), ceil_div(width, self.options.tile)

    def number_of(self, level: int) -> int | None:
        """Which of the file's levels a level of the grid is; None for one that it has not."""
        return self.stored.index(level) if level in self.stored else None

    def tile_levels(self, tile: Tile) -> tuple[int, ...]:
        """The file's levels that a tile has its part of, as levels of the grid."""
        return tuple(level for level in self.grid.stage_levels(tile.stage) if level in self.stored)

    def tile_region(self, tile: Tile, level: int) -> Region:
        """Pixels of a tile on one of the file's levels."""
        number = self.stored.index(level)
        return self.grid.tile_region(tile, level) & Region.of_shape(self.shapes[number])

    def tile_chunks(self, tile: Tile, level: int) -> tuple[int, int]:
        """(rows, columns) of TIFF tiles of a tile's part of one of the file's levels."""
        height, width = self.tile_region(tile, level).shape
        return (ceil_div(height, self.grid.chunk), ceil_div(width, self.grid.chunk)) if height and width else (0, 0)

    def entries(self, tile: Tile) -> int:
        """TIFF tiles in a part, all planes."""
        counts = (self.tile_chunks(tile, level) for level in self.tile_levels(tile))
        return self.planes * sum(rows * columns for rows, columns in counts)

    def blocks(self, tile: Tile) -> Iterator[tuple[int, int, tuple[int, int], tuple[int, int]]]:
        """(file's level, first entry, (rows, columns) of a plane, place of its first tile) of each level of a part.

        Entries are in the order of level, plane, row, column.
        """
        first = 0
        for level in self.tile_levels(tile):
            rows, columns = self.tile_chunks(tile, level)
            region, side = self.tile_region(tile, level), self.grid.chunk
            yield self.stored.index(level), first, (rows, columns), (region.y0 // side, region.x0 // side)
            first += self.planes * rows * columns

    # --- the run's objects

    def objects_of(self, stage: int) -> int:
        """Objects that a tile of a stage puts."""
        return 2 if stage + 1 < self.grid.stages else 1

    def tiles(self) -> Iterator[Tile]:
        """All tiles, in the order in which their parts lie in the file."""
        return (tile for stage in range(self.grid.stages) for tile in self.grid.tiles(stage))

    def tile_objects(self, tile: Tile) -> tuple[str, ...]:
        """As `Container.tile_objects`."""
        return (part_key(tile), pixels_key(tile))[: self.objects_of(tile.stage)]

    def tile_numbers(self, tile: Tile) -> list[int]:
        """As `Container.tile_numbers`."""
        first, columns = self._numbering[tile.stage]
        count = self.objects_of(tile.stage)
        start = first + (tile.row * columns + tile.column) * count
        return list(range(start, start + count))

    def planned_objects(self) -> Iterator[str]:
        """As `Container.planned_objects`."""
        return (key for tile in self.tiles() for key in self.tile_objects(tile))

    def object_count(self) -> int:
        """As `Container.object_count`."""
        stages = ((stage, self.grid.tile_counts(stage)) for stage in range(self.grid.stages))
        return sum(rows * columns * self.objects_of(stage) for stage, (rows, columns) in stages)

    def object_number(self, key: str) -> int | None:
        """As `Container.object_number`."""
        path, _, kind = key.rpartition(".")
        parts = path.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            return None
        tile = Tile(*map(int, parts))
        if not self.grid.has_tile(tile) or key not in self.tile_objects(tile):
            return None
        return self.tile_numbers(tile)[0] + (kind == "pixels")

    @cached_property
    def _numbering(self) -> tuple[tuple[int, int], ...]:
        """(number of the first object, columns) of each stage."""
        found, first = list[tuple[int, int]](), 0
        for stage in range(self.grid.stages):
            rows, columns = self.grid.tile_counts(stage)
            found.append((first, columns))
            first += rows * columns * self.objects_of(stage)
        return tuple(found)

    def object_reads(self) -> int:
        """As `Container.object_reads`."""
        counts = (self.grid.tile_counts(stage) for stage in range(self.grid.stages - 1))
        # Each part once more, by the commit.
        return sum(rows * columns for rows, columns in counts) + sum(1 for _ in self.tiles())

    @property
    def documents(self) -> int:
        """As `Container.documents`: the file."""
        return 1

    @property
    def is_drafted(self) -> bool:
        """As `Container.is_drafted`."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """As `Container.as_dict`."""
        own = {"container": "ome-tiff", "format": FORMAT, "shape": list(self.grid.shape), "shard": self.grid.shard}
        plain = {"levels": self.grid.levels, "channels": self.channels, "dtype": self.dtype, "is_rgb": self.is_rgb}
        stored = {"stored": list(self.stored), "shapes": [list(shape) for shape in self.shapes]}
        stored |= {"own_levels": self.own_levels, "kept": [level.as_dict() for level in self.kept]}
        return {**own, **plain, **stored, "alpha": self.alpha.value, "options": asdict(self.options)}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> TiffLayout:
        """The inverse of `as_dict`. Raises KeyError, TypeError, ValueError, UsageError."""
        if document["format"] != FORMAT:
            raise ValueError("another revision")
        options = TiffOptions(**document["options"])
        height, width = document["shape"]
        grid = Grid((int(height), int(width)), options.tile, int(document["shard"]), int(document["levels"]))
        shapes = tuple((int(y), int(x)) for y, x in document["shapes"])
        facts = int(document["channels"]), str(document["dtype"]), bool(document["is_rgb"])
        levels = tuple(map(int, document["stored"]))
        kept = tuple(map(KeptLevel.from_dict, document["kept"]))
        return cls(grid, *facts, Alpha(document["alpha"]), options, levels, shapes, bool(document["own_levels"]), kept)

    # --- parts

    @property
    def keeps(self) -> bool:
        """True when a tile is made with regard to what its layers' images have stored."""
        return self.own_levels or bool(self.kept)

    def stored_tiles(self, image: RasterSource, number: int, level: int) -> KeptTiles | None:
        """The tiles of level `number` of an image, if they are as the file's level `level` stores them."""
        if not self.kept:
            return None
        kept = self.kept[self.stored.index(level)]
        try:
            tiles = tiles_of(image, number)
        except NotKept:
            return None
        coding = tiles.coding
        alike = coding.side == self.grid.chunk and coding.dtype == self.dtype
        alike = alike and (coding.samples, coding.planes) == (self.samples, self.planes)
        return KeptTiles(tiles, complete=kept.tables is None) if alike and kept.takes(coding) else None

    def encoder(self, level: int) -> Callable[[NDArray[Any]], Data]:
        """Function from the pixels of one tile of the file's level `level` to its stored bytes. For one thread."""
        if self.kept:
            return self.kept[self.stored.index(level)].encoder(self.grid.chunk)
        return encoder(self.options)

    def writer(self, store: ObjectStore, tile: Tile) -> TilePart:
        """As `Container.writer`."""
        from tiledblend.containers.ometiff.part import TilePart

        return TilePart(self, store, tile)

    def read(self, store: ObjectStore, level: int, region: Region) -> NDArray[Any]:
        """As `Container.read`: from the pixels of a stage's last level."""
        from tiledblend.containers.ometiff.part import read_pixels

        return read_pixels(self, store, level, region)

    def problem(self, key: str, data: bytes) -> str | None:
        """As `Container.problem`: a part's own checksum."""
        from tiledblend.containers.ometiff.part import part_problem

        return part_problem(self, key, data)

    def place(self, final: ObjectStore) -> TiffPlace:
        """As `Container.place`."""
        from tiledblend.containers.ometiff.place import TiffPlace

        return TiffPlace(final)


def part_key(tile: Tile) -> str:
    """Of a tile's TIFF tiles."""
    return f"{tile.stage}/{tile.row}/{tile.column}.part"


def pixels_key(tile: Tile) -> str:
    """Of what the next stage starts from."""
    return f"{tile.stage}/{tile.row}/{tile.column}.pixels"
