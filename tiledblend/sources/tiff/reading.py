"""Pixels of a region from the tiles, strips or plain rows that hold them: nothing else is read or decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import ByteReader
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.tiff.kept import REPEATED_STORED, PartlyUsed, Repeated, is_uniform
from tiledblend.sources.tiff.large import LargeTiles
from tiledblend.sources.tiff.layout import StoredLevel
from tiledblend.sources.tiff.restarts import RestartOrder
from tiledblend.sources.tiff.segments import JpegFrames

BATCH_BYTES = 16 << 20
MIXED, UNKNOWN = -1, -2

Pixels = NDArray[Any]


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

    name: of the source, number: of the level, in messages. allow_sparse: what is not stored has its fill value.
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
        self._codings = [table.coding for table in level.pages]
        self._has_joined = any(coding.is_joined for coding in self._codings)
        self._has_rows = any(coding.raw is not None for coding in self._codings)
        self._frames = JpegFrames()
        self._repeated = Repeated()
        self._values: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._orders = [
            RestartOrder(reader, table) if table.coding.jpegheader is not None else None for table in level.pages
        ]

    def uniform(self, region: Region, plane: tuple[int, int]) -> int | None:
        """The value of all of a region's pixels, where every tile of it is stored in a few bytes and has that one.

        Of levels with one sample a pixel. What was found out of a tile is kept, its pixels as `PartlyUsed` keeps them.
        """
        coding = self._codings[plane[0]]
        if coding.raw is not None or self._reader.has_latency:
            return None
        values = self._values.get(plane)
        if values is None:
            values = self._values[plane] = np.full(coding.grid, UNKNOWN, np.int32)
        (height, width), image = coding.tile, values.shape
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
        known = self._repeated.get(data, item.bounds.shape, item.page)
        if known is not None:
            return int(known[0, 0, 0])
        tile = self._decode(data, item, item.bounds)
        if is_uniform(tile):
            return int(tile[0, 0, 0])
        self._cache.put((self._number, item.page, item.index), tile, item.bounds.size)
        return MIXED

    def read(self, region: Region, planes: Sequence[tuple[int, int]]) -> Pixels:
        """Pixels of each plane (page, separate sample) after one another: shape (planes, height, width, samples)."""
        if self._has_joined:
            return np.stack([self._read_whole(region, page, separate) for page, separate in planes])
        return self._read_planes(region, planes, convert=True)

    def _read_whole(self, region: Region, page: int, separate: int) -> Pixels:
        """(height, width, samples) of a page whose planes may have to be read together."""
        coding = self._codings[page]
        if not coding.is_joined:
            return self._read_planes(region, [(page, separate)], convert=True)[0]
        planes = self._read_planes(region, [(page, plane) for plane in range(coding.separate)], convert=False)
        pixels = np.ascontiguousarray(np.moveaxis(planes[..., 0], 0, 2))
        return pixels if coding.convert is None else coding.convert(pixels)

    def _read_planes(self, region: Region, planes: Sequence[tuple[int, int]], *, convert: bool) -> Pixels:
        samples, dtype = self._level.samples, self._level.samples.dtype
        number = samples.count if self._level.separate == 1 and convert else self._codings[planes[0][0]].contiguous
        if self._has_rows and all(self._codings[page].raw is not None for page, _ in planes):
            return self._read_rows(region, planes, convert=convert)
        wanted = list(self._wanted(region, planes))
        if len(wanted) == 1 and wanted[0].bounds == region and not self._has_rows:
            tile = self._one(wanted[0])
            if tile is not None:
                return tile[np.newaxis]
        out = np.empty((len(planes), *region.shape, number), dtype)
        missing = []
        for item in wanted:
            tile = self._take(item)
            if tile is None:
                missing.append(item)
            else:
                _paste(out, region, item, tile)
        for batch in _batches(missing):
            self._read_batch(batch, region, out)
        if self._has_rows:  # beside pages in tiles or packed
            for position, plane in enumerate(planes):
                if self._codings[plane[0]].raw is not None:
                    out[position] = self._read_rows(region, [plane], convert=convert)[0]
        return out

    def absent(self, planes: Sequence[tuple[int, int]]) -> tuple[int, int, Region, str] | None:
        """(segments that are not stored, segments of these planes, the first one's region, what it reads as)."""
        missing, number, first = 0, 0, None
        for page, separate in self._stored_planes(planes):
            table, each = self._level.pages[page], math.prod(self._codings[page].grid)
            lacking = np.flatnonzero(table.absent[separate * each : (separate + 1) * each])
            missing, number = missing + len(lacking), number + each
            if first is None and len(lacking):
                row, column = divmod(int(lacking[0]), self._codings[page].grid[1])
                first = self._segment(0, (page, separate), row, column, Region.of_shape(self._level.shape))
        return None if first is None else (missing, number, first.bounds, self._fill_text(first))

    def _stored_planes(self, planes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The planes that have segments of their own, of those that are read."""
        return [
            (page, plane)
            for page, separate in planes
            for plane in (range(self._codings[page].separate) if self._codings[page].is_joined else (separate,))
        ]

    def rest(self) -> None:
        """This thread reads no more for now: let go of the large tiles that it keeps."""
        if self._large is not None:
            self._large.clear()

    def expect(self, regions: Sequence[Region], planes: Sequence[tuple[int, int]], *, fetch: bool) -> int:
        """Tell the reader which segments reads of these regions need; returns the number of merged requests."""
        if self._has_joined:
            planes = self._stored_planes(planes)
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
                out[item.plane][item.part.shift(-region.y0, -region.x0).slices] = self._fill(item)
                continue
            self._make_room(item)
            tile = self._decode(next(data), item, region)
            _paste(out, region, item, tile)
            self._keep(item, tile)

    def _fill(self, item: _Wanted) -> Pixels:
        """The samples of a pixel that is not stored."""
        coding = self._codings[item.page]
        first = item.index // math.prod(coding.grid) * coding.contiguous
        fill = coding.fill[first : first + coding.contiguous]
        if coding.convert is None or coding.is_joined:
            return fill
        converted: Pixels = coding.convert(fill.reshape(1, 1, -1))[0, 0]
        return converted

    def _make_room(self, item: _Wanted) -> None:
        if self._large is not None:
            self._large.make_room(self._codings[item.page].tile_bytes)

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
            self._make_room(item)
            return self._decode(self._fetch([item])[0], item, item.part)
        return None

    def _wanted(self, region: Region, planes: Sequence[tuple[int, int]]) -> Iterator[_Wanted]:
        """The segments of a region, page by page; of pages of plain rows none."""
        for position, plane in enumerate(planes):
            coding = self._codings[plane[0]]
            if coding.raw is not None:
                continue
            height, width = coding.tile
            for row in range(region.y0 // height, -(-region.y1 // height)):
                for column in range(region.x0 // width, -(-region.x1 // width)):
                    yield self._segment(position, plane, row, column, region)

    def _segment(self, position: int, plane: tuple[int, int], row: int, column: int, region: Region) -> _Wanted:
        page, separate = plane
        coding = self._codings[page]
        (height, width), (rows, columns), (end_y, end_x) = coding.tile, coding.grid, self._level.shape
        y0, x0 = row * height, column * width
        bounds = Region(y0, x0, min(y0 + height, end_y), min(x0 + width, end_x))
        index = (separate * rows + row) * columns + column
        return _Wanted(position, page, index, bounds, bounds & region, *self._place(page, index))

    def _place(self, page: int, index: int) -> tuple[int, int]:
        table, coding = self._level.pages[page], self._codings[page]
        offset, count = int(table.offsets[index]), int(table.counts[index])
        if offset == 0 or count == 0:
            return 0, 0
        # Uncompressed writers may state more bytes than the pixels need.
        return offset, min(count, coding.tile_bytes) if coding.compression == 1 else count

    def _check_place(self, item: _Wanted, region: Region) -> bool:
        """True when the segment has bytes to read, False for one that may be missing."""
        if item.count == 0:
            if self._allow_sparse:
                return False
            advice = f"pass --allow-sparse to read it as {self._fill_text(item)}"
            raise self._error(item, region, f"sparse, it was never written; {advice}")
        if item.offset + item.count > self._reader.size:
            end = item.offset + item.count
            raise self._error(
                item, region, f"ends at byte {end}, the file has {self._reader.size}: truncated; copy it again"
            )
        coding = self._codings[item.page]
        if coding.compression != 1 and item.count > 2 * coding.tile_bytes + (1 << 20):
            raise self._error(item, region, f"claims {item.count} bytes for {coding.tile_bytes} decoded; damaged")
        return True

    def _fill_text(self, item: _Wanted) -> str:
        """What a segment that is not stored reads as: one value for all samples, or one each."""
        values = [str(value) for value in self._fill(item).tolist()]
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    @property
    def frames(self) -> JpegFrames:
        """Headers of JPEG segments that were parsed."""
        return self._frames

    def stored(self, places: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        """The bytes of segments by (page, row, column); None for one that is not stored, or not whole."""
        items = [
            self._segment(0, (page, 0), row, column, Region.of_shape(self._level.shape)) for page, row, column in places
        ]
        whole = [item.count > 0 and self._check_place(item, item.bounds) for item in items]
        data = iter(self._fetch([item for item, is_there in zip(items, whole, strict=True) if is_there]))
        return [next(data) if is_there else None for is_there in whole]

    def _fetch(self, items: Sequence[_Wanted]) -> list[bytes]:
        return self._reader.pread_many([(item.offset, item.count) for item in items])

    def _decode(self, data: bytes, item: _Wanted, region: Region) -> Pixels:
        """Pixels of the part of a segment that lies inside the image, as `read` returns them."""
        tile = self._repeated.get(data, item.bounds.shape, item.page)
        if tile is None:
            tile = self._decoded(data, item, region)
            self._repeated.put(data, item.bounds.shape, item.page, tile)
        return tile

    def _decoded(self, data: bytes, item: _Wanted, region: Region) -> Pixels:
        coding, tables = self._codings[item.page], self._level.pages[item.page].jpegtables
        try:
            pixels = coding.pixels(data, item.index, item.bounds.shape, tables, self._frames)
        except MemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._error(item, region, f"cannot be decoded: {reason}; restore the file") from error
        order = self._orders[item.page]
        misplaced = order.problem(data, item.index) if order is not None else None
        if misplaced:
            raise self._error(item, region, f"{misplaced}; restore the file")
        return pixels if coding.convert is None or coding.is_joined else coding.convert(pixels)

    def _error(self, item: _Wanted, region: Region, what: str) -> BadInputError:
        kind = "tile" if self._codings[item.page].is_tiled else "strip"
        page = f", page {item.page}" if len(self._level.pages) > 1 else ""
        return BadInputError(
            f"{self._name}: level {self._number}{page}, region {region}: {kind} {item.index} at {item.bounds} {what}"
        )

    def _read_rows(self, region: Region, planes: Sequence[tuple[int, int]], *, convert: bool) -> Pixels:
        """Of pages of plain rows: only what the region needs is read."""
        self._check_rows(region, planes)
        return np.stack([self._rows(region, page, separate, convert=convert) for page, separate in planes])

    def _rows(self, region: Region, page: int, separate: int, *, convert: bool) -> Pixels:
        coding = self._codings[page]
        assert coding.raw is not None
        height, width = region.shape
        pixel = coding.contiguous * coding.raw.itemsize
        row_bytes = self._level.shape[1] * pixel
        out = np.empty((height, width, coding.contiguous), coding.dtype)
        whole = width == self._level.shape[1]
        step = max(1, BATCH_BYTES // (width * pixel))
        start = int(self._level.pages[page].offsets[separate]) + region.x0 * pixel
        for row in range(0, height, step):
            rows = min(step, height - row)
            first = start + (region.y0 + row) * row_bytes
            ranges = [(first, rows * row_bytes)] if whole else [
                (first + i * row_bytes, width * pixel) for i in range(rows)
            ]  # fmt: skip
            parts = self._reader.pread_many(ranges)
            lines = out[row : row + rows].reshape(len(parts), -1)
            for line, part in zip(lines, parts, strict=True):
                line[...] = np.frombuffer(part, coding.raw)
        return out if coding.convert is None or not convert else coding.convert(out)

    def _check_rows(self, region: Region, planes: Sequence[tuple[int, int]]) -> None:
        for page, separate in planes:
            coding = self._codings[page]
            row_bytes = self._level.shape[1] * coding.contiguous * coding.dtype.itemsize
            end = int(self._level.pages[page].offsets[separate]) + region.y1 * row_bytes
            if end > self._reader.size:
                raise BadInputError(
                    f"{self._name}: level {self._number}, region {region}: its rows end at byte {end}, "
                    f"the file has {self._reader.size}: truncated; copy it again"
                )


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
    """The planes (page, separate sample) that hold these channels, and each channel's place among their samples.

    A page whose planes are read together counts as one plane of all its samples.
    """
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
