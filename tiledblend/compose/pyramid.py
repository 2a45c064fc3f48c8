"""A tile's rows of chunks on their way: handed to a sink, and halved into the tile's further levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Grid, Region, Tile
from tiledblend.kernels.halve import halve_tile

Pixels = NDArray[Any]


class RowSink(Protocol):
    """Takes the rows of chunks of a tile: (h, w, channels) pixels of one level, top to bottom within a level."""

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Pixels) -> None: ...


@dataclass(slots=True)
class TileStats:
    """What became of a tile's level-0 chunks. background: pixels where no layer has weight."""

    copied: int = 0
    blended: int = 0
    empty: int = 0
    background: int = 0


@dataclass
class PyramidRows:
    """Passes rows of chunks on and halves them into the tile's further levels, row by row."""

    grid: Grid
    tile: Tile
    sink: RowSink
    has_alpha: bool
    _pending: dict[int, list[Pixels]] = field(default_factory=dict)
    _rows: dict[int, int] = field(default_factory=dict)

    def push(self, level: int, pixels: Pixels, *, last: bool) -> None:
        """One row of chunks of `level`. last: it is the tile's last on that level."""
        row = self._rows.get(level, 0)
        self._rows[level] = row + 1
        self.sink.add_chunk_row(level, row, pixels)
        below = level + 1
        if below not in self.grid.stage_levels(self.tile.stage):
            return
        pending = self._pending.setdefault(below, [])
        pending.append(halve_tile(pixels, has_alpha=self.has_alpha))
        if last or sum(part.shape[0] for part in pending) >= self.grid.chunk:
            whole = pending[0] if len(pending) == 1 else np.concatenate(pending, axis=0)
            self._pending[below] = []
            self.push(below, whole, last=last)


def chunk_rows(region: Region, chunk: int) -> Iterator[tuple[Region, bool]]:
    """(rows of chunks of a region from its top, True for the last one)."""
    for y in range(region.y0, region.y1, chunk):
        yield Region(y, region.x0, min(y + chunk, region.y1), region.x1), y + chunk >= region.y1


ReadLevel = Callable[[int, Region], Pixels]
"""Reads a region of a stored level: (level, region) -> (h, w, channels)."""


def shrink_tile(grid: Grid, tile: Tile, read: ReadLevel, sink: RowSink, *, has_alpha: bool) -> None:
    """Renders a tile of a later stage from the stored level above it."""
    level = tile.stage * grid.stage
    finer = Region.of_shape(grid.level_shape(level - 1))
    rows = PyramidRows(grid, tile, sink, has_alpha)

    def halved(part: Region) -> Pixels:
        source = Region(2 * part.y0, 2 * part.x0, 2 * part.y1, 2 * part.x1) & finer
        return halve_tile(read(level - 1, source), has_alpha=has_alpha)

    for part, last in chunk_rows(grid.tile_region(tile), grid.chunk):
        # A row has four times its pixels one level above: they are read in two halves.
        pixels = [halved(half) for half in _halves(part)]
        rows.push(level, pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=0), last=last)


def _halves(region: Region) -> list[Region]:
    """The upper and the lower rows of a region, or the region if it has only one."""
    middle = region.y0 + (region.shape[0] + 1) // 2
    lower = Region(middle, region.x0, region.y1, region.x1)
    return [Region(region.y0, region.x0, middle, region.x1), *([] if lower.is_empty else [lower])]
