"""One tile where stored chunks are passed on: what a source zarr already holds encoded is neither decoded nor encoded.

A chunk of level k is passed on when one layer's pixels alone are its level-0 pixels, and the layer's image stores the
same chunk in the output's encoding: of level 0 any zarr, of further levels pyramids that tiledblend halved by the same
rule. What is left is rendered as ever; where a level needs pixels of a chunk that was passed on, they are read from
that level of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.compose.pyramid import RowSink, TileStats
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.render import TileRenderer, render_rows
from tiledblend.compose.scene import Scene
from tiledblend.containers.omezarr.codecs import decode, stated_size
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.errors import VerificationError
from tiledblend.geometry import Region, Tile
from tiledblend.guard.crash import decoding
from tiledblend.kernels.halve import halve_tile, halving_rule
from tiledblend.sources.base import Alpha
from tiledblend.sources.zarr.encoded import EncodedChunk, EncodedImage, EncodedLevel, Place

Pixels = NDArray[Any]
NOBODY = -1


class ChunkSink(RowSink, Protocol):
    """Takes single chunks too, as pixels or encoded (`store.layout.TileWriter`)."""

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Pixels) -> None: ...

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None: ...


@dataclass(frozen=True)
class StoredLayer:
    """A layer whose image stores chunks in the output's encoding, on the output's grid.

    origin: canvas (y, x) of the image's first pixel, end: just beyond its last one. levels: the image's stored levels
    that are the output's levels 0, 1, ...
    """

    reader: LayerReader
    origin: tuple[int, int]
    end: tuple[int, int]
    levels: tuple[EncodedLevel, ...]
    pads_with_zeros: bool


def stored_layer(reader: LayerReader, layout: ArrayLayout, scene: Scene) -> StoredLayer | None:
    """The layer as one whose chunks may be passed on; None if they never can."""
    image, pixels = reader.layer.image, reader.pixels
    if pixels.sampling is not None or reader.tone is not None:
        return None
    if image.channels != layout.channels or not keeps_alpha(reader, scene):
        return None
    encoded = image.encoded()
    if encoded is None:
        return None
    origin = reader.frame.y0 - pixels.shift[0], reader.frame.x0 - pixels.shift[1]
    end = origin[0] + pixels.shape[0], origin[1] + pixels.shape[1]
    levels = tuple(_usable_levels(encoded, pixels.level, origin, layout, scene.has_alpha))
    return StoredLayer(reader, origin, end, levels, encoded.halving is not None) if levels else None


def keeps_alpha(reader: LayerReader, scene: Scene) -> bool:
    """True when the copied pixels are the image's own, its alpha included."""
    if not scene.has_alpha:
        return not reader.has_alpha
    return reader.index == 0 and reader.layer.image.alpha is Alpha.STRAIGHT and reader.multiplies_alpha


def _usable_levels(
    encoded: EncodedImage, first: int, origin: tuple[int, int], layout: ArrayLayout, has_alpha: bool
) -> Iterator[EncodedLevel]:
    same_rule = encoded.halving == halving_rule(has_alpha=has_alpha)
    for level, stored in enumerate(encoded.levels[first:]):
        if stored is None or stored.encoding != layout.encoding or (level and not same_rule):
            return
        if any(place % (layout.grid.chunk << level) for place in origin):
            return
        yield stored


def render_tile_passing(renderer: TileRenderer, layout: ArrayLayout, tile: Tile, sink: ChunkSink) -> TileStats:
    """As `render.render_rows`, the same pixels; stored chunks are passed on where they can be.

    renderer: of the tile, that has rendered nothing yet.
    """
    scene = renderer.scene
    stored = [stored_layer(reader, layout, scene) for reader in scene.readers]
    if not any(stored):
        return render_rows(renderer, layout.grid, tile, sink)
    work = _PassingTile(renderer, stored, layout, tile, sink)
    if not any((deciders != NOBODY).any() for deciders in work.deciders.values()):
        return render_rows(renderer, layout.grid, tile, sink)
    work.pass_chunks()
    work.make_rest()
    return renderer.stats


class _PassingTile:
    """deciders: per level, for each chunk of the tile, the index of the layer whose stored level has the same pixels.
    quarters: per level from 1 on, for each chunk of the finer level, the layer whose stored level has the quarter of a
    chunk that lies above it. passed: the chunks whose bytes were handed on. needed: those whose pixels are wanted."""

    def __init__(
        self,
        renderer: TileRenderer,
        stored: list[StoredLayer | None],
        layout: ArrayLayout,
        tile: Tile,
        sink: ChunkSink,
    ) -> None:
        self.renderer, self.stored, self.layout, self.tile, self.sink = renderer, stored, layout, tile, sink
        self.levels = layout.grid.stage_levels(tile.stage)
        self.deciders: dict[int, NDArray[np.int64]] = {}
        for level in self.levels:
            self.deciders[level] = self._copied() if level == 0 else self._decided_below(level)
        self.quarters = {level: self._quarters(level) for level in self.levels if level > 0}
        self.passed: dict[int, NDArray[np.bool_]] = {
            level: np.zeros(found.shape, bool) for level, found in self.deciders.items()
        }
        self.needed: dict[int, NDArray[np.bool_]] = {}
        self._made: set[tuple[int, int]] = set()

    def _copied(self) -> NDArray[np.int64]:
        scene, fields = self.renderer.scene, self.renderer.fields
        found = np.full(self.layout.tile_chunks(self.tile, 0), NOBODY, np.int64)
        for row, column in np.ndindex(found.shape):
            part = self._region(0, row, column)
            kind = scene.classify(fields, part)
            if kind.copy and self._has_same(kind.layers[0], 0, row, column):
                found[row, column] = kind.layers[0]
        return found

    def _decided_below(self, level: int) -> NDArray[np.int64]:
        """Chunks of a level that lie above four chunks (fewer at the canvas's end) decided by one layer."""
        finer = self.deciders[level - 1]
        found = np.full(self.layout.tile_chunks(self.tile, level), NOBODY, np.int64)
        for row, column in np.ndindex(found.shape):
            layers = set(finer[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flat)
            layer = layers.pop()
            if not layers and layer != NOBODY and self._has_same(int(layer), level, row, column):
                found[row, column] = layer
        return found

    def _quarters(self, level: int) -> NDArray[np.int64]:
        """A chunk that a layer has whole is halved there as here, so its level only has to be stored."""
        found = self.deciders[level - 1].copy()
        for index, layer in enumerate(self.stored):
            if layer is not None and level >= len(layer.levels):
                found[found == index] = NOBODY
        return found

    def _has_same(self, index: int, level: int, row: int, column: int) -> bool:
        """True when the layer's image stores this level, and what a chunk repeats at its end is the same there."""
        layer = self.stored[index]
        if layer is None or level >= len(layer.levels):
            return False
        part = self._region(level, row, column)
        side, canvas = self.layout.grid.chunk << level, self.layout.grid.shape
        stop = (part.y0 << level) + side, (part.x0 << level) + side
        ends = zip(stop, layer.end, canvas, strict=True)
        return all(end == size or at <= min(end, size) for at, end, size in ends)

    def _region(self, level: int, row: int, column: int, columns: int = 1) -> Region:
        """Pixels of chunks of the tile beside each other, in the level's frame."""
        tile, side = self.layout.grid.tile_region(self.tile, level), self.layout.grid.chunk
        y, x = tile.y0 + row * side, tile.x0 + column * side
        return Region(y, x, y + side, x + columns * side) & tile

    def pass_chunks(self) -> None:
        """Hand on what can be; then it is known which pixels are needed."""
        for level, deciders in self.deciders.items():
            for index in set(deciders.flat) - {NOBODY}:
                layer = self.stored[int(index)]
                assert layer is not None
                places = np.argwhere(deciders == index).tolist()
                self._pass(layer, level, [(r, c) for r, c in places if self._is_whole(layer, level, r, c)])
        for level in reversed(self.levels):
            needed = ~self.passed[level]
            if level + 1 in self.needed:
                halved = self.needed[level + 1] & (self.deciders[level + 1] == NOBODY)
                rows, columns = needed.shape
                below = halved.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
                needed |= below & (self.quarters[level + 1] == NOBODY)
            self.needed[level] = needed
        decided = self.deciders[0] != NOBODY
        self.renderer.stats.copied += int(decided.sum())

    def _is_whole(self, layer: StoredLayer, level: int, row: int, column: int) -> bool:
        """True when a chunk has no padding, or our own zeros: that of others may hide pixels from elsewhere."""
        side = self.layout.grid.chunk
        return layer.pads_with_zeros or self._region(level, row, column).shape == (side, side)

    def _pass(self, layer: StoredLayer, level: int, wanted: list[tuple[int, int]]) -> None:
        stored, groups = layer.levels[level], range(self.layout.channel_groups)
        top, left = self._first_place(layer, level)
        found = stored.read((top + r, left + c, group) for r, c in wanted for group in groups)
        for row, column in wanted:
            places = [(top + row, left + column, group) for group in groups]
            if not all(place in found for place in places):
                continue
            self.passed[level][row, column] = True
            for place in places:
                chunk = found[place]
                self._check(layer, level, place, chunk)
                self.sink.add_encoded(level, row, column, place[2], chunk.data, has_checksum=chunk.has_checksum)

    def _first_place(self, layer: StoredLayer, level: int) -> tuple[int, int]:
        """(row, column) of the layer's chunk where the tile starts."""
        tile, side = self.layout.grid.tile_region(self.tile, level), self.layout.grid.chunk
        return (tile.y0 - (layer.origin[0] >> level)) // side, (tile.x0 - (layer.origin[1] >> level)) // side

    def _check(self, layer: StoredLayer, level: int, place: Place, chunk: EncodedChunk) -> None:
        """A chunk whose checksum was right must only say the right size; one without a checksum is decoded."""
        codec, size = self.layout.output.compressor, self.layout.chunk_bytes
        if not chunk.has_checksum or stated_size(codec, chunk.data[:32]) != size or codec.name == "none":
            self._decoded(layer, level, place, chunk)

    def make_rest(self) -> None:
        """Render, halve and hand on what was not passed, from the coarsest level down to what it needs."""
        for level in reversed(self.levels):
            for row in range(self.needed[level].shape[0]):
                if (level, row) not in self._made:
                    self._make_row(level, row)

    def _make_row(self, level: int, row: int) -> Pixels | None:
        """The needed pixels of one row of chunks, over the whole tile's width (others are not set); None: none are."""
        self._made.add((level, row))
        needed, deciders = self.needed[level][row], self.deciders[level][row]
        if not needed.any():
            return None
        tile, channels = self.layout.grid.tile_region(self.tile, level), self.layout.channels
        whole = self._region(level, row, 0, len(needed))
        out = np.moveaxis(np.empty((channels, *whole.shape), self.layout.dtype), 0, 2)
        for start, stop in runs(needed & (deciders == NOBODY)):
            part = self._region(level, row, start, stop - start)
            if level == 0:
                out[:, _columns(part, tile)] = self.renderer.chunk_row(part, self.layout.grid.chunk)
        if level > 0:
            self._halve_into(out, level, row, needed & (deciders == NOBODY))
        for column in np.flatnonzero(needed & (deciders != NOBODY)).tolist():
            part = self._region(level, row, column)
            out[:, _columns(part, tile)] = self._stored_pixels(int(deciders[column]), level, row, column)
        for column in np.flatnonzero(~self.passed[level][row]).tolist():
            part = self._region(level, row, column)
            self.sink.add_chunk(level, row, column, out[:, _columns(part, tile)])
        return out

    def _halve_into(self, out: Pixels, level: int, row: int, columns: NDArray[np.bool_]) -> None:
        """Set the pixels of some chunks of a row: quarter by quarter as a layer stores them, or halved."""
        for column in np.flatnonzero(columns).tolist():
            self._take_quarters(out, level, row, column)
        side, has_alpha = self.layout.grid.chunk, self.renderer.scene.has_alpha
        for half, above in enumerate(self.quarters[level][2 * row : 2 * row + 2]):
            halved = columns.repeat(2)[: len(above)] & (above == NOBODY)
            if not halved.any():
                continue
            finer = self._make_row(level - 1, 2 * row + half)
            assert finer is not None
            for start, stop in runs(halved):
                pixels = halve_tile(finer[:, start * side : stop * side], has_alpha=has_alpha)
                y, x = half * side // 2, start * side // 2
                out[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def _take_quarters(self, out: Pixels, level: int, row: int, column: int) -> None:
        quarters = self.quarters[level][2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        half, left = self.layout.grid.chunk // 2, column * self.layout.grid.chunk
        for index in set(quarters.flat) - {NOBODY}:
            pixels = self._stored_pixels(int(index), level, row, column)
            for below, beside in np.argwhere(quarters == index).tolist():
                top, start = below * half, beside * half
                quarter = pixels[top : top + half, start : start + half]
                out[top : top + half, left + start : left + start + quarter.shape[1]] = quarter

    def _stored_pixels(self, index: int, level: int, row: int, column: int) -> Pixels:
        """The pixels of one chunk of the tile as a layer stores them."""
        layer, region = self.stored[index], self._region(level, row, column)
        assert layer is not None
        stored, groups = layer.levels[level], range(self.layout.channel_groups)
        top, left = self._first_place(layer, level)
        found = stored.read((top + row, left + column, group) for group in groups)
        if len(found) < len(groups):
            place = region.shift(-(layer.origin[0] >> level), -(layer.origin[1] >> level))
            return layer.reader.layer.image.read(place, layer.reader.pixels.level + level)
        chunks = [self._decoded(layer, level, place, chunk) for place, chunk in found.items()]
        pixels = chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=2)
        return pixels[: region.shape[0], : region.shape[1]]

    def _decoded(self, layer: StoredLayer, level: int, place: Place, chunk: EncodedChunk) -> Pixels:
        """(y, x, channels of the chunk), padding included."""
        encoding, image = self.layout.encoding, layer.reader.layer.image
        number, (row, column, _), side = layer.reader.pixels.level + level, place, encoding.side
        where = Region(row * side, column * side, (row + 1) * side, (column + 1) * side)
        sides = {"c": encoding.channels, "y": encoding.side, "x": encoding.side}
        data = chunk.data[:-CRC_BYTES] if chunk.has_checksum else chunk.data
        try:
            with decoding(image, where & Region.of_shape(image.levels[number].shape), number):
                raw = decode(self.layout.output.compressor, data, self.layout.chunk_bytes)
        except VerificationError as error:
            raise layer.levels[level].damaged(place, f"cannot be decoded ({error})") from error
        pixels = np.frombuffer(raw, np.dtype(encoding.dtype).newbyteorder("<"))
        pixels = pixels.reshape([sides[axis] for axis in encoding.order])
        if "c" not in encoding.order:
            return pixels[:, :, None]
        return pixels.transpose([encoding.order.index(axis) for axis in "yxc"])


def _columns(part: Region, tile: Region) -> slice:
    return slice(part.x0 - tile.x0, part.x1 - tile.x0)


def runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """[start, stop) of neighbours that are True.

    >>> list(runs(np.array([True, False, True, True])))
    [(0, 1), (2, 4)]
    """
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(stop)
