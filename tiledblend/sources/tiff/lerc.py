"""LERC in TIFF, as libtiff writes it: what a blob's mask says is NaN, or the alpha that it leaves out.

Layout of a blob: Lerc2.h of Esri's lerc. libtiff's tif_lerc.c stores floats with NaN as blobs with a mask, one blob a
sample where their NaN differ, and 8-bit alpha of 0 and 255 only as a mask, of 255 only not at all.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.sources.tiff.segments import SegmentError, compare_sides

LERC = frozenset({34887})
_PARAMETERS, _STRAIGHT = 50674, 2
_KEY = b"Lerc2 "
NONE, DEFLATE, ZSTD = 0, 1, 2


def lerc_wrapping(page: tifffile.TiffPage) -> int:
    """The codec around the blobs: NONE, DEFLATE, ZSTD, or another number that nobody knows."""
    parameters = page.tags.valueof(_PARAMETERS)
    return int(parameters[1]) if isinstance(parameters, tuple) and len(parameters) > 1 else NONE


@dataclass(frozen=True, slots=True)
class Lerc:
    """Decodes the segments of a page. wrapping: the codec around them. itemsize: bytes of a sample.

    has_alpha: the last sample is straight alpha, which a blob may hold as its mask.
    """

    wrapping: int
    itemsize: int
    has_alpha: bool

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> Lerc:
        """Of a page of this compression."""
        straight = page.planarconfig == 1 and page.extrasamples and int(page.extrasamples[-1]) == _STRAIGHT
        return cls(lerc_wrapping(page), int(page.dtype.itemsize) if page.dtype is not None else 1, bool(straight))

    def decode(self, data: bytes, stored: tuple[int, int, int], needed: tuple[int, int]) -> NDArray[Any]:
        """As `Codec.decode`."""
        import imagecodecs

        blobs = _unwrapped(data, self.wrapping, 2 * stored[0] * stored[1] * stored[2] * self.itemsize + (1 << 20))
        sides, depth, number = _described(blobs)
        samples = depth * number
        compare_sides(sides, stored, needed)
        leaves_alpha_out = self.has_alpha and samples == stored[2] - 1
        if samples != stored[2] and not leaves_alpha_out:
            raise SegmentError(f"its own header says {samples} samples per pixel, the TIFF says {stored[2]}")
        pixels, valid = imagecodecs.lerc_decode(blobs, masks=True)
        return _whole_pixels(pixels, valid, (number, *sides), with_alpha=leaves_alpha_out)


def _whole_pixels(pixels: Any, valid: Any, shape: tuple[int, int, int], *, with_alpha: bool) -> NDArray[Any]:
    """(height, width, samples) with what the mask hides as NaN or 0, and its alpha. shape: (blobs, y, x)."""
    _, height, width = shape
    # Several blobs come one after another, samples of one together; masks are one for all, or one a blob.
    by_blob = pixels.reshape(*shape, -1)
    whole = np.ascontiguousarray(np.moveaxis(by_blob, 0, 2)).reshape(height, width, -1)
    if valid is not None:
        masks = np.moveaxis(valid.reshape(-1, height, width), 0, 2)
        seen = np.repeat(masks, whole.shape[2] // masks.shape[2], axis=2) if masks.shape[2] > 1 else masks
        whole[~np.broadcast_to(seen, whole.shape)] = np.nan if whole.dtype.kind == "f" else 0
    if not with_alpha:
        return whole
    top = np.iinfo(whole.dtype).max if whole.dtype.kind in "ui" else 1
    alpha = np.full((height, width, 1), top, whole.dtype)
    if valid is not None:
        alpha[~valid.reshape(-1, height, width).all(0)] = 0
    return np.concatenate([whole, alpha], axis=2)


def _described(blobs: bytes) -> tuple[tuple[int, int], int, int]:
    """Sides (y, x) of the blobs that follow one another, samples per pixel of each, and their number."""
    first, depth, at = _header(blobs, 0)
    number = 1
    while at < len(blobs) and blobs[at : at + 6] == _KEY:  # a writer may state bytes that no blob needs
        sides, samples, size = _header(blobs, at)
        if (sides, samples) != (first, depth):
            raise SegmentError("damaged LERC: blobs of unlike sizes")
        number, at = number + 1, at + size
    if at > len(blobs):
        raise SegmentError(f"truncated LERC: {len(blobs)} bytes of {at}")
    return first, depth, number


def _header(blobs: bytes, at: int) -> tuple[tuple[int, int], int, int]:
    """((y, x), samples, bytes) of one blob."""
    version = int.from_bytes(blobs[at + 6 : at + 10], "little")
    if blobs[at : at + 6] != _KEY or len(blobs) < at + 40 or not 1 <= version <= 6:
        raise SegmentError("not a Lerc2 blob (Lerc1 is not read)")
    # A checksum stands before the sizes from version 3 on, and the samples after them from version 4.
    height, width, *rest = struct.unpack_from("<6i", blobs, at + (14 if version >= 3 else 10))
    depth, size = (rest[0], rest[3]) if version >= 4 else (1, rest[2])
    if min(height, width, depth) < 1 or size < 40:
        raise SegmentError("damaged LERC: sizes of 0")
    return (height, width), depth, size


def _unwrapped(data: bytes, wrapping: int, limit: int) -> bytes:
    """The blobs, of at most `limit` bytes."""
    if wrapping == NONE:
        return data
    if wrapping == DEFLATE:
        inflate = zlib.decompressobj()
        blobs = inflate.decompress(data, limit)
        if not inflate.eof:
            raise SegmentError("damaged or truncated deflate around LERC")
        return blobs
    import zstandard

    claimed = zstandard.get_frame_parameters(data).content_size
    if claimed > limit and claimed != zstandard.CONTENTSIZE_UNKNOWN:
        raise SegmentError(f"zstd around LERC claims {claimed} bytes; damaged")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
