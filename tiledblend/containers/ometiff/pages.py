"""The directories of an OME-TIFF: one page a plane, its smaller levels in SubIFDs, and a second way to these.

The OME-TIFF specification keeps smaller levels out of the main chain of pages and in SubIFDs. OpenSlide reads them from
the main chain only. So for an image of one plane the main chain goes on with a second set of directories, of the same
tiles, marked as reduced images: readers of OME-TIFF follow the OME-XML and the SubIFDs and leave those alone. An image
of several planes has no such set: OpenSlide would show one channel, and libvips would take them for further pages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ometiff.bigtiff import Tail, Value, rational
from tiledblend.containers.ometiff.encode import chroma_subsampling, has_predictor
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.geometry import Tile
from tiledblend.sources.base import Alpha

CODES = {"none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "jpeg2000": 34712, "zstd": 50000}
GREY, RGB, YCBCR = 1, 2, 6
EXTRA_SAMPLES = {Alpha.PREMULTIPLIED: 1, Alpha.STRAIGHT: 2}
CENTIMETRE = 3
_DESCRIPTION, _SUB_IFDS, _OFFSETS, _BYTE_COUNTS, _ICC = 270, 330, 324, 325, 34675


def directories(
    layout: TiffLayout, tiles: TileTables, end: int, image: ImageMetadata, text: bytes
) -> tuple[bytes, int]:
    """(what follows the tiles, offset of the first directory). end: of the tiles. text: OME-XML."""
    tail = Tail(end)
    description = tail.value("ascii", text)
    profile = tail.value("undefined", np.frombuffer(image.icc_profile, np.uint8)) if image.icc_profile else None

    def tags(number: int, plane: int) -> dict[int, Value]:
        own = _tags(tail, layout, number, image.pixel_size_um) | {
            _OFFSETS: tail.value("long8", tiles.offsets[number][plane]),
            _BYTE_COUNTS: tail.value("long", tiles.sizes[number][plane]),
        }
        return own if profile is None else own | {_ICC: profile}

    following = 0
    for plane in reversed(range(layout.planes)):
        reduced = [tags(number, plane) for number in range(1, len(layout.shapes))]
        levels = [tail.directory(level) for level in reduced]
        if layout.planes == 1:
            for level in reversed(reduced):
                following = tail.directory(level, following)
        full = tags(0, plane)
        if levels:
            full[_SUB_IFDS] = tail.value("ifd8", levels)
        if plane == 0:
            full[_DESCRIPTION] = description
        following = tail.directory(full, following)
    return tail.data(), following


class TileTables:
    """Where every tile of a file is. offsets, sizes: for each level (plane, tile in row order); passed: as stored."""

    def __init__(self, layout: TiffLayout) -> None:
        self._layout = layout
        self._grids = [(layout.planes, *layout.counts(number)) for number in range(len(layout.shapes))]
        self._offsets = [np.zeros(shape, np.uint64) for shape in self._grids]
        self._sizes = [np.zeros(shape, np.uint32) for shape in self._grids]
        self._passed = [np.zeros(shape, bool) for shape in self._grids]

    def add(self, tile: Tile, places: NDArray[Any], start: int) -> None:
        """Note the TIFF tiles of a part that begins at byte `start`."""
        planes = self._layout.planes
        for number, first, (rows, columns), (top, left) in self._layout.blocks(tile):
            block = places[first : first + planes * rows * columns].reshape(planes, rows, columns)
            at = slice(None), slice(top, top + rows), slice(left, left + columns)
            self._offsets[number][at] = block["offset"] + np.uint64(start)
            self._sizes[number][at] = block["count"]
            self._passed[number][at] = block["passed"]

    @property
    def offsets(self) -> list[NDArray[np.uint64]]:
        return [level.reshape(len(level), -1) for level in self._offsets]

    @property
    def sizes(self) -> list[NDArray[np.uint32]]:
        return [level.reshape(len(level), -1) for level in self._sizes]

    @property
    def passed(self) -> list[NDArray[np.bool_]]:
        return [level.reshape(len(level), -1) for level in self._passed]


class _Coding(NamedTuple):
    """What a page's tags say of how its tiles are stored."""

    compression: int
    photometric: int
    predictor: int = 1
    subsampling: tuple[int, int] | None = None
    tables: bytes | None = None


def _coding(layout: TiffLayout, number: int) -> _Coding:
    colours = RGB if layout.is_rgb else GREY
    if not layout.kept:
        options = layout.options
        predictor = 2 if has_predictor(options, np.dtype(layout.dtype)) else 1
        if options.compression == "jpeg" and layout.is_rgb:
            return _Coding(CODES["jpeg"], YCBCR, predictor, chroma_subsampling(options))
        return _Coding(CODES[options.compression], colours, predictor)
    kept = layout.kept[number]
    if kept.jpeg is not None and kept.jpeg.colour == "ycbcr":
        return _Coding(CODES[kept.codec], YCBCR, 1, kept.jpeg.sampling[0], kept.tables)
    return _Coding(CODES[kept.codec], colours, kept.predictor, None, kept.tables)


def _tags(tail: Tail, layout: TiffLayout, number: int, pixel_size_um: tuple[float, float] | None) -> dict[int, Value]:
    """All tags of a page but those that say where its tiles are."""
    coding, dtype = _coding(layout, number), np.dtype(layout.dtype)
    height, width = layout.shapes[number]
    tags: dict[int, tuple[Any, Any]] = {
        254: ("long", 1 if number else 0),
        256: ("long", width),
        257: ("long", height),
        258: ("short", [dtype.itemsize * 8] * layout.samples),
        259: ("short", coding.compression),
        262: ("short", coding.photometric),
        277: ("short", layout.samples),
        284: ("short", 1),
        322: ("long", layout.options.tile),
        323: ("long", layout.options.tile),
        339: ("short", [3 if dtype.kind == "f" else 1] * layout.samples),
    }
    if pixel_size_um is not None:
        (fine_y, fine_x), (size_y, size_x) = layout.shapes[0], pixel_size_um
        tags[282] = "rational", rational(1e4 * width / (fine_x * size_x))
        tags[283] = "rational", rational(1e4 * height / (fine_y * size_y))
        tags[296] = "short", CENTIMETRE
    if coding.predictor != 1:
        tags[317] = "short", coding.predictor
    if layout.is_rgb and layout.alpha is not Alpha.NONE:
        tags[338] = "short", EXTRA_SAMPLES[layout.alpha]
    if coding.tables is not None:
        tags[347] = "undefined", np.frombuffer(coding.tables, np.uint8)
    if coding.subsampling is not None:
        tags[530] = "short", coding.subsampling
        tags[531] = "short", 1
        tags[532] = "rational", [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]
    return {tag: tail.value(kind, values) for tag, (kind, values) in tags.items()}
