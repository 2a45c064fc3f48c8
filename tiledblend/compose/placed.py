"""A source's pixels at the places of a frame on the canvas: of which of its levels, shifted or resampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.describe.placement import Placement
from tiledblend.geometry import Affine, Region
from tiledblend.kernels.affine import Warped
from tiledblend.kernels.resample import Method, Sampling, Scaled, ToSize
from tiledblend.sources.base import RasterSource
from tiledblend.sources.views import downsampling

Kept = dict[tuple[int, int, Region], NDArray[Any]]
"""Pixels by source, level and region."""
MOST_SHRINK = 2.0
"""Up to here one bilinear point per pixel is enough; beyond it a warped layer averages several."""
SOURCE_PIXELS = 1 << 21
"""Of a source that is resampled, most pixels that are held at once."""


class PixelsInFrame:
    """A source's pixels at the places of a frame's: those of one of its levels, shifted by whole pixels, or resampled.

    level: which is read. sampling: None when the level's own pixels are taken. shift: (y, x) of the frame's corner on
    the level then.
    """

    def __init__(
        self, source: RasterSource, level: int, sampling: Sampling | None, shift: tuple[int, int] = (0, 0)
    ) -> None:
        self.source, self.level, self.sampling, self.shift = source, level, sampling, shift

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the level."""
        return self.source.levels[self.level].shape

    @property
    def tile_side(self) -> int:
        """The longer side of the level's stored tiles, in pixels; 0 where it is resampled."""
        return 0 if self.sampling is not None else max(self.source.levels[self.level].tile)

    def read(self, region: Region, kept: Kept | None = None) -> NDArray[Any]:
        """Pixels of a region of the frame as the level has them; beyond its end the last ones are repeated."""
        region = region.shift(*self.shift)
        inside = region & Region.of_shape(self.shape)
        if inside == region:
            return self.read_source(region, kept)
        rows = np.clip(np.arange(region.y0, region.y1), 0, self.shape[0] - 1)
        columns = np.clip(np.arange(region.x0, region.x1), 0, self.shape[1] - 1)
        needed = Region(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        return self.read_source(needed, kept)[rows - needed.y0][:, columns - needed.x0]

    def native(self, region: Region) -> list[Region]:
        """Regions of the level that a region of the frame is made of."""
        if self.sampling is not None:
            return [self.sampling.source_region(part) for part in self.parts(region)]
        inside = region.shift(*self.shift) & Region.of_shape(self.shape)
        return [] if inside.is_empty else [inside]

    def read_source(self, native: Region, kept: Kept | None = None) -> NDArray[Any]:
        """Pixels of a region of the level. kept: is looked into first, and takes what is read."""
        if kept is None:
            return self.source.read(native, self.level)
        key = id(self.source), self.level, native
        if key not in kept:
            kept[key] = self.source.read(native, self.level)
        return kept[key]

    def parts(self, region: Region, method: Method = "linear") -> list[Region]:
        """A region of the frame cut until none needs more than a few megapixels of the source."""
        assert self.sampling is not None
        if region.size <= 1 or self.sampling.source_region(region, method).size <= SOURCE_PIXELS:
            return [region]
        return [part for half in _halves(region) for part in self.parts(half, method)]


def assembled(region: Region, parts: list[Region], made: Callable[[Region], NDArray[Any]]) -> NDArray[Any]:
    """A region of which one part after the other is made."""
    if len(parts) == 1:
        return made(parts[0])
    out: NDArray[Any] | None = None
    for part in parts:
        pixels = made(part)
        if out is None:
            out = np.empty((*region.shape, *pixels.shape[2:]), pixels.dtype)
        out[part.shift(-region.y0, -region.x0).slices] = pixels
    assert out is not None
    return out


def _halves(region: Region) -> tuple[Region, Region]:
    height, width = region.shape
    if height >= width:
        y = region.y0 + height // 2
        return Region(region.y0, region.x0, y, region.x1), Region(y, region.x0, region.y1, region.x1)
    x = region.x0 + width // 2
    return Region(region.y0, region.x0, region.y1, x), Region(region.y0, x, region.y1, region.x1)


def pixels_of(image: RasterSource, placement: Placement) -> PixelsInFrame:
    """An image's pixels in the frame of its placement."""
    frame = placement.frame
    if placement.to_layer is not None:
        return placed_pixels(image, placement.to_layer, (frame.y0, frame.x0), warped=placement.warped)
    return PixelsInFrame(image, 0, None if image.shape == frame.shape else ToSize(image.shape, frame.shape))


def placed_pixels(
    source: RasterSource, to_source: Affine, origin: tuple[int, int], *, warped: bool = False
) -> PixelsInFrame:
    """A source read through a map of canvas points to points of its level 0: from its coarsest level that is not
    coarser than the canvas, along each axis and in every direction."""
    scale = (to_source.stretch[0],) * 2 if warped else (to_source.e, to_source.a)
    level = max((i for i in range(len(source.levels)) if _is_fine(source, i, scale)), default=0)
    factor, shape = level_factor(source, level), source.levels[level].shape
    to_level = Affine.scaling(1 / factor[1], 1 / factor[0]).after(to_source)
    start = to_level.of(origin[1], origin[0])
    is_shift = (to_level.a, to_level.b, to_level.d, to_level.e) == (1.0, 0.0, 0.0, 1.0)
    if is_shift and all(s.is_integer() for s in start):
        return PixelsInFrame(source, level, None, (int(start[1]), int(start[0])))
    if warped:
        shrinks = to_level.stretch[1]
        points = 1 if shrinks <= MOST_SHRINK * (1 + 1e-9) else math.ceil(shrinks - 1e-9)
        return PixelsInFrame(source, level, Warped(to_level, shape, origin, points))
    scaled = Scaled((to_level.e, to_level.a), (to_level.f, to_level.c), shape, origin)
    return PixelsInFrame(source, level, scaled)


def _is_fine(source: RasterSource, level: int, scale: tuple[float, float]) -> bool:
    return all(f <= s * (1 + 1e-9) for f, s in zip(level_factor(source, level), scale, strict=True))


def level_factor(source: RasterSource, level: int) -> tuple[float, float]:
    """(y, x) pixels of level 0 that one pixel of `level` stands for."""
    fine, coarse = source.shape, source.levels[level].shape
    return downsampling(fine[0], coarse[0]), downsampling(fine[1], coarse[1])
