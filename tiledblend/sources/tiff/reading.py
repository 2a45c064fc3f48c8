"""Pixels of a region from the tiles, strips or plain rows that hold them: nothing else is read or decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import ByteReader
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.tiff.large import LARGE_TILE, LargeTiles
from tiledblend.sources.tiff.layout import PageTable, StoredLevel
from tiledblend.sources.tiff.restarts import RestartOrder
from tiledblend.sources.tiff.segments import GROUP_4_FAX, JpegFrames, SegmentError, check_segment

BATCH_BYTES = 16 << 20
CACHE_BYTES = 4 * LARGE_TILE
REPEATED_STORED, REPEATED_BYTES, REPEATED_TILES = 1024, 1 << 20, 8
MIXED, UNKNOWN = -1, -2

Pixels = NDArray[Any]


class PartlyUsed:
    """Decoded tiles that a read used only in part, until other reads have used the rest. Thread-safe.

    Reading an image in bands, or tile by tile, meets a tile that two of them share: with this it is decoded once.
    At most `limit` bytes are kept, the least recently used go first; a tile above a quarter of that is never kept.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, ...], tuple[Pixels, int]] = OrderedDict()

    def take(self, key: tuple[int, ...], used: int) -> Pixels | None:
        """The tile, if it is kept; it is dropped when `used` more pixels complete its use."""
        with self._lock:
            found = self._tiles.pop(key, None)
            if found is None:
                return None
            tile, left = found
            if left > used:
                self._tiles[key] = tile, left - used
            else:
                self._bytes -= tile.nbytes
            return tile

    def is_large(self, size: int) -> bool:
        """True for a tile of so many bytes that it is never kept."""
        return size > self._limit // 4

    def has(self, key: tuple[int, ...]) -> bool:
        """True when the tile is kept now."""
        with self._lock:
            return key in self._tiles

    def put(self, key: tuple[int, ...], tile: Pixels, left: int) -> None:
        """Keep a tile of which `left` pixels were not used yet."""
        if left <= 0 or self.is_large(tile.nbytes):
            return
        with self._lock:
            old = self._tiles.pop(key, None)
            self._bytes += tile.nbytes - (old[0].nbytes if old is not None else 0)
            self._tiles[key] = tile, left
            while self._bytes > self._limit:
                _, (gone, _) = self._tiles.popitem(last=False)
                self._bytes -= gone.nbytes


class Repeated:
    """Decoded tiles of one colour by their few stored bytes: a mask repeats its empty and its full tile everywhere.

    Thread-safe. The same bytes of the same size inside the image decode to the same pixels, which are read-only.
    """

    def __init__(self) -> None:
        self._tiles: dict[tuple[bytes, tuple[int, int], int], Pixels] = {}

    def get(self, data: bytes, item: _Wanted) -> Pixels | None:
        return self._tiles.get((data, item.bounds.shape, item.page)) if len(data) <= REPEATED_STORED else None

    def put(self, data: bytes, item: _Wanted, tile: Pixels) -> None:
        if len(data) > REPEATED_STORED or tile.nbytes > REPEATED_BYTES or len(self._tiles) >= REPEATED_TILES:
            return
        if not _is_uniform(tile):
            return
        kept = np.ascontiguousarray(tile)
        kept.flags.writeable = False
        self._tiles[data, item.bounds.shape, item.page] = kept


@dataclass(slots=True)  # not frozen: that takes four times as long to make
class _Wanted:
    """A segment that a read needs. plane: position in the output. part: image region that it holds, inside `region`."""

    plane: int
    page: int
    index: int
    bounds: Region
    part: Region
    offset: int
    count: int


class LevelReader:
    """Reads regions of one level of a TIFF.

    name: of the source, number: of the level, in messages. allow_sparse: tiles without bytes are zeros.
    """

    def __init__(
        self, reader: ByteReader, level: StoredLevel, cache: PartlyUsed, *, name: str, number: int, allow_sparse: bool
    ) -> None:
        self._reader = reader
        self._level = level
        self._cache = cache
        self._large = LargeTiles() if cache.is_large(level.tile_bytes) else None
        self._name = name
        self._number = number
        self._allow_sparse = allow_sparse
        self._grid, self._tile_bytes = level.grid, level.tile_bytes
        self._frames = JpegFrames()
        self._repeated = Repeated()
        self._values: dict[tuple[int, int], NDArray[np.int32]] = {}
        cut_at_restarts = level.jpegheader is not None
        self._orders = [RestartOrder(reader, table) for table in level.pages] if cut_at_restarts else []

    def uniform(self, region: Region, plane: tuple[int, int]) -> int | None:
        """The value of all of a region's pixels, where every tile of it is stored in a few bytes and has that one.

        Of levels with one sample a pixel. What was found out of a tile is kept, its pixels as `PartlyUsed` keeps them.
        """
        if self._level.raw is not None or self._reader.has_latency:
            return None
        values = self._values.get(plane)
        if values is None:
            values = self._values[plane] = np.full(self._grid, UNKNOWN, np.int32)
        (height, width), image = self._level.tile, values.shape
        rows = slice(region.y0 // height, min(-(-region.y1 // height), image[0]))
        columns = slice(region.x0 // width, min(-(-region.x1 // width), image[1]))
        tiles = values[rows, columns]
        lowest = int(tiles.min())
        if lowest == UNKNOWN:
            unknown = np.argwhere(tiles == UNKNOWN) + np.array((rows.start, columns.start))
            segments = [self._segment(0, plane, row, column, region) for row, column in unknown.tolist()]
            self._look_at(values, segments, region)
            lowest = int(tiles.min())
        return lowest if lowest >= 0 and lowest == int(tiles.max()) else None

    def _look_at(self, values: NDArray[np.int32], tiles: list[_Wanted], region: Region) -> None:
        """Find the value of each tile, or MIXED."""
        small = [item for item in tiles if 0 < item.count <= REPEATED_STORED and self._check_place(item, region)]
        found = {item.index: self._value(data, item) for data, item in zip(self._fetch(small), small, strict=True)}
        for item in tiles:
            values.flat[item.index % values.size] = found.get(item.index, MIXED)

    def _value(self, data: bytes, item: _Wanted) -> int:
        known = self._repeated.get(data, item)
        if known is not None:
            return int(known[0, 0, 0])
        tile = self._decode(data, item, item.bounds)
        if _is_uniform(tile):
            return int(tile[0, 0, 0])
        self._cache.put((self._number, item.page, item.index), tile, item.bounds.size)
        return MIXED

    def read(self, region: Region, planes: Sequence[tuple[int, int]]) -> Pixels:
        """Pixels of each plane (page, separate sample) after one another: shape (planes, height, width, samples)."""
        level = self._level
        samples = level.samples.count if level.separate == 1 else 1
        if level.raw is not None:
            return self._read_rows(region, planes)
        wanted = list(self._wanted(region, planes))
        if len(wanted) == 1 and wanted[0].bounds == region:
            tile = self._one(wanted[0])
            if tile is not None:
                return tile[np.newaxis]
        out = np.empty((len(planes), *region.shape, samples), level.samples.dtype)
        missing = []
        for item in wanted:
            tile = self._take(item)
            if tile is None:
                missing.append(item)
            else:
                _paste(out, region, item, tile)
        for batch in _batches(missing):
            self._read_batch(batch, region, out)
        return out

    def rest(self) -> None:
        """This thread reads no more for now: let go of the large tiles that it keeps."""
        if self._large is not None:
            self._large.clear()

    def expect(self, regions: Sequence[Region], planes: Sequence[tuple[int, int]], *, fetch: bool) -> int:
        """Tell the reader which segments reads of these regions need; returns the number of merged requests."""
        if self._level.raw is not None:
            return 0
        wanted = (item for region in regions for item in self._wanted(region, planes))
        ranges = {
            (item.offset, item.count)
            for item in wanted
            if item.count and item.offset + item.count <= self._reader.size
            if not self._has((self._number, item.page, item.index))
        }
        return self._reader.expect(sorted(ranges), fetch=fetch)

    def _read_batch(self, batch: list[_Wanted], region: Region, out: Pixels) -> None:
        stored = [item for item in batch if self._check_place(item, region)]
        data = iter(self._fetch(stored))
        for item in batch:
            if item.count == 0:
                out[item.plane][item.part.shift(-region.y0, -region.x0).slices] = 0
                continue
            self._make_room()
            tile = self._decode(next(data), item, region)
            _paste(out, region, item, tile)
            self._keep(item, tile)

    def _make_room(self) -> None:
        if self._large is not None:
            self._large.make_room(self._tile_bytes)

    def _has(self, key: tuple[int, ...]) -> bool:
        return self._cache.has(key) if self._large is None else self._large.has(key)

    def _take(self, item: _Wanted) -> Pixels | None:
        """A decoded segment that is kept."""
        key = self._number, item.page, item.index
        return self._cache.take(key, item.part.size) if self._large is None else self._large.get(key)

    def _keep(self, item: _Wanted, tile: Pixels) -> None:
        """Keep a segment of which a read used a part."""
        key, left = (self._number, item.page, item.index), item.bounds.size - item.part.size
        if self._large is None:
            self._cache.put(key, tile, left)
        elif left > 0:
            self._large.put(key, tile)

    def _one(self, item: _Wanted) -> Pixels | None:
        kept = self._take(item)
        if kept is not None:
            return kept.copy()  # another thread may be pasting from it, and what is returned is the caller's
        if self._check_place(item, item.part):
            self._make_room()
            return self._decode(self._fetch([item])[0], item, item.part)
        return None

    def _wanted(self, region: Region, planes: Sequence[tuple[int, int]]) -> Iterator[_Wanted]:
        height, width = self._level.tile
        for position, plane in enumerate(planes):
            for row in range(region.y0 // height, -(-region.y1 // height)):
                for column in range(region.x0 // width, -(-region.x1 // width)):
                    yield self._segment(position, plane, row, column, region)

    def _segment(self, position: int, plane: tuple[int, int], row: int, column: int, region: Region) -> _Wanted:
        (page, separate), level = plane, self._level
        (height, width), (rows, columns), (end_y, end_x) = level.tile, self._grid, level.shape
        y0, x0 = row * height, column * width
        bounds = Region(y0, x0, min(y0 + height, end_y), min(x0 + width, end_x))
        index = (separate * rows + row) * columns + column
        return _Wanted(position, page, index, bounds, bounds & region, *self._place(level.pages[page], index))

    def _place(self, table: PageTable, index: int) -> tuple[int, int]:
        offset, count = int(table.offsets[index]), int(table.counts[index])
        if offset == 0 or count == 0:
            return 0, 0
        # Uncompressed writers may state more bytes than the pixels need.
        return offset, min(count, self._tile_bytes) if self._level.compression == 1 else count

    def _check_place(self, item: _Wanted, region: Region) -> bool:
        """True when the segment has bytes to read, False for one that may be missing."""
        if item.count == 0:
            if self._allow_sparse:
                return False
            raise self._error(item, region, "sparse, it was never written; pass --allow-sparse to read it as zeros")
        if item.offset + item.count > self._reader.size:
            end = item.offset + item.count
            raise self._error(
                item, region, f"ends at byte {end}, the file has {self._reader.size}: truncated; copy it again"
            )
        if self._level.compression != 1 and item.count > 2 * self._tile_bytes + (1 << 20):
            raise self._error(item, region, f"claims {item.count} bytes for {self._tile_bytes} decoded; damaged")
        return True

    def _fetch(self, items: Sequence[_Wanted]) -> list[bytes]:
        return self._reader.pread_many([(item.offset, item.count) for item in items])

    def _decode(self, data: bytes, item: _Wanted, region: Region) -> Pixels:
        """Pixels of the part of a segment that lies inside the image, as `read` returns them."""
        tile = self._repeated.get(data, item)
        if tile is None:
            tile = self._decoded(data, item, region)
            self._repeated.put(data, item, tile)
        return tile

    def _decoded(self, data: bytes, item: _Wanted, region: Region) -> Pixels:
        level = self._level
        stored = (*level.tile, level.contiguous)
        needed = item.bounds.shape
        try:
            frames = None if level.jpegheader is not None else self._frames
            frame = check_segment(data, level.compression, stored, needed, frames)
            tables = level.pages[item.page].jpegtables
            pixels = level.jpeg.decode(data, tables, frame) if level.jpeg is not None else None
            if pixels is None:
                pixels = level.decode(data, item.index, jpegtables=tables, jpegheader=level.jpegheader)[0][0]
            if pixels.shape[0] < needed[0] or pixels.shape[1] < needed[1] or pixels.shape[2] != level.contiguous:
                raise SegmentError(f"decodes to {pixels.shape}, {needed} pixels are needed")
            if level.compression in GROUP_4_FAX:
                pixels = pixels != 0  # bits come as uint8
            if pixels.dtype != level.dtype:
                raise SegmentError(f"decodes to {pixels.dtype}, the TIFF says {level.dtype}")
        except MemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._error(item, region, f"cannot be decoded: {reason}; restore the file") from error
        if self._orders:
            misplaced = self._orders[item.page].problem(data, item.index)
            if misplaced:
                raise self._error(item, region, f"{misplaced}; restore the file")
        pixels = pixels[: needed[0], : needed[1]]
        return pixels if level.samples.convert is None else level.samples.convert(pixels)

    def _error(self, item: _Wanted, region: Region, what: str) -> BadInputError:
        kind = "tile" if self._level.is_tiled else "strip"
        page = f", page {item.page}" if len(self._level.pages) > 1 else ""
        return BadInputError(
            f"{self._name}: level {self._number}{page}, region {region}: {kind} {item.index} at {item.bounds} {what}"
        )

    def _read_rows(self, region: Region, planes: Sequence[tuple[int, int]]) -> Pixels:
        level = self._level
        assert level.raw is not None
        out = np.empty((len(planes), *region.shape, level.contiguous), level.dtype)
        pixel = level.contiguous * level.raw.itemsize
        row_bytes = level.shape[1] * pixel
        self._check_rows(region, planes, row_bytes)
        height, width = region.shape
        whole = width == level.shape[1]
        step = max(1, BATCH_BYTES // (width * pixel))
        for position, (page, separate) in enumerate(planes):
            start = int(level.pages[page].offsets[separate]) + region.x0 * pixel
            for row in range(0, height, step):
                rows = min(step, height - row)
                first = start + (region.y0 + row) * row_bytes
                ranges = [(first, rows * row_bytes)] if whole else [
                    (first + i * row_bytes, width * pixel) for i in range(rows)
                ]  # fmt: skip
                parts = self._reader.pread_many(ranges)
                lines = out[position, row : row + rows].reshape(len(parts), -1)
                for line, part in zip(lines, parts, strict=True):
                    line[...] = np.frombuffer(part, level.raw)
        convert = level.samples.convert
        return out if convert is None else np.stack([convert(plane) for plane in out])

    def _check_rows(self, region: Region, planes: Sequence[tuple[int, int]], row_bytes: int) -> None:
        for page, separate in planes:
            offset = int(self._level.pages[page].offsets[separate])
            end = offset + region.y1 * row_bytes
            if end > self._reader.size:
                raise BadInputError(
                    f"{self._name}: level {self._number}, region {region}: its rows end at byte {end}, "
                    f"the file has {self._reader.size}: truncated; copy it again"
                )


def _is_uniform(tile: Pixels) -> bool:
    """True when all pixels (y, x, sample) have one colour."""
    return bool((tile == tile[0, 0]).all())


def _paste(out: Pixels, region: Region, item: _Wanted, tile: Pixels) -> None:
    target = item.part.shift(-region.y0, -region.x0).slices
    source = item.part.shift(-item.bounds.y0, -item.bounds.x0).slices
    out[item.plane][target] = tile[source]


def _batches(items: list[_Wanted]) -> Iterator[list[_Wanted]]:
    """Items in order, in groups of at most BATCH_BYTES of stored bytes (or of one item)."""
    batch: list[_Wanted] = []
    size = 0
    for item in items:
        if batch and size + item.count > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.count
    if batch:
        yield batch


def channel_planes(level: StoredLevel, channels: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """The planes (page, separate sample) that hold these channels, and each channel's place among their samples."""
    samples = level.samples.count if level.separate == 1 else 1
    planes: dict[tuple[int, int], int] = {}
    places = []
    for channel in channels:
        if level.separate == 1:
            key, sample = (channel // samples, 0), channel % samples
        else:
            key, sample = divmod(channel, level.separate), 0
        places.append(planes.setdefault(key, len(planes)) * samples + sample)
    return list(planes), places


def arrange(planes: Pixels, places: Sequence[int]) -> Pixels:
    """(planes, height, width, samples) to (height, width, channels), without a copy where the memory allows it."""
    number, height, width, samples = planes.shape
    pixels: Pixels
    if number == 1:
        pixels = planes[0]
    elif samples == 1:
        pixels = np.moveaxis(planes[..., 0], 0, 2)
    else:
        pixels = planes.transpose(1, 2, 0, 3).reshape(height, width, number * samples)
    first, last = places[0], places[-1]
    if list(places) == list(range(first, last + 1)):
        return pixels[:, :, first : last + 1]
    return np.moveaxis(np.stack([pixels[:, :, place] for place in places]), 0, 2)
