"""One tile: classify its chunks by the weights, read only what they need, feather, blend, halve, hand on row by row.

A tile is rendered by rows of chunks, so that a worker holds rows and compressed chunks, never the whole tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from tiledblend.compose.modes.mode import ChunkClass, Laid
from tiledblend.compose.pyramid import Pixels, PyramidRows, RowSink, TileStats, chunk_rows
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.scene import Scene
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Grid, Region, Tile, ceil_div
from tiledblend.kernels.blend import Contribution, to_dtype

BLOCK = 256


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of chunks, classified. parts: what is rendered at once. chunks: (class, how many), for the report."""

    parts: list[tuple[Region, ChunkClass]]
    chunks: list[tuple[ChunkClass, int]]


class TileRenderer:
    """Renders regions of one tile of a scene."""

    def __init__(self, scene: Scene, region: Region) -> None:
        self.scene, self.region = scene, region
        self.fields = scene.fields(region)
        self._block = block_side(scene.readers)
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
                out = _like(pixels, region.shape, self.scene.channels)
            out[part.shift(-region.y0, -region.x0).slices] = pixels
        assert out is not None
        return out

    def expect(self, region: Region, chunk: int, *, fetch: bool = True) -> int:
        """A row of chunks will be asked for: sources behind a network fetch for it. Returns the number of requests."""
        row = self._expected[region] = self._planned(region, chunk)
        needed: dict[int, list[Region]] = {}
        for part, kind in row.parts:
            reach = part if kind.copy else self.scene.reach(part)
            for index in kind.layers:
                inside = reach & self.fields[index].visible
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
        return self.scene.classify(self.fields, region)

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
        ground = self.scene.ground
        if not kind.layers:
            self.stats.background += region.size
            return np.broadcast_to(to_dtype(ground.background, ground.dtype), (*region.shape, ground.channels)).copy()
        if kind.copy:
            return self._copied(region, kind.layers[0])
        reach = self.scene.reach(region)
        done = self.scene.mode.combine(Laid(region, reach, _Brought(self.fields, kind.layers, reach), ground))
        self.stats.background += done.background
        return done.pixels

    def _copied(self, region: Region, index: int) -> Pixels:
        dtype = self.scene.dtype
        colour, alpha = self.fields[index].reader.read(region, rounded=True)
        pixels = to_dtype(colour, dtype)
        if not self.scene.has_alpha:
            return pixels
        full = np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)
        if alpha is None or not self.fields[index].reader.multiplies_alpha:
            own = np.full((*region.shape, 1), full, np.float32)
        else:
            own = (alpha * full)[:, :, None]
        return np.concatenate([pixels, to_dtype(own, dtype)], axis=2)


class _Brought(Mapping[int, Contribution]):
    """What layers bring to a region, by index: each read when it is asked for, and not kept."""

    def __init__(self, fields: Sequence[LayerField], indices: tuple[int, ...], region: Region) -> None:
        self._fields, self._indices, self._region = fields, indices, region

    def __getitem__(self, index: int) -> Contribution:
        return self._fields[index].contribution(self._region)

    def __contains__(self, index: object) -> bool:
        return index in self._indices

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


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


def render_tile(scene: Scene, grid: Grid, tile: Tile, sink: RowSink) -> TileStats:
    """Renders a tile of stage 0 with its part of the stage's levels into `sink`."""
    return render_rows(TileRenderer(scene, grid.tile_region(tile)), grid, tile, sink)


def render_rows(renderer: TileRenderer, grid: Grid, tile: Tile, sink: RowSink) -> TileStats:
    """As `render_tile`, by a renderer of the tile that has rendered nothing yet."""
    rows = PyramidRows(grid, tile, sink, renderer.scene.has_alpha)
    parts = list(chunk_rows(grid.tile_region(tile), grid.chunk))
    for number, (part, last) in enumerate(parts):
        # One row ahead: the next one's requests are under way while this one is blended.
        for ahead, _ in parts[number + (number > 0) : number + 2]:
            renderer.expect(ahead, grid.chunk)
        rows.push(tile.stage * grid.stage, renderer.chunk_row(part, grid.chunk), last=last)
    return renderer.stats


def render_region(scene: Scene, region: Region) -> Pixels:
    """Pixels of any region of the canvas: the same bits as the stored result's."""
    return TileRenderer(scene, region).chunk_row(region, max(region.shape[1], 1))
