"""What a result says of itself besides its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageMetadata:
    """What a result says of itself besides its pixels.

    name: shown by viewers. pixel_size_um: (y, x) in micrometres of level 0, None when unknown. channel_names,
    channel_colors ("RRGGBB"): one each per channel, or empty for defaults. windows: (low, high) display range per
    channel, None or empty for the dtype's range (0 to 1 for float32). origin_um: (y, x) of the centre of level 0's
    first pixel. tiledblend: further values of our own, such as version and description. magnification: of the
    objective. icc_profile: of the colours as stored.
    """

    name: str
    pixel_size_um: tuple[float, float] | None = None
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    windows: tuple[tuple[float, float] | None, ...] = ()
    origin_um: tuple[float, float] | None = None
    tiledblend: dict[str, Any] | None = None
    magnification: float | None = None
    icc_profile: bytes | None = None
