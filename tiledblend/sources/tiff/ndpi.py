"""Sides of an NDPI level: its JPEG's, where these are some pixels smaller than what the tags say."""

from __future__ import annotations

import tifffile

from tiledblend.sources.tiff.segments import JPEG, SegmentError, jpeg_frame
from tiledblend.sources.tiff.structure import Structure

_STRIP_OFFSETS, _STRIP_BYTES = 273, 279
_HEADER = 1 << 14
_NEAR, _SHARE = 16, 8


def level_sides(page: tifffile.TiffPage, structure: Structure) -> tuple[int, int]:
    """(y, x) of a page. Hamamatsu rounds the sides of small levels up in its tags and down in its JPEGs.

    A JPEG that is smaller by more than 16 pixels and an eighth is left to be refused when it is read.
    """
    said = int(page.imagelength), int(page.imagewidth)
    if not structure.is_ndpi or int(page.compression) not in JPEG:
        return said
    offsets, counts = page.tags.valueof(_STRIP_OFFSETS), page.tags.valueof(_STRIP_BYTES)
    if not isinstance(offsets, tuple) or not isinstance(counts, tuple) or len(offsets) != 1 or not counts:
        return said
    try:
        own = jpeg_frame(structure.bytes_at(int(offsets[0]), min(int(counts[0]), _HEADER))).shape
    except SegmentError:  # it is told when the level is read
        return said
    near = all(side - max(_NEAR, side // _SHARE) <= found <= side for found, side in zip(own, said, strict=True))
    return own if near and min(own) > 0 else said
