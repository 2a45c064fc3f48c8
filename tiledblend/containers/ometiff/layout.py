"""Which tile of an OME-TIFF lies where: pure arithmetic over its levels, planes and the order of writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.errors import UsageError
from tiledblend.geometry import Region, ceil_div
from tiledblend.sources.base import Alpha, RasterSource

PIXEL_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}
"""numpy's name → OME's."""
BLOCK_BYTES = 16_000_000
BLOCK_TILES = 8


class Block(NamedTuple):
    """What one task reads and compresses: a run of tiles of one tile row, of every plane. region: in pixels of
    `level`."""

    number: int
    level: int
    region: Region


@dataclass(frozen=True)
class TiffLayout:
    """shapes: (y, x) of each level. interleaved: RGB(A) pixels in one plane; other images have a plane a channel."""

    shapes: tuple[tuple[int, int], ...]
    channels: int
    dtype: str
    interleaved: bool
    alpha: Alpha
    options: TiffOptions

    @classmethod
    def of(cls, source: RasterSource, options: TiffOptions) -> TiffLayout:
        """How `source` is stored."""
        shapes = tuple(level.shape for level in source.levels)
        interleaved = source.is_rgb and source.channels in (3, 4)
        return cls(shapes, source.channels, source.dtype.name, interleaved, source.alpha, options)

    @classmethod
    def planned(cls, result: ArrayLayout, options: TiffOptions, *, has_alpha: bool) -> TiffLayout:
        """How a result of this layout will be stored."""
        shapes = tuple(result.grid.level_shape(level) for level in range(result.grid.levels))
        alpha = Alpha.STRAIGHT if has_alpha else Alpha.NONE
        return cls(shapes, result.channels, result.dtype, result.is_rgb, alpha, options)

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
        return 1 if self.interleaved else self.channels

    @property
    def samples(self) -> int:
        """Values of one pixel in one plane."""
        return self.channels if self.interleaved else 1

    @property
    def pixels(self) -> int:
        """Of all levels."""
        return sum(height * width for height, width in self.shapes)

    @property
    def raw_bytes(self) -> int:
        """Of all tiles, uncompressed."""
        counts = (self.tile_counts(level) for level in range(len(self.shapes)))
        return sum(rows * columns for rows, columns in counts) * self._tile_bytes

    @property
    def _tile_bytes(self) -> int:
        """Of one tile, all planes."""
        return self.options.tile**2 * self.channels * np.dtype(self.dtype).itemsize

    @property
    def run(self) -> int:
        """Tiles side by side in a block, so that it is read in one go and holds about `BLOCK_BYTES` at most."""
        return max(1, min(BLOCK_TILES, BLOCK_BYTES // self._tile_bytes))

    def tile_counts(self, level: int) -> tuple[int, int]:
        """(rows, columns) of tiles of one plane of a level."""
        height, width = self.shapes[level]
        return ceil_div(height, self.options.tile), ceil_div(width, self.options.tile)

    @property
    def block_count(self) -> int:
        """Number of `blocks`."""
        counts = (self.tile_counts(level) for level in range(len(self.shapes)))
        return sum(rows * ceil_div(columns, self.run) for rows, columns in counts)

    def blocks(self, first: int = 0) -> Iterator[Block]:
        """Blocks in the order of writing, from number `first` on: level by level, row by row."""
        regions = ((level, region) for level in range(len(self.shapes)) for region in self._regions(level))
        numbered = (Block(number, level, region) for number, (level, region) in enumerate(regions))
        return islice(numbered, first, None)

    def _regions(self, level: int) -> Iterator[Region]:
        (height, width), tile = self.shapes[level], self.options.tile
        for y in range(0, height, tile):
            for x in range(0, width, tile * self.run):
                yield Region(y, x, min(y + tile, height), min(x + tile * self.run, width))

    def by_plane(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values of all tiles in the order of writing → for each level (plane, tile in row order).

        >>> layout = TiffLayout(((16, 48),), 2, "uint16", False, Alpha.NONE, TiffOptions(tile=16))
        >>> layout.by_plane(np.arange(6))
        [array([[0, 1, 2],
               [3, 4, 5]])]
        """
        levels, start = [], 0
        for level in range(len(self.shapes)):
            rows, columns = self.tile_counts(level)
            stop = start + rows * columns * self.planes
            table = values[start:stop].reshape(rows, self.planes * columns)
            runs = []
            for first in range(0, columns, self.run):
                width = min(self.run, columns - first)
                at = first * self.planes
                runs.append(table[:, at : at + width * self.planes].reshape(rows, self.planes, width))
            levels.append(np.concatenate(runs, axis=2).transpose(1, 0, 2).reshape(self.planes, rows * columns))
            start = stop
        return levels
