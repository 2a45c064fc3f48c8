"""The directories of an OME-TIFF: one page a plane, its smaller levels in SubIFDs, and a second way to these.

The OME-TIFF specification keeps smaller levels out of the main chain of pages and in SubIFDs. OpenSlide reads them from
the main chain only. So for an image of one plane the main chain goes on with a second set of directories, of the same
tiles, marked as reduced images: readers of OME-TIFF follow the OME-XML and the SubIFDs and leave those alone. An image
of several planes has no such set: OpenSlide would show one channel, and libvips would take them for further pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.ometiff.bigtiff import HEADER_BYTES, Tail, Value, rational
from tiledblend.containers.ometiff.encode import chroma_subsampling, has_predictor
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.sources.base import Alpha

CODES = {"none": 1, "jpeg": 7, "deflate": 8, "jpeg2000": 34712, "zstd": 50000}
GREY, RGB, YCBCR = 1, 2, 6
EXTRA_SAMPLES = {Alpha.PREMULTIPLIED: 1, Alpha.STRAIGHT: 2}
CENTIMETRE = 3
_DESCRIPTION, _SUB_IFDS, _OFFSETS, _BYTE_COUNTS = 270, 330, 324, 325


def directories(
    layout: TiffLayout, counts: NDArray[np.uint32], description: bytes, pixel_size_um: tuple[float, float] | None
) -> tuple[bytes, int]:
    """(what follows the tiles, offset of the first directory). counts: bytes of every tile in the order of writing.

    description: OME-XML. pixel_size_um: (y, x) of level 0.
    """
    ends = HEADER_BYTES + np.cumsum(counts, dtype=np.uint64)
    tail = Tail(int(ends[-1]))
    offsets, sizes = layout.by_plane(ends - counts), layout.by_plane(counts)
    text = tail.value("ascii", description)

    def tags(level: int, plane: int) -> dict[int, Value]:
        return _tags(tail, layout, level, pixel_size_um) | {
            _OFFSETS: tail.value("long8", offsets[level][plane]),
            _BYTE_COUNTS: tail.value("long", sizes[level][plane]),
        }

    following = 0
    for plane in reversed(range(layout.planes)):
        reduced = [tags(level, plane) for level in range(1, len(layout.shapes))]
        levels = [tail.directory(level) for level in reduced]
        if layout.planes == 1:
            for level in reversed(reduced):
                following = tail.directory(level, following)
        full = tags(0, plane)
        if levels:
            full[_SUB_IFDS] = tail.value("ifd8", levels)
        if plane == 0:
            full[_DESCRIPTION] = text
        following = tail.directory(full, following)
    return tail.data(), following


def _tags(tail: Tail, layout: TiffLayout, level: int, pixel_size_um: tuple[float, float] | None) -> dict[int, Value]:
    """All tags of a page but those that say where its tiles are."""
    options, dtype = layout.options, np.dtype(layout.dtype)
    height, width = layout.shapes[level]
    is_color = layout.interleaved
    tags: dict[int, tuple[Any, Any]] = {
        254: ("long", 1 if level else 0),
        256: ("long", width),
        257: ("long", height),
        258: ("short", [dtype.itemsize * 8] * layout.samples),
        259: ("short", CODES[options.compression]),
        262: ("short", (YCBCR if options.compression == "jpeg" else RGB) if is_color else GREY),
        277: ("short", layout.samples),
        284: ("short", 1),
        322: ("long", options.tile),
        323: ("long", options.tile),
        339: ("short", [3 if dtype.kind == "f" else 1] * layout.samples),
    }
    if pixel_size_um is not None:
        (fine_y, fine_x), (size_y, size_x) = layout.shapes[0], pixel_size_um
        tags[282] = "rational", rational(1e4 * width / (fine_x * size_x))
        tags[283] = "rational", rational(1e4 * height / (fine_y * size_y))
        tags[296] = "short", CENTIMETRE
    if has_predictor(options, dtype):
        tags[317] = "short", 2
    if is_color and layout.alpha is not Alpha.NONE:
        tags[338] = "short", EXTRA_SAMPLES[layout.alpha]
    if is_color and options.compression == "jpeg":
        tags[530] = "short", chroma_subsampling(options)
        tags[531] = "short", 1
        tags[532] = "rational", [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]
    return {tag: tail.value(kind, values) for tag, (kind, values) in tags.items()}
