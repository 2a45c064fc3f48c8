"""One tile: classify its chunks by the weights, read only what they need, feather, blend, halve, hand on row by row.

A tile is rendered by rows of chunks, so that a worker holds rows and compressed chunks, never the whole tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.reading import Kept, LayerReader, MaskRule, layer_readers
from tiledblend.describe.composite import Composite
from tiledblend.geometry import Grid, Region, Tile, ceil_div
from tiledblend.kernels.blend import Contribution, blend_tile, to_dtype
from tiledblend.kernels.feather import FeatheredMask, inside_only
from tiledblend.kernels.halve import halve_tile

Pixels = NDArray[Any]
BLOCK = 256


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


class LayerField:
    """A layer's weight over one region of the canvas, prepared once: its feathered mask, border, opacity."""

    def __init__(self, reader: LayerReader, region: Region) -> None:
        self.reader = reader
        self.visible = reader.visible & region
        self._mask: FeatheredMask | None = None
        if not self.visible.is_empty and reader.has_mask and reader.layer.opacity > 0:
            where = self._in_mask(self.visible)
            self._mask = FeatheredMask(reader.kernel, where, reader.mask_shape, reader.mask_units, reader.uniform_units)

    def _in_mask(self, region: Region) -> Region:
        return region.shift(-self.reader.mask_frame.y0, -self.reader.mask_frame.x0)

    def cover_bounds(self, region: Region) -> tuple[float, float]:
        """(lower, upper) bound of the weight in `region`, the image's own alpha left out; 0 and 1 are exact."""
        part = region & self.visible
        if part.is_empty or self.reader.layer.opacity == 0:
            return 0.0, 0.0
        low, high = self.reader.border.bounds(part)
        if self._mask is not None:
            mask_low, mask_high = self._mask.bounds(self._in_mask(part))
            if self.reader.layer.side == "inside" and not self.reader.kernel.is_identity:
                mask_low, mask_high = (max(0.0, 2 * b - 1) for b in (mask_low, mask_high))
            low, high = low * mask_low, high * mask_high
        if part != region:
            low = 0.0
        opacity = self.reader.layer.opacity
        return low * opacity, high * opacity

    def bounds(self, region: Region) -> tuple[float, float]:
        """As `cover_bounds`, the image's alpha included (unknown until it is read)."""
        low, high = self.cover_bounds(region)
        return (0.0 if self.reader.multiplies_alpha else low), high

    def cover(self, region: Region) -> NDArray[np.float32]:
        """The weight over the whole of `region`, the image's own alpha left out; zeros outside the layer."""
        weight = np.zeros(region.shape, np.float32)
        part = region & self.visible
        if not part.is_empty:
            inner = self._factor(part, None)
            weight[part.shift(-region.y0, -region.x0).slices] = 1 if inner is None else inner
        return weight

    def contribution(self, region: Region) -> Contribution:
        """Colours and weights over the whole of `region`, zeros outside the layer."""
        part = region & self.visible
        colour, alpha = self.reader.read(part)
        cover = self._factor(part, None)
        if not self.reader.multiplies_alpha:
            alpha = None  # it counts once, as the mask
        weight = cover if alpha is None else self._factor(part, alpha)
        if part == region:
            return Contribution(colour, weight, alpha, cover)
        return _embedded(Contribution(colour, weight, alpha, cover), part, region)

    def _factor(self, part: Region, alpha: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """opacity x alpha x feather(mask) x border, in that order, float32; None where it is 1 everywhere."""
        opacity = np.float32(self.reader.layer.opacity)
        weight: NDArray[np.float32] | None = None
        if alpha is not None:
            weight = opacity * alpha
        mask = self._mask_weight(part)
        if mask is not None:
            weight = (opacity * mask if opacity != 1 else mask) if weight is None else weight * mask
        border = self.reader.border.weight(part)
        if border is not None:
            weight = opacity * border if weight is None else weight * border
        if weight is None and opacity != 1:
            weight = np.full(part.shape, opacity, np.float32)
        return weight

    def _mask_weight(self, part: Region) -> NDArray[np.float32] | None:
        if self._mask is None:
            return None
        weight = self._mask.weight(self._in_mask(part))
        if self.reader.layer.side == "inside" and not self.reader.kernel.is_identity:
            inside_only(weight)
        return weight


def _embedded(inner: Contribution, part: Region, region: Region) -> Contribution:
    """A contribution to part of a region as one to all of it."""
    at = part.shift(-region.y0, -region.x0).slices
    colour = np.zeros((*region.shape, inner.colour.shape[2]), inner.colour.dtype)
    colour[at] = inner.colour

    def grown(values: NDArray[np.float32] | None, inside: float) -> NDArray[np.float32]:
        out = np.zeros(region.shape, np.float32)
        out[at] = inside if values is None else values
        return out

    alpha = None if inner.alpha is None else grown(inner.alpha, 1)
    return Contribution(colour, grown(inner.weight, 1), alpha, grown(inner.cover, 1))


@dataclass(frozen=True, slots=True)
class ChunkClass:
    """What a chunk needs: `layers` (indices, bottom first) to be read. copy: the one layer's pixels are the result."""

    layers: tuple[int, ...]
    copy: bool

    @property
    def is_decided(self) -> bool:
        """True when no pixel needs a weight."""
        return self.copy or not self.layers

    @property
    def kind(self) -> str:
        """ "empty", "copied" or "blended"."""
        return "empty" if not self.layers else "copied" if self.copy else "blended"


def classify(fields: Sequence[LayerField], region: Region, mode: str, *, keeps_alpha: bool) -> ChunkClass:
    """Which layers decide a region: those with weight; for `over`, from the topmost that covers everything up.

    keeps_alpha: `Composite.keeps_bottom_alpha`.
    """
    needed: list[int] = []
    for i in range(len(fields) - 1, -1, -1):
        low, high = fields[i].bounds(region)
        if high == 0:
            continue
        needed.insert(0, i)
        if low == 1 and mode == "over":
            break
    if len(needed) != 1:
        return ChunkClass(tuple(needed), False)
    only = fields[needed[0]]
    whole = only.cover_bounds(region)[0] if keeps_alpha and needed[0] == 0 else only.bounds(region)[0]
    return ChunkClass(tuple(needed), whole == 1)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of chunks, classified. parts: what is rendered at once. chunks: (class, how many), for the report."""

    parts: list[tuple[Region, ChunkClass]]
    chunks: list[tuple[ChunkClass, int]]


class TileRenderer:
    """Renders regions of one tile of a composite."""

    def __init__(self, composite: Composite, rules: tuple[MaskRule | None, ...], region: Region) -> None:
        self.composite = composite
        kept: Kept = {}
        self.fields = [LayerField(reader, region) for reader in layer_readers(composite, rules, kept)]
        kept.clear()  # preparing a field has read its mask
        self.background = composite.background_values()
        self._block = block_side([field.reader for field in self.fields])
        self.stats = TileStats()
        self._expected: dict[Region, _Row] = {}

    def chunk_row(self, region: Region, chunk: int) -> Pixels:
        """Pixels (h, w, channels) of one row of chunks in the canvas's dtype.

        Blocks finer than a chunk are classified, so that around a mask's edge little is read twice and blended, but no
        finer than an image's stored tiles, which would be decoded twice; neighbours of one class are done together.
        """
        row = self._expected.pop(region, None) or self._planned(region, chunk)
        for kind, chunks in row.chunks:
            setattr(self.stats, kind.kind, getattr(self.stats, kind.kind) + chunks)
        parts = row.parts
        if len({kind for _, kind in parts}) == 1:
            return self._run(region, parts[0][1])
        out: Pixels | None = None
        for part, kind in parts:
            pixels = self._run(part, kind)
            if out is None:
                out = _like(pixels, region.shape, self.composite.channels)
            out[part.shift(-region.y0, -region.x0).slices] = pixels
        assert out is not None
        return out

    def expect(self, region: Region, chunk: int, *, fetch: bool = True) -> int:
        """A row of chunks will be asked for: sources behind a network fetch for it. Returns the number of requests."""
        row = self._expected[region] = self._planned(region, chunk)
        needed: dict[int, list[Region]] = {}
        for part, kind in row.parts:
            for index in kind.layers:
                inside = part & self.fields[index].visible
                if not inside.is_empty:
                    needed.setdefault(index, []).append(inside)
        return sum(self.fields[index].reader.expect(regions, fetch=fetch) for index, regions in needed.items())

    def _planned(self, region: Region, chunk: int) -> _Row:
        whole = self._classified(region)
        if whole.is_decided:
            return _Row([(region, whole)], [(whole, ceil_div(region.shape[1], chunk))])
        chunks = []
        for x in range(region.x0, region.x1, chunk):
            part = Region(region.y0, x, region.y1, min(x + chunk, region.x1))
            chunks.append((part, self._classified(part)))
        bands = [Region(y0, region.x0, y1, region.x1) for y0, y1 in _cuts(region.y0, region.y1, self._block)]
        parts = [part for band in bands for part in self._runs(band, chunks)]
        return _Row(parts, [(kind, 1) for _, kind in chunks])

    def _classified(self, region: Region) -> ChunkClass:
        return classify(self.fields, region, self.composite.mode, keeps_alpha=self.composite.keeps_bottom_alpha)

    def _runs(self, band: Region, chunks: Sequence[tuple[Region, ChunkClass]]) -> Iterator[tuple[Region, ChunkClass]]:
        """Neighbouring blocks of a band that are of one class, together."""
        for kind, same in groupby(self._blocks(band, chunks), key=itemgetter(0)):
            run = [block for _, block in same]
            yield Region(band.y0, run[0].x0, band.y1, run[-1].x1), kind

    def _blocks(self, band: Region, chunks: Sequence[tuple[Region, ChunkClass]]) -> Iterator[tuple[ChunkClass, Region]]:
        for chunk, kind in chunks:
            part = chunk & band
            if kind.is_decided:
                yield kind, part
                continue
            for x0, x1 in _cuts(part.x0, part.x1, self._block):
                block = Region(part.y0, x0, part.y1, x1)
                yield self._classified(block), block

    def _run(self, region: Region, kind: ChunkClass) -> Pixels:
        dtype = self.composite.dtype
        if not kind.layers:
            self.stats.background += region.size
            return np.broadcast_to(to_dtype(self.background, dtype), (*region.shape, self.composite.channels)).copy()
        if kind.copy:
            return self._copied(region, kind.layers[0])
        layers = [self.fields[i].contribution(region) for i in kind.layers]
        if self.composite.has_alpha and kind.layers[0] != 0:
            # The bottom layer's own alpha comes through only where it is the bottom layer.
            height_width = region.shape
            nothing = np.zeros(height_width, np.float32)
            layers.insert(0, Contribution(np.zeros_like(layers[0].colour), nothing, None, nothing))
        done = blend_tile(layers, self.background, dtype, self.composite.mode, has_alpha=self.composite.has_alpha)
        self.stats.background += done.background
        return done.pixels

    def _copied(self, region: Region, index: int) -> Pixels:
        dtype = self.composite.dtype
        colour, alpha = self.fields[index].reader.read(region)
        pixels = to_dtype(colour, dtype)
        if not self.composite.has_alpha:
            return pixels
        full = np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)
        if alpha is None or not self.fields[index].reader.multiplies_alpha:
            own = np.full((*region.shape, 1), full, np.float32)
        else:
            own = (alpha * full)[:, :, None]
        return np.concatenate([pixels, to_dtype(own, dtype)], axis=2)


def block_side(readers: Sequence[LayerReader]) -> int:
    """Pixels: what is classified and blended at once is no finer than the stored tiles that are decoded for it."""
    return max([BLOCK, *(reader.pixels.tile_side for reader in readers)])


def _cuts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut at the multiples of `step`."""
    while start < stop:
        end = min(start - start % step + step, stop)
        yield start, end
        start = end


def _like(pixels: Pixels, shape: tuple[int, int], channels: int) -> Pixels:
    """An empty array with the memory order of `pixels`."""
    if pixels.shape[2] > 1 and pixels.strides[2] > pixels.strides[1]:
        return np.moveaxis(np.empty((channels, *shape), pixels.dtype), 0, 2)
    return np.empty((*shape, channels), pixels.dtype)


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


def render_tile(
    composite: Composite, rules: tuple[MaskRule | None, ...], grid: Grid, tile: Tile, sink: RowSink
) -> TileStats:
    """Renders a tile of stage 0 with its part of the stage's levels into `sink`."""
    return render_rows(TileRenderer(composite, rules, grid.tile_region(tile)), grid, tile, sink)


def render_rows(renderer: TileRenderer, grid: Grid, tile: Tile, sink: RowSink) -> TileStats:
    """As `render_tile`, by a renderer of the tile that has rendered nothing yet."""
    rows = PyramidRows(grid, tile, sink, renderer.composite.has_alpha)
    parts = list(chunk_rows(grid.tile_region(tile), grid.chunk))
    for number, (part, last) in enumerate(parts):
        # One row ahead: the next one's requests are under way while this one is blended.
        for ahead, _ in parts[number + (number > 0) : number + 2]:
            renderer.expect(ahead, grid.chunk)
        rows.push(tile.stage * grid.stage, renderer.chunk_row(part, grid.chunk), last=last)
    return renderer.stats


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


def render_region(composite: Composite, rules: tuple[MaskRule | None, ...], region: Region) -> Pixels:
    """Pixels of any region of the canvas: the same bits as the stored result's."""
    return TileRenderer(composite, rules, region).chunk_row(region, max(region.shape[1], 1))
