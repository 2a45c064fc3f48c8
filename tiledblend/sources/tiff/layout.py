"""From parsed TIFF pages to levels that can be read: which pages, cut how, and what their samples mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import ceil_div
from tiledblend.sources.base import MASK_DTYPES, SUPPORTED_DTYPES, Alpha, SourceSpec
from tiledblend.sources.tiff.jpeg import JpegStream, jpeg_stream
from tiledblend.sources.tiff.segments import GROUP_4_FAX, JPEG, JPEG_2000, LERC, WEBP

MAX_SEGMENT_BYTES = 1 << 30

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, TRANSPARENCY_MASK, YCBCR = 0, 1, 2, 3, 4, 6
APERIO_YCBCR_JPEG_2000 = 33003
# Their streams have no end marker and their decoders make a picture of any bytes: damage would go unseen.
_UNCHECKED_FAX = frozenset({2, 3})
_LERC_PARAMETERS = 50674

Pixels = NDArray[Any]
Convert = Callable[[Pixels], Pixels]


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where one page's tiles or strips are. offsets, counts: int64, in bytes, by segment index."""

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    jpegtables: bytes | None


@dataclass(frozen=True, slots=True)
class Samples:
    """What a page's samples mean. dtype, count, alpha, is_rgb: after `convert`; count is of the whole pixel.

    convert: from decoded (height, width, samples) to what `read` returns, None when they are the same.
    """

    dtype: np.dtype[Any]
    count: int
    alpha: Alpha = Alpha.NONE
    is_rgb: bool = False
    convert: Convert | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """One resolution as it is stored. shape, tile: (y, x); a strip is a tile as wide as the image.

    separate: number of sample planes stored one after the other (1: interleaved). contiguous: samples per pixel of
    one segment as stored. raw: uncompressed rows in file order, so that any part is read without its strip.
    decode: tifffile's decoder (bytes, index) -> (array (depth, y, x, sample), position, shape), thread-safe.
    jpeg: the strict decoder of its JPEG segments, where there is one.
    pages: one per channel page.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    separate: int
    contiguous: int
    dtype: np.dtype[Any]
    is_tiled: bool
    raw: np.dtype[Any] | None
    compression: int
    decode: Callable[..., Any]
    jpegheader: bytes | None
    jpeg: JpegStream | None
    pages: tuple[PageTable, ...]
    samples: Samples

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of segments of one plane."""
        return ceil_div(self.shape[0], self.tile[0]), ceil_div(self.shape[1], self.tile[1])

    @property
    def tile_bytes(self) -> int:
        """Bytes of one decoded segment."""
        return math.prod(self.tile) * self.contiguous * self.dtype.itemsize

    @property
    def decoding_bytes(self) -> int:
        """Most bytes that decoding one segment takes besides its pixels: as stored, and what the decoder makes."""
        if self.raw is not None:
            return 0
        largest = max((int(table.counts.max(initial=0)) for table in self.pages), default=0)
        stored, samples = min(largest, 2 * self.tile_bytes), math.prod(self.tile) * self.contiguous
        # Measured: OpenJPEG decodes to 32-bit integers, libwebp to a picture of its own.
        decoder = 5 * samples if self.compression in JPEG_2000 else 2 * samples if self.compression in WEBP else 0
        converted = 2 * self.samples.count * math.prod(self.tile) if self.samples.convert is not None else 0
        return stored + decoder + converted

    @property
    def access(self) -> tuple[int, int]:
        """(y, x) of the block that one decode yields: of raw rows any, so a nominal one."""
        if self.raw is not None:
            return min(256, self.shape[0]), min(256, self.shape[1])
        return min(self.tile[0], self.shape[0]) if not self.is_tiled else self.tile[0], self.tile[1]


def dimensions(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    """(axis in lower case, size) of a series, without axes of one element other than y and x."""
    return _squeezed(series.axes, series.shape)


def _squeezed(axes: str, shape: Sequence[int]) -> list[tuple[str, int]]:
    pairs = zip(axes.lower(), shape, strict=True)
    return [(axis, int(size)) for axis, size in pairs if axis in "yx" or size != 1]


def leading(series: tifffile.TiffPageSeries, name: str) -> list[tuple[str, int]]:
    """(axis, size) of the axes along which the pages of a series are counted. Raises BadInputError when unclear."""
    page = series.keyframe
    if page.imagedepth > 1:
        raise BadInputError(f"{name}: volumetric TIFF (ImageDepth {page.imagedepth}) is not read; store z as pages")
    whole, tail = dimensions(series), _squeezed(page.axes, page.shape)
    if [size for _, size in whole[len(whole) - len(tail) :]] != [size for _, size in tail]:
        raise BadInputError(f"{name}: axes {_sizes(whole)} do not match its pages of {_sizes(tail)}; rewrite the file")
    lead = whole[: len(whole) - len(tail)]
    names = [axis for axis, _ in lead]
    return [
        (f"{axis}{names[:i].count(axis) + 1}" if axis in names[:i] else axis, n) for i, (axis, n) in enumerate(lead)
    ]


def page_numbers(series: tifffile.TiffPageSeries, spec: SourceSpec) -> list[int]:
    """Index within the series of each page that is a channel of the selected plane, in channel order.

    Raises BadInputError naming the axes when the plane is not one 2-D image.
    """
    lead = leading(series, spec.path)
    sizes = _sizes(dimensions(series))
    wanted = dict(spec.plane)
    numbers = [0]
    for axis, size in lead:
        if axis == "c":
            numbers = [number * size + index for number in numbers for index in range(size)]
            continue
        if axis not in wanted:
            raise BadInputError(
                f"{spec}: axes {sizes}: more than one 2-D image; select one along {axis} with plane {{{axis}: 0}}"
            )
        index = wanted.pop(axis)
        if not 0 <= index < size:
            raise BadInputError(f"{spec}: axes {sizes}: plane {axis}={index} is not from 0 to {size - 1}")
        numbers = [number * size + index for number in numbers]
    for axis, index in wanted.items():
        if index != 0 or axis in "cyxs":
            raise BadInputError(f"{spec}: axes {sizes}: no axis {axis} to select a plane of")
    return numbers


def _sizes(pairs: list[tuple[str, int]]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in pairs)


def store_level(series: tifffile.TiffPageSeries, numbers: list[int], name: str, *, mask: bool) -> StoredLevel:
    """The pages `numbers` of one resolution. Raises BadInputError for layouts and samples that are not read."""
    page = series.keyframe
    _check_compression(page, name)
    samples = interpret(page, name, mask=mask)
    separate, _, height, width, contiguous = page.shaped
    raw = _raw_dtype(page)
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    if min(height, width, *tile) < 1 or page.tiledepth > 1:
        raise BadInputError(
            f"{name}: image of {height} x {width} pixels in tiles of {tile[0]} x {tile[1]}; it is damaged"
        )
    pages = _page_tables(series, numbers, name)
    if raw is not None:
        pages = tuple(
            _merge_rows(table, separate, height, tile[0], width * contiguous * raw.itemsize) for table in pages
        )
        plane = height * width * contiguous * raw.itemsize
        if any(len(table.offsets) != separate or (table.counts < plane).any() for table in pages):
            raw = None
            pages = _page_tables(series, numbers, name)
        else:
            tile = (height, width)
    level = StoredLevel(
        (height, width), tile, separate, contiguous, np.dtype(page.dtype), page.is_tiled, raw,
        int(page.compression), page.decode, page.jpegheader, jpeg_stream(page), pages, samples,
    )  # fmt: skip
    _check_table(level, name)
    return level


def _check_compression(page: tifffile.TiffPage, name: str) -> None:
    code = int(page.compression)
    if code == 1:
        return
    if code in _UNCHECKED_FAX | GROUP_4_FAX and page.bitspersample != 1:
        # One flipped bit of this tag (7 to 3) gave zeros for a JPEG.
        raise BadInputError(f"{name}: compression {code} (fax) of {page.bitspersample}-bit samples; it is damaged")
    parameters = page.tags.valueof(_LERC_PARAMETERS) if code in LERC else None
    if isinstance(parameters, tuple) and len(parameters) > 1 and parameters[1] != 0:
        raise BadInputError(f"{name}: LERC inside deflate or zstd is not read; convert it, to deflate for example")
    if code in _UNCHECKED_FAX or code not in tifffile.TIFF.DECOMPRESSORS:
        kind = getattr(page.compression, "name", None)
        said = f"compression {code}" + (f" ({kind.lower()})" if kind else "")
        raise BadInputError(f"{name}: {said} is not read; convert the file, to deflate for example")


def _check_table(level: StoredLevel, name: str) -> None:
    kind = "tile" if level.is_tiled else "strip"
    if level.raw is None and level.tile_bytes > MAX_SEGMENT_BYTES:
        raise BadInputError(
            f"{name}: one {kind} of {level.tile[0]} x {level.tile[1]} pixels decodes to {level.tile_bytes >> 20} MiB, "
            f"more than the limit of {MAX_SEGMENT_BYTES >> 20} MiB; rewrite the file with 512 px tiles"
        )
    expected = level.separate * math.prod(level.grid)
    for table in level.pages:
        found = min(len(table.offsets), len(table.counts))
        if found < expected:
            raise BadInputError(
                f"{name}: level of {level.shape[0]} x {level.shape[1]} pixels needs {expected} {kind}s, "
                f"its table has {found}; the file is damaged"
            )


def _page_tables(series: tifffile.TiffPageSeries, numbers: list[int], name: str) -> tuple[PageTable, ...]:
    key = series.keyframe
    if math.prod(size for _, size in leading(series, name)) > 1 and series.dataoffset is not None:
        # ImageJ and others describe a whole stack in its first page: the planes follow one another in the file.
        base = _table(key)
        return tuple(PageTable(base.offsets + number * key.nbytes, base.counts, None) for number in numbers)
    tables = []
    for number in numbers:
        page = series[number] if number < len(series) else None
        if page is None or page.keyframe is None or page.keyframe.hash != key.hash:
            raise BadInputError(
                f"{name}: plane {number} is not in this file (it is missing, or kept in a companion file)"
            )
        tables.append(_table(page))
    return tuple(tables)


def _table(page: Any) -> PageTable:
    # A damaged file can state offsets that no int64 holds: none of them is inside the file either.
    offsets, counts = (
        np.minimum(np.asarray(values, np.uint64), np.uint64(2**62)).astype(np.int64)
        for values in (page.dataoffsets, page.databytecounts)
    )
    return PageTable(offsets, counts, page.jpegtables)


def _raw_dtype(page: tifffile.TiffPage) -> np.dtype[Any] | None:
    """The samples' dtype in the file when its strips are plain rows, else None."""
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if not plain or page.dtype is None or page.bitspersample != 8 * page.dtype.itemsize or page.is_subsampled:
        return None
    return page.dtype.newbyteorder(page.parent.byteorder)


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
    return PageTable(offsets[:, 0].copy(), np.full(separate, height * row_bytes, np.int64), None)


def interpret(page: tifffile.TiffPage, name: str, *, mask: bool) -> Samples:
    """What the samples of a page mean as an image or a mask. Raises BadInputError naming what is not read.

    Min-is-white is inverted to min-is-black, but not bool masks that tifffile wrote: True stays True. Palette images
    become RGB (uint8, the high bytes of the colour map); as a mask they keep their indices, which are labels. YCbCr
    becomes RGB where the codec does it (JPEG, WebP) and for Aperio's JPEG 2000. One extra sample of RGB without a
    stated meaning is taken as straight alpha, as OpenCV and many others write it; other extra samples are channels.
    """
    if page.dtype is None:
        raise BadInputError(f"{name}: samples of {page.bitspersample} bits (format {page.sampleformat}) are not read")
    photometric = int(page.photometric)
    samples = _colour_samples(page, photometric, name, mask=mask)
    accepted = MASK_DTYPES if mask else SUPPORTED_DTYPES
    if str(samples.dtype) not in accepted:
        what = "a mask" if mask else "an image"
        raise BadInputError(f"{name}: dtype {samples.dtype} is not read as {what}; convert it to {', '.join(accepted)}")
    return samples


def _colour_samples(page: tifffile.TiffPage, photometric: int, name: str, *, mask: bool) -> Samples:
    dtype = np.dtype(page.dtype)
    count = int(page.samplesperpixel)
    if photometric == PALETTE and not mask:
        return _palette(page, name)
    if photometric == PALETTE:
        return Samples(dtype, count, notes=("palette indices are kept as labels",))
    if photometric in (RGB, YCBCR) and count >= 3:
        return _rgb(page, photometric, name)
    if photometric in (MIN_IS_BLACK, MIN_IS_WHITE, TRANSPARENCY_MASK) or (photometric == RGB and count < 3):
        # tifffile labels every bool array min-is-white, and True is 1 all the same.
        by_tifffile = dtype.kind == "b" and page.software.startswith("tifffile.py")
        convert = _inversion(page, name) if photometric == MIN_IS_WHITE and not by_tifffile else None
        notes = ("min-is-white: inverted",) if convert else ()
        extra = _extra_samples(page, 1)
        alpha = _stated_alpha(extra)
        if alpha is not Alpha.NONE and convert is not None:
            raise BadInputError(f"{name}: min-is-white with an alpha channel is not read; convert it to min-is-black")
        return Samples(dtype, count, alpha, False, convert, notes + _bits_note(page))
    kind = getattr(page.photometric, "name", str(page.photometric))
    raise BadInputError(f"{name}: colour space {kind} is not read; convert it to RGB first")


def _rgb(page: tifffile.TiffPage, photometric: int, name: str) -> Samples:
    compression = int(page.compression)
    convert: Convert | None = None
    notes = _bits_note(page)
    if compression == APERIO_YCBCR_JPEG_2000 and page.planarconfig == 1 and page.dtype == np.uint8:
        convert = ycbcr_to_rgb
    elif photometric == YCBCR and compression not in JPEG | WEBP:
        raise BadInputError(f"{name}: YCbCr samples with this compression are not read; convert it to RGB first")
    count = int(page.samplesperpixel)
    extra = _extra_samples(page, 3)
    if extra == (0,):
        note = "extra sample of unstated meaning taken as straight alpha; channels 0,1,2 leave it out"
        return Samples(np.dtype(page.dtype), count, Alpha.STRAIGHT, True, convert, (*notes, note))
    alpha = _stated_alpha(extra)
    colours = count - (alpha is not Alpha.NONE)
    return Samples(np.dtype(page.dtype), count, alpha, colours == 3, convert, notes)


def _extra_samples(page: tifffile.TiffPage, colours: int) -> tuple[int, ...]:
    """Meaning of each sample after the colours; 0 where the tag does not say."""
    number = max(0, int(page.samplesperpixel) - colours)
    stated = tuple(int(value) for value in page.extrasamples)[:number]
    return stated + (0,) * (number - len(stated))


def _stated_alpha(extra: tuple[int, ...]) -> Alpha:
    # TIFF 6.0, ExtraSamples: 1 associated (premultiplied), 2 unassociated. Only a last sample can be our alpha.
    return {1: Alpha.PREMULTIPLIED, 2: Alpha.STRAIGHT}.get(extra[-1] if extra else 0, Alpha.NONE)


def _bits_note(page: tifffile.TiffPage) -> tuple[str, ...]:
    bits, dtype = page.bitspersample, np.dtype(page.dtype)
    if isinstance(bits, int) and dtype.kind == "u" and bits != 8 * dtype.itemsize:
        return (f"{bits}-bit samples, values as stored in {dtype}",)
    return ()


def _inversion(page: tifffile.TiffPage, name: str) -> Convert:
    dtype = np.dtype(page.dtype)
    if dtype.kind == "b":
        return np.logical_not
    if dtype.kind != "u" or not isinstance(page.bitspersample, int):
        raise BadInputError(f"{name}: min-is-white samples of dtype {dtype} are not read; convert it to min-is-black")
    top = dtype.type((1 << page.bitspersample) - 1)

    def invert(pixels: Pixels) -> Pixels:
        return np.subtract(top, pixels, dtype=dtype)

    return invert


def _palette(page: tifffile.TiffPage, name: str) -> Samples:
    bits, dtype = page.bitspersample, np.dtype(page.dtype)
    table = page.tags.valueof(320)  # ColorMap; absent in some damaged files
    colours = np.asarray(table, np.uint16) if table is not None else np.zeros((0, 0), np.uint16)
    if not isinstance(bits, int) or bits > 16 or page.samplesperpixel != 1 or colours.size != 3 << bits:
        raise BadInputError(f"{name}: palette image whose colour map does not fit its samples; convert it to RGB")
    colours = colours.reshape(3, -1)
    # Old writers put 8-bit values into the 16-bit map (as libtiff's checkcmap has it).
    lookup = np.ascontiguousarray((colours >> 8 if colours.max() > 255 else colours).astype(np.uint8).T)
    is_bool = dtype.kind == "b"

    def expand(pixels: Pixels) -> Pixels:
        index = pixels[:, :, 0]
        expanded: Pixels = lookup[index.view(np.uint8) if is_bool else index]
        return expanded

    return Samples(np.dtype(np.uint8), 3, Alpha.NONE, True, expand, ("palette: expanded to RGB",))


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range BT.601 YCbCr (uint8) to RGB (uint8), as JFIF defines it; further samples stay."""
    result = pixels.copy()
    y, cb, cr = (pixels[:, :, i].astype(np.float32) for i in range(3))
    cb -= 128
    cr -= 128
    for channel, values in enumerate((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)):
        result[:, :, channel] = np.clip(np.rint(values), 0, 255)
    return result
