"""From a TIFF's JPEG tiles and strips to complete streams for the strict decoder, in the colours that the tags say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.sources.pictures.jpeg import decode_jpeg
from tiledblend.sources.tiff.segments import JPEG, JpegFrame, has_end, jpeg_frame, no_end

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
# An Adobe segment that says "not transformed": the samples are RGB as they are (T.872, 6.5.3).
SAYS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
# With a JFIF segment the samples are YCbCr (T.871), whatever Adobe segments and component identifiers say.
SAYS_YCBCR = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_COLOUR_SEGMENTS = (b"JFIF\0", b"Adobe")
_GREY, _RGB, _YCBCR = (0, 1), 2, 6


@dataclass(frozen=True, slots=True)
class JpegStream:
    """How a TIFF page's JPEG segments become complete streams.

    colours: the segment that says what three components are: the page's tags do, as libtiff has it, where the stream
    has component identifiers R, G, B or an Adobe segment too. b"" leaves it to the stream.
    header: what precedes a segment that has none of its own (NDPI).
    """

    colours: bytes
    header: bytes | None

    def decode(self, data: bytes, tables: bytes | None, frame: JpegFrame | None) -> NDArray[np.uint8] | None:
        """(height, width, samples) of a segment, or None where it is 12-bit, lossless or CMYK.

        A stream without an end marker is read where its scan is whole. Raises ValueError when any of its data is
        damaged or missing.
        """
        if self.header is not None:
            data = self.header + data + _EOI
            frame = jpeg_frame(data)
        if frame is None or not frame.is_plain:
            return None
        colours = self.colours if frame.components == 3 else b""
        if colours is SAYS_RGB and any(name in data[: frame.scan] for name in _COLOUR_SEGMENTS):
            return None
        is_ended = has_end(data, frame)
        if not is_ended and not frame.is_one_scan:
            raise no_end(data)  # a later scan may be what is missing
        stream = b"".join((_SOI, tables[2:-2] if tables else b"", colours, data[2:], b"" if is_ended else _EOI))
        try:
            pixels: NDArray[np.uint8] = decode_jpeg(stream, frame.components)
        except ValueError as error:
            if is_ended:
                raise
            raise no_end(data) from error
        return pixels


def general_decoder(page: tifffile.TiffPage) -> Callable[..., Any]:
    """tifffile's decoder of a page's segments, told that three JPEG components are YCbCr where the tags say so."""
    decode = page.decode
    if int(page.compression) not in JPEG or int(page.photometric) != _YCBCR or page.planarconfig != 1:
        return decode

    def decode_ycbcr(data: bytes, index: int, **options: Any) -> Any:
        return decode(_SOI + SAYS_YCBCR + data[2:] if data.startswith(_SOI) else data, index, **options)

    return decode_ycbcr


def jpeg_stream(page: tifffile.TiffPage) -> JpegStream | None:
    """Of a page with JPEG segments of grey or three colours, else None (the general decoder takes it)."""
    tables, photometric = page.jpegtables, int(page.photometric)
    if int(page.compression) not in JPEG or page.dtype != np.uint8 or page.extrasamples:
        return None
    if photometric not in (*_GREY, _RGB, _YCBCR) or (tables is not None and not tables.startswith(_SOI)):
        return None
    says_colours = tables is not None and any(name in tables for name in _COLOUR_SEGMENTS)
    if photometric == _YCBCR:
        return JpegStream(SAYS_YCBCR, page.jpegheader)
    if says_colours:
        return None
    # As tifffile has it: an Aperio slide says RGB, and its JPEGs do not say anything.
    is_rgb = photometric == _RGB and page.planarconfig == 1 and not page.is_jfif
    return JpegStream(SAYS_RGB if is_rgb else b"", page.jpegheader)
