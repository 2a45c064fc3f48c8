"""How an OME-TIFF is stored, and which files are one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from tiledblend.errors import UsageError

Compression = Literal["deflate", "zstd", "jpeg", "jpeg2000", "none", "keep"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
ENDINGS = (".ome.tif", ".ome.tiff")
DEFAULT_QUALITY = 90


def is_ometiff_path(path: str | os.PathLike[str]) -> bool:
    """True when the name asks for an OME-TIFF.

    >>> is_ometiff_path("a.OME.TIF"), is_ometiff_path("a.tif")
    (True, False)
    """
    return os.fspath(path).lower().endswith(ENDINGS)


@dataclass(frozen=True, slots=True)
class TiffOptions:
    """compression: all but jpeg keep every bit; keep: as the base's image is stored. quality: of jpeg, 1 to 100. tile:
    side in pixels, a multiple of 16.

    Raises UsageError.
    """

    compression: Compression = "deflate"
    quality: int = DEFAULT_QUALITY
    tile: int = 512

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"compression {self.compression!r} is not one of {', '.join(COMPRESSIONS)}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"jpeg quality {self.quality} must be from 1 to 100")
        if self.tile < 16 or self.tile % 16 or self.tile > 8192:
            raise UsageError(f"OME-TIFF tile {self.tile} must be a multiple of 16 from 16 to 8192; use 512")

    @classmethod
    def parse(cls, compression: str, tile: int = 512) -> TiffOptions:
        """Options of "deflate", "zstd", "jpeg2000", "none", "keep", "jpeg" or "jpeg:QUALITY". Raises UsageError.

        >>> TiffOptions.parse("jpeg:85").quality
        85
        """
        name, colon, quality = compression.strip().lower().partition(":")
        if name not in COMPRESSIONS:
            raise UsageError(f"compression {compression!r} is not one of {', '.join(COMPRESSIONS)} or jpeg:QUALITY")
        if not colon:
            return cls(name, tile=tile)
        if name != "jpeg" or not (quality.isascii() and quality.isdigit()):
            raise UsageError(f"compression {compression!r} is not understood; only jpeg has a quality, such as jpeg:85")
        return cls(name, int(quality), tile)

    def __str__(self) -> str:
        return f"jpeg:{self.quality}" if self.compression == "jpeg" else self.compression
