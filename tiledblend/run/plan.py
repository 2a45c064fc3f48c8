"""What a run would do: tiles, chunk classes, bytes, memory. Writes nothing and reads masks only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiledblend.bytes.buckets import BUCKET_SCHEMES, scheme_of
from tiledblend.compose.placed import SOURCE_PIXELS
from tiledblend.compose.pyramid import chunk_rows
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.render import TileRenderer, block_side
from tiledblend.compose.scene import Scene, decide
from tiledblend.containers.container import Container
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import sources_of
from tiledblend.errors import BadInputError, ResourceError, UsageError
from tiledblend.geometry import Grid, Region, Tile, ceil_div
from tiledblend.kernels.affine import Warped
from tiledblend.kernels.morphology import STRIP_ROWS
from tiledblend.run.layers import LayerPlan, alone_in, layer_plans
from tiledblend.run.notes import notes_of
from tiledblend.run.options import LARGER_LIMIT
from tiledblend.sources.base import Missed, RasterSource, Unstored
from tiledblend.sources.outlines.source import PolygonSource
from tiledblend.sources.tiff.large import LARGE_BYTES, LARGE_TILE

SAMPLED_TILES = 12
PROCESS_BYTES = 160_000_000
"""A process with every library and a cluster (116 MB when idle), and what its heap cannot use again."""
MOST_STORING = 2
"""Tiles of a process that are being stored while its threads render others."""
MAX_TILES = 50_000_000
CACHE_BYTES = 64_000_000
MOST_SQUARES = 256
"""A layer in more of them is counted in all."""


@dataclass(frozen=True, repr=False)
class Plan:
    """A checked composite, its layout and its cost. Made by `plan`.

    classes: share of level-0 chunks that are "copied", "blended", "empty" (0..1), from `sampled_tiles` tiles.
    read_bytes: decoded bytes that the sources must yield (estimated from the classes).
    raw_bytes: the result's, uncompressed.
    tile_bytes: most memory that one tile's task holds besides what it has compressed.
    tile_requests: GETs of inputs for one tile, on average.
    unstored: chunks that are missing in an input, by (index in `sources_of`, level). layers: each one's place, mask and
    edge, bottom first. passing: of a file that is stored as its base is, what passes, by level (`run.kept.passing_of`).
    """

    scene: Scene
    layout: Container
    classes: dict[str, float]
    layer_share: tuple[float, ...]
    sampled_tiles: int
    tile_bytes: int
    notes: tuple[str, ...] = ()
    tile_requests: float = 0.0
    unstored: Mapping[tuple[int, int], Unstored] = field(default_factory=dict)
    layers: tuple[LayerPlan, ...] = ()
    passing: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        """One line: what, how large, how much is blended."""
        grid, kinds = self.grid, [f"{100 * share:.0f} % {name}" for name, share in self.classes.items() if share]
        what = f"{grid.shape[0]} x {grid.shape[1]} px (y x x), {self.composite.channels} of {self.composite.dtype.name}"
        more = f", {len(self.notes)} notes" if self.notes else ""
        return f"<Plan: {what}, {grid.levels} levels, {self.tiles} tiles; {', '.join(kinds)}{more}>"

    @property
    def composite(self) -> Composite:
        """What is to be made."""
        return self.scene.composite

    @property
    def grid(self) -> Grid:
        """How the canvas is cut."""
        return self.layout.grid

    @property
    def tiles(self) -> int:
        """Tasks of all stages."""
        return sum(rows * columns for rows, columns in map(self.grid.tile_counts, range(self.grid.stages)))

    @property
    def pixels(self) -> int:
        """Of level 0."""
        return self.grid.shape[0] * self.grid.shape[1]

    @property
    def raw_bytes(self) -> int:
        """Of all levels, uncompressed."""
        sample = self.layout.channels * self.composite.dtype.itemsize
        levels = (self.grid.level_shape(level) for level in range(self.grid.levels))
        return sum(height * width for height, width in levels) * sample

    @property
    def work_bytes(self) -> int:
        """Of an OME-TIFF while it is made, uncompressed: its tiles and the last level of each stage that another one
        follows."""
        assert isinstance(self.layout, TiffLayout)
        grid = self.grid
        sample = self.layout.channels * self.composite.dtype.itemsize
        kept = (grid.level_shape(stage * grid.stage - 1) for stage in range(1, grid.stages))
        return self.layout.raw_bytes + sum(height * width for height, width in kept) * sample

    @property
    def read_bytes(self) -> int:
        """Decoded bytes that the images must yield."""
        layers = zip(self.composite.layers, self.layer_share, strict=True)
        return int(
            sum(self.pixels * share * layer.image.channels * layer.image.dtype.itemsize for layer, share in layers)
        )

    def requests(self, uri: str | None) -> dict[str, int]:
        """{"get", "put"}: about how many requests to servers a run makes when its result goes to `uri`.

        Reading inputs that lie behind a network, and the objects of a result in a bucket with its documents and its
        ledger. Not counted: opening each input once per process (a few requests), batches of receipts (a PUT every few
        seconds), and what is asked again.
        """
        rows, columns = self.grid.tile_counts()
        get = round(self.tile_requests * rows * columns)
        if uri is None or scheme_of(uri) not in BUCKET_SCHEMES:
            return {"get": get, "put": 0}
        layout = self.layout
        return {"get": get + layout.object_reads(), "put": layout.object_count() + layout.documents + 2}

    def process_bytes(self, threads: int, uri: str | None = None) -> int:
        """Projected peak of one worker process with `threads` threads. uri: of the result (None: a local path).

        Where an object is a file, what is compressed lies in it and not in memory; a bucket takes whole objects.
        """
        rows, columns = self.grid.tile_counts()
        rendered = min(threads, rows * columns)
        stored = min(MOST_STORING, rows * columns - rendered)
        in_files = self.layout.is_drafted and (uri is None or scheme_of(uri) not in BUCKET_SCHEMES)
        compressed = 0 if in_files else (rendered + stored) * _encoded_bytes(self.layout)
        return PROCESS_BYTES + rendered * self.tile_bytes + compressed + _whole_images(self.composite)

    def require_memory(
        self, threads: int, allowed: int | None, remedy: str = LARGER_LIMIT, uri: str | None = None
    ) -> None:
        """Raise ResourceError if a worker of `threads` threads cannot stay within `allowed` bytes.

        remedy: what would allow more. uri: as of `process_bytes`.
        """
        projected = self.process_bytes(threads, uri)
        if allowed is not None and projected > allowed:
            fewer = "fewer --threads-per-worker, " if threads > 1 else ""
            raise ResourceError(
                f"a worker needs up to {_megabytes(projected + 999_999)} for {threads} thread{'s' * (threads > 1)}, "
                f"but is allowed {_megabytes(allowed)}; "
                f"use {fewer}{remedy} or a smaller --shard than {self.grid.shard}"
            )

    def as_dict(self, uri: str | None = None) -> dict[str, Any]:
        """For `--json`. uri: as of `process_bytes`."""
        return {
            "shape": list(self.grid.shape),
            "channels": self.composite.channels,
            "dtype": self.composite.dtype.name,
            "pixels": self.pixels,
            "levels": self.grid.levels,
            "chunk": self.grid.chunk,
            "shard": self.grid.shard,
            "tiles": self.tiles,
            "objects": self.layout.object_count(),
            "classes": self.classes,
            "sampled_tiles": self.sampled_tiles,
            "exact": self.sampled_tiles == self.grid.tile_counts()[0] * self.grid.tile_counts()[1],
            "read_bytes": self.read_bytes,
            "raw_bytes": self.raw_bytes,
            "tile_bytes": self.tile_bytes,
            "memory_bytes": {f"{threads}_threads": self.process_bytes(threads, uri) for threads in (1, 2, 4, 8)},
            "layers": [layer.as_dict() for layer in self.layers],
            "notes": list(self.notes),
            "passing": list(self.passing),
            "unstored": [found.as_dict() for found in self.unstored.values()],
        }


def _megabytes(value: int) -> str:
    return f"{value // 1_000_000:,} MB"


def plan(
    composite: Composite | Scene,
    output: OutputSpec | None = None,
    *,
    exact: bool = False,
    samples: int = SAMPLED_TILES,
    threads: int = 2,
) -> Plan:
    """Plan a composite, or one that is decided already.

    samples: tiles whose chunks are classified by their masks; exact: all of them.

    Raises BadInputError for masks whose values cannot be told, UsageError for a plan beyond 50 million tiles.

    >>> import tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> plan(tb.Composite([tb.Layer(image)]))
    <Plan: 300 x 400 px (y x x), 3 of uint8, 1 levels, 1 tiles; 100 % copied>
    """
    output = output or OutputSpec()
    decided = composite if isinstance(composite, Scene) else None
    composite = composite.composite if isinstance(composite, Scene) else composite
    if not isinstance(composite, Composite):
        raise UsageError(f"{composite!r} must be a Composite; use Composite([Layer(source), ...])")
    if samples < 0 or threads < 1:
        raise UsageError(f"samples {samples} must be 0 or more, threads {threads} 1 or more")
    if not isinstance(output, OutputSpec):
        raise UsageError(f"output {output!r} must be an OutputSpec; use for example OutputSpec(chunk=256, shard=2048)")
    grid = output.grid(composite.shape)
    is_rgb = bool(composite.grid.is_rgb) and composite.channels in (3, 4)
    layout = ArrayLayout(grid, composite.channels, composite.dtype.name, is_rgb, output)
    rows, columns = grid.tile_counts()
    if rows * columns > MAX_TILES:
        raise UsageError(f"{rows * columns} tiles are more than {MAX_TILES}; use a larger --shard than {grid.shard}")
    scene = decided or decide(composite)
    chosen = list(grid.tiles()) if exact else list(_sample(grid, samples))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        counts = list(pool.map(lambda tile: _classify_tile(scene, grid, tile), chosen))
    kinds = {name: sum(count[0][name] for count in counts) for name in ("copied", "blended", "empty")}
    total = max(1, sum(kinds.values()))
    shares = tuple(sum(count[1][i] for count in counts) / total for i in range(len(composite.layers)))
    looked_at = sum(grid.tile_region(tile).size for tile in chosen)
    alone = [sum(count[3][i] for count in counts) / looked_at if looked_at else None for i in range(len(shares))]
    return Plan(
        scene,
        layout,
        {name: count / total for name, count in kinds.items()},
        shares,
        len(chosen),
        _tile_bytes(scene, layout),
        tuple(notes_of(scene)),
        sum(count[2] for count in counts) / max(1, len(counts)),
        find_unstored(scene),
        layer_plans(scene, alone),
    )


def find_unstored(scene: Scene) -> dict[tuple[int, int], Unstored]:
    """Chunks of inputs that are not stored, by (index in `sources_of`, level), where that can be listed.

    Raises BadInputError for an image that is read as a whole and lacks some, unless that is allowed.
    """
    numbers = {id(source): number for number, source in enumerate(sources_of(scene.composite))}
    found: dict[tuple[int, int], Unstored] = {}
    for reader in scene.readers:
        image, mask = reader.layer.image, reader.layer.mask
        lacks = image.unstored(reader.pixels.level)
        if lacks is not None:
            if lacks.refused and not reader.has_mask and reader.frame == reader.visible and reader.layer.opacity > 0:
                first = f", the first at {lacks.first}" if lacks.first else ""
                raise BadInputError(f"{lacks}{first}; copy the image again, or pass --allow-sparse")
            found[numbers[id(image)], reader.pixels.level] = lacks
        if isinstance(mask, RasterSource) and reader.mask_level is not None:
            lacks = mask.unstored(reader.mask_level)
            if lacks is not None:
                found[numbers[id(mask)], reader.mask_level] = lacks
    return found


def unstored_found(
    composite: Composite, unstored: Mapping[tuple[int, int], Unstored], missed: Iterable[tuple[int, Missed]]
) -> list[Unstored]:
    """What `find_unstored` found, and what reads have come upon: chunks by the index of their source, each once."""
    found, sources = dict(unstored), sources_of(composite)
    counts = Counter[tuple[int, int]]()
    for number, chunks in missed:
        counts[number, chunks.level] += chunks.chunks
    for (number, level), count in counts.items():
        again = sources[number].unstored(level, count)
        if again is not None:
            found[number, level] = again
    return list(found.values())


def sample_tiles(grid: Grid, samples: int | None) -> list[Tile]:
    """So many tiles of the first stage, the same each time; None: all."""
    return list(grid.tiles()) if samples is None else list(_sample(grid, samples))


def _sample(grid: Grid, samples: int) -> Iterator[Tile]:
    rows, columns = grid.tile_counts()
    if rows * columns <= samples:
        yield from grid.tiles()
        return
    places = random.Random(0).sample(range(rows * columns), samples)
    yield from (Tile(0, place // columns, place % columns) for place in sorted(places))


def _classify_tile(scene: Scene, grid: Grid, tile: Tile) -> tuple[dict[str, int], list[int], int, list[int]]:
    region = grid.tile_region(tile)
    renderer = TileRenderer(scene, region)
    requests = sum(renderer.expect(row, grid.chunk, fetch=False) for row, _ in chunk_rows(region, grid.chunk))
    fields = renderer.fields
    kinds = {"copied": 0, "blended": 0, "empty": 0}
    needed = [0] * len(fields)
    for part in _chunks(region, grid.chunk):
        kind = scene.classify(fields, part)
        kinds[kind.kind] += 1
        for layer in kind.layers:
            needed[layer] += 1
    return kinds, needed, requests, alone_in(scene, fields, _chunks(region, grid.chunk))


def _chunks(region: Region, chunk: int) -> Iterator[Region]:
    for y in range(region.y0, region.y1, chunk):
        for x in range(region.x0, region.x1, chunk):
            yield Region(y, x, min(y + chunk, region.y1), min(x + chunk, region.x1))


def _encoded_bytes(layout: Container) -> int:
    """A tile compressed, at worst not at all, with its part of the further levels."""
    grid = layout.grid
    height, width = min(grid.shard, grid.shape[0]), min(grid.shard, grid.shape[1])
    return height * width * layout.channels * np.dtype(layout.dtype).itemsize * 4 // 3


def _tile_bytes(scene: Scene, layout: Container) -> int:
    """Most that one task holds at once besides compressed chunks: first its masks are made ready, then a row of chunks
    at a time is read, blended and halved, band by band."""
    grid, item, readers, halo = layout.grid, scene.dtype.itemsize, scene.readers, scene.mode.halo_px
    height, width = min(grid.shard, grid.shape[0]), min(grid.shard, grid.shape[1])
    rows, block, rendered = min(grid.chunk, height), block_side(readers), (height + 2 * halo, width + 2 * halo)
    preparing, decoding = 0, 0
    # By where each layer is: what a tile keeps, what its reads keep decoded, what a row of chunks needs.
    kept, shared, tiles, working = ([0] * len(readers) for _ in range(4))
    for i, reader in enumerate(readers):
        image, level = reader.layer.image, reader.layer.image.levels[reader.pixels.level]
        high, wide = (min(a, b) for a, b in zip(rendered, reader.visible.shape, strict=True))
        made, kept[i] = _mask_bytes(reader, (high, wide))
        shared[i] = _kept_bytes(reader, (high, wide))
        preparing = max(preparing, made)
        # Blocks at its sides are partly beyond the layer.
        wide = min(wide + 2 * block, width + 2 * halo)
        band = (min(block, rows) + 2 * halo) * wide
        # A row that one layer decides is counted below; a blended one is read band by band.
        is_placed = reader.pixels.sampling is not None
        working[i] = band * 8 + (_image_bytes(reader, rows * wide, item) if is_placed else band * image.channels * item)
        tiles[i] = _decoded_bytes(image, reader.pixels.level, wide)
        decoding = max(decoding, level.decoding)
        if isinstance(reader.layer.mask, RasterSource) and reader.mask_level is not None:
            mask = reader.layer.mask.levels[reader.mask_level]
            tiles[i] += _decoded_bytes(reader.layer.mask, reader.mask_level, 0)
            decoding = max(decoding, mask.decoding)
    seen = [reader.visible for reader in readers]
    row = rows * width * layout.channels * item * 3 // 2
    preparing += _most_at_once(seen, shared, grid.shard)
    working_most = row + _most_at_once(seen, working, max(grid.chunk, block))
    in_tile = _most_at_once(seen, kept, grid.shard) + _most_at_once(seen, tiles, grid.shard)
    return in_tile + decoding + max(preparing, working_most)


def _decoded_bytes(source: RasterSource, level: int, width: int) -> int:
    """Of stored tiles while a region of `width` pixels is read: a row of them, or the largest there may be."""
    shape, pixel = source.levels[level].shape, source.channels * source.dtype.itemsize
    tile_y, tile_x = (min(tile, side) for tile, side in zip(source.levels[level].tile, shape, strict=True))
    row = tile_y * min(ceil_div(width, tile_x) * tile_x + tile_x, shape[1]) * pixel
    tile = tile_y * tile_x * pixel
    kept = min(LARGE_BYTES, shape[0] * shape[1] * pixel) if tile > LARGE_TILE else 0
    return max(tile, kept, min(row, CACHE_BYTES))


def _most_at_once(places: Sequence[Region], sizes: Sequence[int], side: int) -> int:
    """Largest sum of the sizes of what lies in one square of `side` pixels; what lies in many counts everywhere."""
    everywhere, squares = 0, Counter[tuple[int, int]]()
    for place, size in zip(places, sizes, strict=True):
        rows = range(place.y0 // side, ceil_div(place.y1, side))
        columns = range(place.x0 // side, ceil_div(place.x1, side))
        if len(rows) * len(columns) > MOST_SQUARES:
            everywhere += size
        else:
            squares.update({(row, column): size for row in rows for column in columns})
    return everywhere + max(squares.values(), default=0)


def _mask_bytes(reader: LayerReader, tile: tuple[int, int]) -> tuple[int, int]:
    """(most while a layer's mask is made ready, what is left of it) for one tile."""
    if not reader.has_mask:
        return 0, 0
    (height, width), (halo_y, halo_x) = tile, reader.kernel.halo_px
    high, wide = height + 2 * halo_y, width + 2 * halo_x
    strip_y, _ = reader.kernel.strip_px
    if reader.kernel.is_direct:
        units = high * wide * 2
        return units + _growing_bytes(reader, height, width) + wide * STRIP_ROWS * 8, units
    (small_y, small_x), (kept_y, kept_x) = reader.kernel.strip_cell_px, reader.kernel.kept_px
    small = ceil_div(high, small_y) * ceil_div(wide, small_x)
    kept = 2 * (ceil_div(height, kept_y) + 2) * (ceil_div(width, kept_x) + 2)
    # A strip as stored, as uint16 and a quarter of it; cells as integers, as float32, filtered, enlarged.
    made = strip_y * wide * 6 + small * 8 + 2 * kept + _growing_bytes(reader, strip_y, width)
    return made, kept


def _image_bytes(reader: LayerReader, row: int, item: int) -> int:
    """A layer's pixels of a row of chunks (`row` pixels) while they are read."""
    sampling, channels = reader.pixels.sampling, reader.layer.image.channels
    if sampling is None:
        return 2 * row * channels * item
    if isinstance(sampling, Warped):
        # The row as float32, a part of it beside it, and the source of that part as stored and as float32.
        return row * channels * 8 + SOURCE_PIXELS * channels * (item + 4)
    return 2 * (row * channels * 12 + SOURCE_PIXELS * channels * (item + 8))


def _kept_bytes(reader: LayerReader, tile: tuple[int, int]) -> int:
    """A layer's share of what is kept of a mask that it has in common with others."""
    mask = reader.layer.mask
    if not isinstance(mask, RasterSource) or not reader.shares_mask:
        return 0
    reach = (
        Region.of_shape(tile).grow(*reader.kernel.halo_px).grow(*(reader.growth.halo_px if reader.growth else (0, 0)))
    )
    return reach.shape[0] * reach.shape[1] * mask.channels * mask.dtype.itemsize


def _growing_bytes(reader: LayerReader, height: int, width: int) -> int:
    """Of a mask that is grown: itself with its halo, and the distances of a strip of rows."""
    if reader.growth is None:
        return 0
    (y, x), (halo_y, halo_x) = reader.growth.halo_px, reader.kernel.halo_px
    wide = width + 2 * (halo_x + x)
    return wide * ((height + 2 * (halo_y + y)) * 4 + (max(STRIP_ROWS, 2 * y) + 2 * y) * 20)


def _whole_images(composite: Composite) -> int:
    """Bytes of images that decode as a whole (PNG, JPEG, WebP) and stay in a process, and of outlines."""
    sources = {
        id(s): s
        for layer in composite.layers
        for s in (layer.image, layer.mask)
        if s is not None and not isinstance(s, str)
    }
    whole = (s for s in sources.values() if s.levels[0].tile == s.shape and not s.levels[0].decoding)
    outlines = {s.spec.path: s.opening_bytes for s in sources.values() if isinstance(s, PolygonSource)}
    return sum(outlines.values()) + sum(s.shape[0] * s.shape[1] * s.channels * s.dtype.itemsize for s in whole)
