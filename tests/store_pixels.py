"""A random image, its pyramid and its way into a store: what several store tests start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.commit import commit
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.omezarr.writer import TileWriter
from tiledblend.containers.output import Output, begin

Array = NDArray[Any]
JOB = {"feather": {"sigma": 16}, "inputs": ["a.svs"]}


def make_layout(
    shape: tuple[int, int], channels: int = 3, dtype: str = "uint8", is_rgb: bool = True, **output: Any
) -> ArrayLayout:
    spec = OutputSpec(**{"chunk": 16, "shard": 32, **output})
    return ArrayLayout(spec.grid(shape), channels, dtype, is_rgb, spec)


def random_pyramid(layout: ArrayLayout, seed: int = 0) -> list[Array]:
    """Unrelated random (y, x, c) levels, with a flat part: writing does not care how a level came about."""
    rng = np.random.default_rng(seed)
    levels = []
    for level in range(layout.grid.levels):
        pixels = rng.integers(0, 200, (*layout.grid.level_shape(level), layout.channels)).astype(layout.dtype)
        pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2] = 7
        levels.append(pixels)
    return levels


def write_tile(output: Output | Any, layout: ArrayLayout, tile: Any, levels: list[Array]) -> Any:
    writer = TileWriter(layout, output, tile)
    for level in layout.grid.stage_levels(tile.stage):
        pixels = levels[level][layout.grid.tile_region(tile, level).slices]
        for row in range(layout.tile_chunks(tile, level)[0]):
            side = layout.grid.chunk
            writer.add_chunk_row(level, row, pixels[row * side : (row + 1) * side])
    return writer.finish()


def write_missing(output: Output, levels: list[Array], stop_after: int | None = None) -> int:
    """Write the tiles that have no receipt; returns how many."""
    ledger = output.open_ledger()
    count = 0
    for tile in list(output.missing_tiles()):
        if count == stop_after:
            break
        ledger.record(tile, write_tile(output.store, output.layout, tile, levels))
        count += 1
    return count


def write_result(path: Path, layout: ArrayLayout, levels: list[Array] | None = None, **options: Any) -> list[Array]:
    """A whole result at `path`; returns its levels."""
    levels = random_pyramid(layout) if levels is None else levels
    output = begin(str(path), layout, job=JOB, **options)
    write_missing(output, levels)
    commit(output, ImageMetadata(name="test", pixel_size_um=(0.5, 0.25)))
    return levels
