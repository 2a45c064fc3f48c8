"""From a TIFF's JPEG tiles and strips to complete streams for the strict decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.sources.pictures.jpeg import decode_jpeg
from tiledblend.sources.tiff.segments import JPEG, JpegFrame, jpeg_frame

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
# An Adobe segment that says "not transformed": the samples are RGB as they are (T.872, 6.5.3).
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_COLOUR_SEGMENTS = (b"JFIF\0", b"Adobe")
_GREY, _RGB, _YCBCR = (0, 1), 2, 6


@dataclass(frozen=True, slots=True)
class JpegStream:
    """How a TIFF page's JPEG segments become complete streams. is_rgb: the page says that they hold RGB as it is.
    header: what precedes a segment that has none of its own (NDPI)."""

    is_rgb: bool
    header: bytes | None

    def decode(self, data: bytes, tables: bytes | None, frame: JpegFrame | None) -> NDArray[np.uint8] | None:
        """(height, width, samples) of a segment, or None where it is 12-bit, lossless or CMYK.

        Raises ValueError when any of its data is damaged.
        """
        if self.header is not None:
            data = self.header + data + _EOI
            frame = jpeg_frame(data)
        if frame is None or not frame.is_plain:
            return None
        head = data[: frame.scan]
        if self.is_rgb and any(name in head for name in _COLOUR_SEGMENTS):
            return None
        colours = _ADOBE_RGB if self.is_rgb and frame.components == 3 else b""
        stream = b"".join((_SOI, tables[2:-2] if tables else b"", colours, data[2:]))
        pixels: NDArray[np.uint8] = decode_jpeg(stream, frame.components)
        return pixels


def jpeg_stream(page: tifffile.TiffPage) -> JpegStream | None:
    """Of a page with JPEG segments of grey or three colours, else None (the general decoder takes it)."""
    tables = page.jpegtables
    unlike = tables is not None and (not tables.startswith(_SOI) or any(name in tables for name in _COLOUR_SEGMENTS))
    if int(page.compression) not in JPEG or page.dtype != np.uint8 or page.extrasamples or unlike:
        return None
    photometric = int(page.photometric)
    if photometric not in (*_GREY, _RGB, _YCBCR):
        return None
    interleaved = page.planarconfig == 1
    # As tifffile has it: an Aperio slide says RGB, and its JPEGs do not say anything.
    return JpegStream(photometric == _RGB and interleaved and not page.is_jfif, page.jpegheader)
