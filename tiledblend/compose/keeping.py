"""One tile of a result that keeps its layers' own levels and stored tiles.

Where one layer alone decides a chunk of any level, and its image has that level, the chunk is the image's own: its
stored bytes, where the container takes them as they are, else its pixels. Every other chunk is rendered, or halved from
the result's finer level, whatever that came from; so an own chunk is decoded only where a coarser one needs its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.passing import ChunkSink, keeps_alpha, runs
from tiledblend.compose.pyramid import TileStats
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.render import TileRenderer, render_rows
from tiledblend.compose.scene import Scene
from tiledblend.geometry import Grid, Region, Tile
from tiledblend.kernels.halve import halve_tile
from tiledblend.sources.base import RasterSource

Pixels = NDArray[Any]
NOBODY = -1
Place = tuple[int, int]


class KeepingSink(ChunkSink, Protocol):
    """Takes also what the next stage starts from."""

    def keep_pixels(self, pixels: Pixels | None, owner: int = NOBODY) -> None:
        """The pixels of the tile's last level; None where they are the own ones of layer `owner`."""


class StoredTiles(Protocol):
    """The tiles of one level of an image that a container takes as they are."""

    @property
    def mean_bytes(self) -> float:
        """Of a tile, all its planes."""

    def read(self, places: list[Place]) -> dict[Place, list[bytes]]:
        """Of each tile (row, column) that can be taken, the bytes of every plane, checked as a decoder checks them."""


class KeepingLayout(Protocol):
    """What is asked of a layout here."""

    @property
    def grid(self) -> Grid: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def is_rgb(self) -> bool: ...
    @property
    def stored(self) -> tuple[int, ...]: ...
    @property
    def shapes(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def own_levels(self) -> bool:
        """True when own chunks are taken as pixels too, whatever they are stored as."""

    def tile_chunks(self, tile: Tile, level: int) -> tuple[int, int]: ...
    def stored_tiles(self, image: RasterSource, number: int, level: int) -> StoredTiles | None:
        """The tiles of level `number` of an image, if they are as the result's level `level` stores them."""


@dataclass(frozen=True)
class OwnLayer:
    """A layer whose image has levels of the result's grid.

    origin: canvas (y, x) of the image's first pixel. levels: the grid's level → the image's. tiles: those that can be
    taken as they are, by the grid's level.
    """

    reader: LayerReader
    origin: tuple[int, int]
    levels: Mapping[int, int]
    tiles: Mapping[int, StoredTiles]

    def shape(self, level: int) -> tuple[int, int]:
        """(y, x) of the image's level that is the grid's `level`."""
        return self.reader.layer.image.levels[self.levels[level]].shape

    def start(self, level: int) -> tuple[int, int]:
        """Where the image's level begins, in pixels of the grid's."""
        return self.origin[0] >> level, self.origin[1] >> level


def own_layer(reader: LayerReader, layout: KeepingLayout, scene: Scene) -> OwnLayer | None:
    """The layer as one of whose image chunks may be taken; None if they never can."""
    image, pixels = reader.layer.image, reader.pixels
    if pixels.sampling is not None or reader.tone is not None:
        return None
    if image.channels != layout.channels or not keeps_alpha(reader, scene):
        return None
    origin = reader.frame.y0 - pixels.shift[0], reader.frame.x0 - pixels.shift[1]
    factors = {level_power(image, pixels.level, number): number for number in range(pixels.level, len(image.levels))}
    levels, tiles = dict[int, int](), dict[int, StoredTiles]()
    for level in layout.stored:
        number = factors.get(level)
        if number is None or any(place % (1 << level) for place in origin):
            continue
        on_tiles = not any(place % (layout.grid.chunk << level) for place in origin)
        found = layout.stored_tiles(image, number, level) if on_tiles else None
        if found is not None:
            tiles[level] = found
        if found is not None or layout.own_levels:
            levels[level] = number
    return OwnLayer(reader, origin, levels, tiles) if levels else None


def level_power(image: RasterSource, base: int, number: int) -> int | None:
    """k when level `number` of an image is 2**k times smaller than level `base`, to within a pixel; else None."""
    whole, small = image.levels[base].shape, image.levels[number].shape
    power = max(0, round(np.log2(max(1.0, whole[0] / small[0]))))
    fits = (abs(side - (part << power)) < (1 << power) for side, part in zip(whole, small, strict=True))
    return power if all(fits) else None


def render_tile_keeping(renderer: TileRenderer, layout: KeepingLayout, tile: Tile, sink: KeepingSink) -> TileStats:
    """A tile of the first stage. renderer: of the tile, that has rendered nothing yet."""
    scene = renderer.scene
    layers = own_layers(scene, layout)
    owners = owners_of(renderer, layout, tile, layers)
    if (owners == NOBODY).all():
        return render_rows(renderer, layout.grid, tile, sink)
    work = KeptTile(scene, layout, tile, sink, layers, owners)
    work.make(lambda region: renderer.chunk_row(region, layout.grid.chunk))
    renderer.stats.copied += int((~work.needed[0] | work.own[0]).sum())
    return renderer.stats


Finer = Callable[[Tile], tuple[int, Pixels | None]]
"""(owner of all of it, pixels) of the last level of a tile of the stage before."""


def shrink_tile_keeping(scene: Scene, layout: KeepingLayout, tile: Tile, finer: Finer, sink: KeepingSink) -> None:
    """A tile of a later stage."""
    layers = own_layers(scene, layout)
    below = _FinerTiles(layout, tile, finer, layers)
    work = KeptTile(scene, layout, tile, sink, layers, below.owners())
    work.make(lambda region: halve_tile(below.read(region), has_alpha=scene.has_alpha))


def own_layers(scene: Scene, layout: KeepingLayout) -> list[OwnLayer | None]:
    """Of every layer, bottom first."""
    return [own_layer(reader, layout, scene) for reader in scene.readers]


def owners_of(
    renderer: TileRenderer, layout: KeepingLayout, tile: Tile, layers: list[OwnLayer | None]
) -> NDArray[np.int64]:
    """The layer that alone decides each chunk of level 0, if its chunks may be taken."""
    region, side = layout.grid.tile_region(tile), layout.grid.chunk
    found = np.full((-(-region.shape[0] // side), -(-region.shape[1] // side)), NOBODY, np.int64)
    if not any(layers):
        return found
    for row, column in np.ndindex(found.shape):
        y, x = region.y0 + row * side, region.x0 + column * side
        kind = renderer.scene.classify(renderer.fields, Region(y, x, y + side, x + side) & region)
        if kind.copy and layers[kind.layers[0]] is not None:
            found[row, column] = kind.layers[0]
    return found


class _FinerTiles:
    """The last level of the stage before, under one tile."""

    def __init__(self, layout: KeepingLayout, tile: Tile, finer: Finer, layers: list[OwnLayer | None]) -> None:
        self.layout, self.tile, self.layers = layout, tile, layers
        self.level = tile.stage * layout.grid.stage - 1
        self._finer, self._found = finer, dict[Tile, tuple[int, Pixels | None]]()

    def owners(self) -> NDArray[np.int64]:
        """The layer that alone decides each chunk of the tile's first level."""
        grid = self.layout.grid
        region = grid.tile_region(self.tile)
        shape = -(-region.shape[0] // grid.chunk), -(-region.shape[1] // grid.chunk)
        finer = Region(2 * region.y0, 2 * region.x0, 2 * region.y1, 2 * region.x1)
        counts = grid.tile_counts(self.tile.stage - 1)
        top, left = finer.y0 // grid.chunk, finer.x0 // grid.chunk
        below = np.full((min(2 * shape[0], counts[0] - top), min(2 * shape[1], counts[1] - left)), NOBODY, np.int64)
        for row, column in np.ndindex(below.shape):
            below[row, column] = self._of(Tile(self.tile.stage - 1, top + row, left + column))[0]
        return _unanimous(below, shape)

    def read(self, region: Region) -> Pixels:
        """Pixels of the finer level that a region of the tile's first level is halved from."""
        grid, level = self.layout.grid, self.level
        wanted = Region(2 * region.y0, 2 * region.x0, 2 * region.y1, 2 * region.x1)
        wanted &= Region.of_shape(grid.level_shape(level))
        out = _empty(self.layout, wanted.shape)
        for row in range(wanted.y0 // grid.chunk, -(-wanted.y1 // grid.chunk)):
            for column in range(wanted.x0 // grid.chunk, -(-wanted.x1 // grid.chunk)):
                tile = Tile(self.tile.stage - 1, row, column)
                whole = grid.tile_region(tile, level)
                part = whole & wanted
                owner, pixels = self._of(tile)
                if pixels is None:
                    layer = self.layers[owner]
                    assert layer is not None
                    pixels = _own_pixels(layer, level, whole)
                out[part.shift(-wanted.y0, -wanted.x0).slices] = pixels[part.shift(-whole.y0, -whole.x0).slices]
        return out

    def _of(self, tile: Tile) -> tuple[int, Pixels | None]:
        return self._finer(tile)


class KeptTile:
    """owners: per level, for each chunk of the tile, the layer that alone decides it. own: chunks that are the owner's
    own. passed: those whose bytes were handed on. needed: those whose pixels are wanted."""

    def __init__(
        self,
        scene: Scene,
        layout: KeepingLayout,
        tile: Tile,
        sink: KeepingSink,
        layers: list[OwnLayer | None],
        owners: NDArray[np.int64],
    ) -> None:
        self.scene, self.layout, self.tile, self.sink, self.layers = scene, layout, tile, sink, layers
        self.levels = layout.grid.stage_levels(tile.stage)
        self.first, self.last = self.levels[0], self.levels[-1]
        self.has_next = tile.stage + 1 < layout.grid.stages
        self.owners = {self.first: owners}
        for level in self.levels[1:]:
            region = layout.grid.tile_region(tile, level)
            shape = -(-region.shape[0] // layout.grid.chunk), -(-region.shape[1] // layout.grid.chunk)
            self.owners[level] = _unanimous(self.owners[level - 1], shape)
        self.own = {level: self._own(level) for level in self.levels}
        self.passed = {level: np.zeros(found.shape, bool) for level, found in self.owners.items()}
        self.needed: dict[int, NDArray[np.bool_]] = {}

    def plan_needs(self) -> dict[int, NDArray[np.bool_]]:
        """The chunks to encode; `needed` is set."""
        made = {level: self.in_file(level) & ~self.passed[level] for level in self.levels}
        for level in reversed(self.levels):
            needed = made[level].copy()
            if level == self.last and self.has_next:
                needed |= ~self.own[level]
            if level < self.last:
                coarser = self.needed[level + 1] & ~self.own[level + 1]
                rows, columns = needed.shape
                needed |= coarser.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
            self.needed[level] = needed
        return made

    def make(self, first: Callable[[Region], Pixels]) -> None:
        """Hand everything on. first: renders a region of the tile's first level."""
        self._pass()
        self._made, self._first = self.plan_needs(), first
        for row in range(len(self.needed[self.last])):
            pixels = self._row(self.last, row)
            if self.has_next:
                is_own = bool(self.own[self.last].all())
                self.sink.keep_pixels(None if is_own else pixels, int(self.owners[self.last][0, 0]))

    def _row(self, level: int, row: int) -> Pixels | None:
        """Pixels of one row of chunks over the whole tile's width (those that are not needed are not set); None: none
        are. What is to be stored of it, and of the rows under it, is handed on."""
        finer: list[Pixels | None] = []
        if level > self.first:
            count = len(self.needed[level - 1])
            finer = [self._row(level - 1, below) for below in range(2 * row, min(2 * row + 2, count))]
        needed, own = self.needed[level][row], self.own[level][row]
        if not needed.any():
            return None
        tile = self.layout.grid.tile_region(self.tile, level)
        out = _empty(self.layout, self.region(level, row, 0, len(needed)).shape)
        for start, stop in runs(needed & ~own):
            part = self.region(level, row, start, stop - start)
            out[:, _columns(part, tile)] = (
                self._first(part) if level == self.first else self._halved(finer, start, stop)
            )
        for index in set(self.owners[level][row][needed & own].tolist()):
            layer = self.layers[index]
            assert layer is not None
            for start, stop in runs(needed & own & (self.owners[level][row] == index)):
                part = self.region(level, row, start, stop - start)
                out[:, _columns(part, tile)] = _own_pixels(layer, level, part)
        for column in np.flatnonzero(self._made[level][row]).tolist():
            part = self.region(level, row, column)
            self.sink.add_chunk(level, row, column, out[:, _columns(part, tile)])
        return out

    def _halved(self, finer: list[Pixels | None], start: int, stop: int) -> Pixels:
        """Chunks [start, stop) of a row from the rows under it."""
        side = self.layout.grid.chunk
        parts = [pixels[:, 2 * start * side : 2 * stop * side] for pixels in finer if pixels is not None]
        halves = [halve_tile(part, has_alpha=self.scene.has_alpha) for part in parts]
        return halves[0] if len(halves) == 1 else np.concatenate(halves, axis=0)

    def _pass(self) -> None:
        """Hand on the stored bytes of own chunks; what cannot be taken after all is own only as pixels."""
        for level in self.levels:
            for index in set(self.owners[level][self.own[level]].tolist()):
                layer = self.layers[index]
                assert layer is not None
                places = np.argwhere(self.own[level] & self.in_file(level) & (self.owners[level] == index)).tolist()
                if level in layer.tiles and places:
                    self._pass_of(layer, level, [(row, column) for row, column in places])
            if not self.layout.own_levels:
                self.own[level] = self.passed[level].copy()

    def _pass_of(self, layer: OwnLayer, level: int, places: list[Place]) -> None:
        tile, side, start = self.layout.grid.tile_region(self.tile, level), self.layout.grid.chunk, layer.start(level)
        top, left = (tile.y0 - start[0]) // side, (tile.x0 - start[1]) // side
        found = layer.tiles[level].read([(top + row, left + column) for row, column in places])
        for row, column in places:
            planes = found.get((top + row, left + column))
            if planes is None:
                continue
            self.passed[level][row, column] = True
            for plane, data in enumerate(planes):
                self.sink.add_encoded(level, row, column, plane, data)

    def _own(self, level: int) -> NDArray[np.bool_]:
        """Chunks whose owner's image has them: whole, or ending where the result's level ends."""
        owners = self.owners[level]
        found = np.zeros(owners.shape, bool)
        if level not in self.layout.stored:
            return found
        shape = self.layout.shapes[self.layout.stored.index(level)]
        for row, column in np.argwhere(owners != NOBODY).tolist():
            layer = self.layers[int(owners[row, column])]
            assert layer is not None
            if level in layer.levels:
                found[row, column] = self._ends_alike(layer, level, self.region(level, row, column), shape)
        return found

    def _ends_alike(self, layer: OwnLayer, level: int, part: Region, shape: tuple[int, int]) -> bool:
        side, start, own = self.layout.grid.chunk, layer.start(level), layer.shape(level)
        corner = part.y0 + side, part.x0 + side
        ends = (start[0] + own[0], start[1] + own[1])
        return all(end == size or at <= min(end, size) for at, end, size in zip(corner, ends, shape, strict=True))

    def in_file(self, level: int) -> NDArray[np.bool_]:
        """Chunks that the file has: its level may be a pixel smaller than the grid's."""
        found = np.zeros(self.owners[level].shape, bool)
        if level in self.layout.stored:
            rows, columns = self.layout.tile_chunks(self.tile, level)
            found[:rows, :columns] = True
        return found

    def region(self, level: int, row: int, column: int, columns: int = 1) -> Region:
        """Pixels of chunks of the tile beside each other, in the level's frame."""
        tile, side = self.layout.grid.tile_region(self.tile, level), self.layout.grid.chunk
        y, x = tile.y0 + row * side, tile.x0 + column * side
        return Region(y, x, y + side, x + columns * side) & tile


def _unanimous(finer: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """The owner of the four chunks (fewer at the end) under each chunk, where they have one."""
    rows, columns = 2 * shape[0], 2 * shape[1]
    padded = np.pad(finer, ((0, rows - finer.shape[0]), (0, columns - finer.shape[1])), mode="edge")
    four = padded.reshape(shape[0], 2, shape[1], 2)
    same = (four == four[:, :1, :, :1]).all(axis=(1, 3))
    found: NDArray[np.int64] = np.where(same, four[:, 0, :, 0], NOBODY)
    return found


def _own_pixels(layer: OwnLayer, level: int, region: Region) -> Pixels:
    """Pixels of a region of a level as the layer's image has them; its last ones repeated where it ends before."""
    (y, x), shape = layer.start(level), layer.shape(level)
    inside = region.shift(-y, -x) & Region.of_shape(shape)
    pixels = layer.reader.layer.image.read(inside, layer.levels[level])
    missing = region.shape[0] - inside.shape[0], region.shape[1] - inside.shape[1]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels


def _empty(layout: KeepingLayout, shape: tuple[int, int]) -> Pixels:
    if layout.is_rgb:
        return np.empty((*shape, layout.channels), layout.dtype)
    return np.moveaxis(np.empty((layout.channels, *shape), layout.dtype), 0, 2)


def _columns(part: Region, tile: Region) -> slice:
    return slice(part.x0 - tile.x0, part.x1 - tile.x0)
