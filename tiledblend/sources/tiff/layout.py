"""From parsed TIFF pages to levels that can be read: how each page is cut and coded, and where its segments are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import ceil_div
from tiledblend.sources.tiff.codecs import own_codec
from tiledblend.sources.tiff.coding import Coding
from tiledblend.sources.tiff.jpeg import general_decoder, jpeg_stream
from tiledblend.sources.tiff.lerc import DEFLATE, LERC, NONE, ZSTD, lerc_wrapping
from tiledblend.sources.tiff.ndpi import level_sides
from tiledblend.sources.tiff.pages import FoundPage, find_pages, unlike
from tiledblend.sources.tiff.samples import Samples, interpret
from tiledblend.sources.tiff.segments import GROUP_4_FAX
from tiledblend.sources.tiff.structure import Structure

MAX_SEGMENT_BYTES = 1 << 30

# Their streams have no end marker and their decoders make a picture of any bytes: damage would go unseen.
_UNCHECKED_FAX = frozenset({2, 3})
_ORIENTATION, _NODATA = 274, 42113
_TAIL = 64


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where one page's tiles or strips are. offsets, counts: int64, in bytes, by segment index; 0, 0: not stored.

    label: how messages call the page.
    """

    coding: Coding
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    jpegtables: bytes | None
    label: str = "page 0"

    @property
    def segments(self) -> int:
        """Number of tiles or strips that the image needs."""
        return self.coding.separate * math.prod(self.coding.grid)

    @property
    def absent(self) -> NDArray[np.bool_]:
        """(segments,) True for those that are not stored."""
        number = self.segments
        missing: NDArray[np.bool_] = (self.offsets[:number] == 0) | (self.counts[:number] == 0)
        return missing


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """One resolution as it is stored. shape: (y, x). samples: what those of the first page mean, and so of all.

    pages: one per channel page; pages may be cut and coded each in its own way. orientation: the tag of all of them.
    notes: what is unusual.
    """

    shape: tuple[int, int]
    pages: tuple[PageTable, ...]
    samples: Samples
    orientation: int = 1
    notes: tuple[str, ...] = ()

    @property
    def coding(self) -> Coding:
        """Of the first page."""
        return self.pages[0].coding

    @property
    def separate(self) -> int:
        """Number of planes of one sample that a page is read as; 1 where its pixels are read whole."""
        return 1 if self.coding.is_joined else self.coding.separate

    @property
    def tile_bytes(self) -> int:
        """Bytes of the largest decoded segment."""
        return max(page.coding.tile_bytes for page in self.pages)

    @property
    def decoding_bytes(self) -> int:
        """Most bytes that decoding one segment takes besides its pixels: as stored, and what the decoder makes."""
        return max(_decoding_bytes(page, self.samples.count) for page in self.pages)

    @property
    def access(self) -> tuple[int, int]:
        """(y, x) of the block that one decode yields: of raw rows a nominal one, of unlike pages the largest."""
        blocks = [_access(page.coding, self.shape) for page in self.pages]
        return max(y for y, _ in blocks), max(x for _, x in blocks)


def _decoding_bytes(page: PageTable, count: int) -> int:
    coding = page.coding
    converted = 2 * count * math.prod(coding.tile) if coding.convert is not None and coding.raw is None else 0
    return coding.decoding_bytes(int(page.counts.max(initial=0))) + converted


def _access(coding: Coding, shape: tuple[int, int]) -> tuple[int, int]:
    if coding.raw is not None:
        return min(256, shape[0]), min(256, shape[1])
    return coding.tile[0] if coding.is_tiled else min(coding.tile[0], shape[0]), coding.tile[1]


def store_level(
    series: tifffile.TiffPageSeries,
    numbers: list[int],
    name: str,
    structure: Structure,
    *,
    mask: bool,
    base: tifffile.TiffPage | None = None,
) -> StoredLevel:
    """The pages `numbers` of one resolution. Raises BadInputError for layouts and samples that are not read.

    base: page of the finest resolution, whose nodata value holds for smaller ones that do not say.
    """
    found = find_pages(series, numbers, name, structure)
    first = found[0]
    samples = interpret(first.tags, name, mask=mask)
    height, width = level_sides(first.tags, structure)
    codings = {id(first.tags): _coding(first.tags, samples, name, base, (height, width))}
    for page in found[1:]:
        if id(page.tags) not in codings:
            codings[id(page.tags)] = _coding_beside(first, page, samples, codings[id(first.tags)], name, mask, base)
    tables = [_table(page, codings[id(page.tags)], height) for page in found]
    notes = (*_unlike_note(tables), *_sides_note(first.tags, (height, width)))
    if base is None:
        notes += _end_note(tables[0], structure)
    if len({coding.separate for coding in codings.values()}) > 1:
        tables = [_with(table, is_joined=table.coding.separate > 1) for table in tables]
    tables = [_as_rows(table, height, width) for table in tables]
    turned = first.tags.tags.valueof(_ORIENTATION, 1)
    turned = turned if isinstance(turned, int) else 1
    level = StoredLevel((height, width), tuple(tables), samples, turned, notes)
    for table in level.pages:
        _check_table(level.shape, table, name)
    return level


def _coding_beside(
    first: FoundPage,
    page: FoundPage,
    samples: Samples,
    coding: Coding,
    name: str,
    mask: bool,
    base: tifffile.TiffPage | None,
) -> Coding:
    """Of a page with tags of its own beside the first one's, whose coding it is where it comes to the same."""
    alike = (first.tags.imagelength, first.tags.imagewidth) == (page.tags.imagelength, page.tags.imagewidth)
    try:
        own = interpret(page.tags, f"{name}, {page.label}", mask=mask) if alike else samples
    except BadInputError as error:
        raise unlike(first, page, name) from error
    if not alike or own.meaning != samples.meaning:
        raise unlike(first, page, name)
    turned, said = (tags.valueof(_ORIENTATION, 1) for tags in (page.tags.tags, first.tags.tags))
    if turned != said:
        raise BadInputError(
            f"{name}: {page.label} has Orientation {turned} where {first.label} has {said}: select one of them"
        )
    sides = int(page.tags.imagelength), int(page.tags.imagewidth)
    beside = _coding(page.tags, own, f"{name}, {page.label}", base, sides)
    return coding if page.tags.hash == first.tags.hash and _same(beside, coding) else beside


def _same(one: Coding, two: Coding) -> bool:
    """True when two codings of pages that tifffile's decoder reads alike are the same for us."""

    def facts(coding: Coding) -> tuple[Any, ...]:
        return (coding.jpeg, coding.codec, coding.jpegheader, coding.convert is None, coding.fill.tolist())

    return one.convert is None and facts(one) == facts(two)


def _unlike_note(tables: list[PageTable]) -> tuple[str, ...]:
    """Which pages are cut or coded in another way than the first."""
    others = [table.label for table in tables if table.coding is not tables[0].coding]
    if not others:
        return ()
    shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return (f"stored unlike {tables[0].label}, each is read by its own tags: {shown}",)


def _sides_note(page: tifffile.TiffPage, sides: tuple[int, int]) -> tuple[str, ...]:
    said = int(page.imagelength), int(page.imagewidth)
    if said == sides:
        return ()
    return (f"its JPEG is of {sides[0]} x {sides[1]} pixels, which is read; the tags say {said[0]} x {said[1]}",)


def _end_note(table: PageTable, structure: Structure) -> tuple[str, ...]:
    """Of JPEGs without an end marker, by the first of them."""
    stored = np.flatnonzero(~table.absent)
    if table.coding.jpeg is None or table.coding.jpegheader is not None or not len(stored):
        return ()
    count = int(table.counts[stored[0]])
    tail = min(count, _TAIL)
    if b"\xff\xd9" in structure.bytes_at(int(table.offsets[stored[0]]) + count - tail, tail):
        return ()
    return ("JPEGs without an end marker: those are read whose data is whole",)


def _coding(
    page: tifffile.TiffPage, samples: Samples, name: str, base: tifffile.TiffPage | None, sides: tuple[int, int]
) -> Coding:
    """How a page of these (y, x) sides is cut and coded."""
    _check_compression(page, name)
    separate, _, _, _, contiguous = page.shaped
    height, width = sides
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, int(page.imagewidth))
    if min(height, width, *tile) < 1 or page.tiledepth > 1:
        raise BadInputError(
            f"{name}: image of {height} x {width} pixels in tiles of {tile[0]} x {tile[1]}; it is damaged"
        )
    dtype = np.dtype(page.dtype)
    grid = ceil_div(height, tile[0]), ceil_div(width, tile[1])
    is_joined = separate > 1 and samples.convert is not None
    return Coding(
        tile, grid, separate, contiguous, dtype, page.is_tiled, _raw_dtype(page),
        int(page.compression), general_decoder(page), page.jpegheader, jpeg_stream(page), own_codec(page),
        samples.convert, _fill(page, base, dtype, luma=is_joined), is_joined, int(page.predictor), _is_plain(page),
    )  # fmt: skip


def _is_plain(page: tifffile.TiffPage) -> bool:
    """True when a segment's bytes mean the same in a little-endian file that says no more of them."""
    if page.dtype is None or page.bitspersample != 8 * page.dtype.itemsize or page.fillorder != 1:
        return False
    return page.dtype.itemsize == 1 or page.parent.byteorder == "<"


def _with(table: PageTable, **changes: Any) -> PageTable:
    """A page whose coding differs in some fields."""
    return replace(table, coding=replace(table.coding, **changes))


def _fill(page: tifffile.TiffPage, base: tifffile.TiffPage | None, dtype: np.dtype[Any], *, luma: bool) -> NDArray[Any]:
    """Samples of a pixel that is not stored: GDAL's nodata where the file has one, else 0. luma: black in YCbCr."""
    said = page.tags.valueof(_NODATA)
    if said is None and base is not None:
        said = base.tags.valueof(_NODATA)
    fill = np.full(page.samplesperpixel, _nodata(said, dtype), dtype)
    if luma:
        fill[1:3] = 1 << (8 * dtype.itemsize - 1)
    return fill


def _nodata(said: Any, dtype: np.dtype[Any]) -> Any:
    try:
        value = float(str(said).strip(" \0").replace(",", "."))
    except ValueError:
        return 0
    if dtype.kind == "f":
        return value
    top = 1 if dtype.kind == "b" else np.iinfo(dtype).max
    bottom = 0 if dtype.kind == "b" else np.iinfo(dtype).min
    return int(value) if value.is_integer() and bottom <= value <= top else 0


def _check_compression(page: tifffile.TiffPage, name: str) -> None:
    code = int(page.compression)
    if code == 1:
        return
    if code in _UNCHECKED_FAX | GROUP_4_FAX and page.bitspersample != 1:
        # One flipped bit of this tag (7 to 3) gave zeros for a JPEG.
        raise BadInputError(f"{name}: compression {code} (fax) of {page.bitspersample}-bit samples; it is damaged")
    if code in LERC and lerc_wrapping(page) not in (NONE, DEFLATE, ZSTD):
        raise BadInputError(f"{name}: LERC inside codec {lerc_wrapping(page)} is not read; convert it, to deflate")
    if code in _UNCHECKED_FAX or code not in tifffile.TIFF.DECOMPRESSORS:
        kind = getattr(page.compression, "name", None)
        said = f"compression {code}" + (f" ({kind.lower()})" if kind else "")
        raise BadInputError(f"{name}: {said} is not read; convert the file, to deflate for example")


def _check_table(shape: tuple[int, int], table: PageTable, name: str) -> None:
    coding = table.coding
    kind = "tile" if coding.is_tiled else "strip"
    if coding.raw is None and coding.tile_bytes > MAX_SEGMENT_BYTES:
        raise BadInputError(
            f"{name}: one {kind} of {coding.tile[0]} x {coding.tile[1]} pixels decodes to {coding.tile_bytes >> 20} "
            f"MiB, more than the limit of {MAX_SEGMENT_BYTES >> 20} MiB; rewrite the file with 512 px tiles"
        )
    found = min(len(table.offsets), len(table.counts))
    if found < table.segments:
        raise BadInputError(
            f"{name}: level of {shape[0]} x {shape[1]} pixels needs {table.segments} {kind}s, "
            f"its table has {found}; the file is damaged"
        )


def _table(page: FoundPage, coding: Coding, height: int) -> PageTable:
    # A damaged file can state offsets that no int64 holds: none of them is inside the file either.
    offsets, counts = (
        np.minimum(np.asarray(values, np.uint64), np.uint64(2**62)).astype(np.int64)
        for values in (page.offsets, page.counts)
    )
    uncounted = coding.compression == 1 and not coding.is_tiled and len(counts) == len(offsets)
    if uncounted and bool(((counts == 0) & (offsets > 0)).any()):
        # Some writers leave the counts of rows to be worked out; a tile without bytes is absent to all readers.
        counts = np.where((counts == 0) & (offsets > 0), _plain_sizes(page.tags, coding, height, len(counts)), counts)
    return PageTable(coding, offsets, counts, page.jpegtables, page.label)


def _plain_sizes(page: tifffile.TiffPage, coding: Coding, height: int, number: int) -> NDArray[np.int64]:
    """Bytes of each uncompressed strip."""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * coding.dtype.itemsize
    row = ceil_div(coding.tile[1] * coding.contiguous * bits, 8)
    rows = np.full(number, coding.tile[0], np.int64)
    strips = coding.grid[0]
    rows[strips - 1 :: strips] = height - coding.tile[0] * (strips - 1)
    return rows * row


def _raw_dtype(page: tifffile.TiffPage) -> np.dtype[Any] | None:
    """The samples' dtype in the file when its strips are plain rows, else None."""
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if not plain or page.dtype is None or page.bitspersample != 8 * page.dtype.itemsize or page.is_subsampled:
        return None
    return page.dtype.newbyteorder(page.parent.byteorder)


def _as_rows(table: PageTable, height: int, width: int) -> PageTable:
    """A page of plain rows as one segment per sample plane; as strips where these do not follow one another."""
    coding = table.coding
    if coding.raw is None:
        return table
    row_bytes = width * coding.contiguous * coding.raw.itemsize
    merged = _merge_rows(table, coding.separate, height, coding.tile[0], row_bytes)
    if len(merged.offsets) != coding.separate or (merged.counts < height * row_bytes).any():
        return _with(table, raw=None)
    return _with(merged, tile=(height, width), grid=(1, 1))


def _merge_rows(table: PageTable, separate: int, height: int, rows: int, row_bytes: int) -> PageTable:
    """One segment per sample plane when its strips follow one another; the table as it was when they do not."""
    strips = ceil_div(height, rows)
    if len(table.offsets) != separate * strips or len(table.counts) != separate * strips:
        return table
    sizes = np.full(strips, rows * row_bytes, np.int64)
    sizes[-1] = (height - rows * (strips - 1)) * row_bytes
    offsets = table.offsets.reshape(separate, strips)
    enough = bool((table.counts.reshape(separate, strips) >= sizes).all())
    if not enough or int(offsets.min()) < 8 or not bool((np.diff(offsets, axis=1) == sizes[:-1]).all()):
        return table
    counts = np.full(separate, height * row_bytes, np.int64)
    return replace(table, offsets=offsets[:, 0].copy(), counts=counts, jpegtables=None)
