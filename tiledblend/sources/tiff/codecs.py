"""Decoders of our own for codecs where a general one does not know what the TIFF's tags mean for the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tifffile
from numpy.typing import NDArray

from tiledblend.sources.tiff.coding import Codec
from tiledblend.sources.tiff.jpeg2000 import JPEG_2000, Jpeg2000
from tiledblend.sources.tiff.lerc import LERC, Lerc
from tiledblend.sources.tiff.segments import JPEG_XL, JPEG_XR, WEBP, check_segment

_YCBCR = 6


def own_codec(page: tifffile.TiffPage) -> Codec | None:
    """Of a page whose segments tifffile would refuse or read as other colours, else None."""
    code = int(page.compression)
    is_ycbcr = int(page.photometric) == _YCBCR
    if code in JPEG_2000:
        return Jpeg2000(code, is_ycbcr, page.planarconfig == 1 and page.samplesperpixel >= 3)
    if code in LERC:
        return Lerc.of(page)
    if is_ycbcr and code in WEBP | JPEG_XR | JPEG_XL:
        return _PictureCodec(code)
    return None


@dataclass(frozen=True, slots=True)
class _PictureCodec:
    """A codec whose stream knows its colours: what it returns is RGB, whatever the TIFF's photometric says."""

    code: int

    def decode(self, data: bytes, stored: tuple[int, int, int], needed: tuple[int, int]) -> NDArray[Any]:
        """As `Codec.decode`."""
        check_segment(data, self.code, stored, needed, None)
        pixels: NDArray[Any] = tifffile.TIFF.DECOMPRESSORS[self.code](data)
        return pixels.reshape(*pixels.shape[:2], -1)
