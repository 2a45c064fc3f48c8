"""How the tiles or strips of one page are cut and coded, and the pixels of one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.sources.tiff.jpeg import JpegStream
from tiledblend.sources.tiff.jpeg2000 import JPEG_2000
from tiledblend.sources.tiff.segments import GROUP_4_FAX, WEBP, JpegFrames, SegmentError, check_segment, has_end, no_end

Pixels = NDArray[Any]
Convert = Callable[[Pixels], Pixels]


class Codec(Protocol):
    """A decoder of our own for a page's segments, which checks what they say of themselves."""

    def decode(self, data: bytes, stored: tuple[int, int, int], needed: tuple[int, int]) -> Pixels:
        """(height, width, samples) of a segment. stored, needed: as in `check_segment`. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a page's segments are cut and coded. tile: (y, x); a strip is a tile as wide as the image.

    grid: (rows, columns) of segments of one plane. separate: number of sample planes stored one after the other (1:
    interleaved). contiguous: samples per pixel of one segment as stored. dtype: of them.
    raw: uncompressed rows in file order, so that any part is read without its strip.
    decode: tifffile's decoder (bytes, index) -> (array (depth, y, x, sample), position, shape), thread-safe.
    jpeg: the strict decoder of its JPEG segments, codec: one of ours, where there is one.
    convert: from decoded (height, width, samples) to what a read returns, None when they are the same.
    is_joined: its separate planes are read together and converted as one pixel.
    fill: (separate * contiguous,) samples of a pixel that is not stored, as decoded.
    predictor: of the samples before compression (TIFF's tag 317). is_plain: whole samples in the order of a
    little-endian file, so that the stored bytes are those of such a file.
    """

    tile: tuple[int, int]
    grid: tuple[int, int]
    separate: int
    contiguous: int
    dtype: np.dtype[Any]
    is_tiled: bool
    raw: np.dtype[Any] | None
    compression: int
    decode: Callable[..., Any]
    jpegheader: bytes | None
    jpeg: JpegStream | None
    codec: Codec | None
    convert: Convert | None
    fill: Pixels
    is_joined: bool = False
    predictor: int = 1
    is_plain: bool = False

    @property
    def tile_bytes(self) -> int:
        """Bytes of one decoded segment."""
        return math.prod(self.tile) * self.contiguous * self.dtype.itemsize

    @property
    def access(self) -> tuple[int, int]:
        """(y, x) of the block that one decode yields, or of raw rows a nominal one."""
        if self.raw is not None:
            return min(256, self.tile[0]), min(256, self.tile[1])
        return self.tile

    def decoding_bytes(self, largest: int) -> int:
        """Most bytes that decoding one segment takes besides its pixels. largest: bytes of one as stored."""
        if self.raw is not None:
            return 0
        stored, samples = min(largest, 2 * self.tile_bytes), math.prod(self.tile) * self.contiguous
        # Measured: OpenJPEG decodes to 32-bit integers, libwebp to a picture of its own.
        decoder = 5 * samples if self.compression in JPEG_2000 else 2 * samples if self.compression in WEBP else 0
        return stored + decoder

    def pixels(
        self, data: bytes, index: int, needed: tuple[int, int], tables: bytes | None, frames: JpegFrames
    ) -> Pixels:
        """Samples (y, x, contiguous) of the part of segment `index` that lies inside the image, before `convert`.

        Raises SegmentError, or whatever its decoder does.
        """
        stored = (*self.tile, self.contiguous)
        pixels: Pixels | None = None
        if self.codec is not None:
            pixels = self.codec.decode(data, stored, needed)
        else:
            frame = check_segment(data, self.compression, stored, needed, None if self.jpegheader else frames)
            if self.jpeg is not None:
                pixels = self.jpeg.decode(data, tables, frame)
            if pixels is None:
                if frame is not None and not has_end(data, frame):
                    raise no_end(data)
                pixels = self.decode(data, index, jpegtables=tables, jpegheader=self.jpegheader)[0][0]
        if pixels.shape[0] < needed[0] or pixels.shape[1] < needed[1] or pixels.shape[2] != self.contiguous:
            raise SegmentError(f"decodes to {pixels.shape}, {needed} pixels are needed")
        if self.compression in GROUP_4_FAX:
            pixels = pixels != 0  # bits come as uint8
        if pixels.dtype != self.dtype:
            raise SegmentError(f"decodes to {pixels.dtype}, the TIFF says {self.dtype}")
        return pixels[: needed[0], : needed[1]]
