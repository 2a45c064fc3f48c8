"""The pixel grid of the result."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from tiledblend.describe.lengths import checked_pixel_size, set_number
from tiledblend.errors import UsageError
from tiledblend.sources.base import SUPPORTED_DTYPES


@dataclass(frozen=True, slots=True)
class Canvas:
    """The level-0 pixel grid of the result. None: taken from the layers.

    shape: (y, x). channels: alpha included. dtype: uint8, uint16 or float32. pixel_size_um: (y, x) micrometres.
    channel_windows: the display range (low, high) of each channel, None where it is not said. origin_um: (y, x) of the
    first pixel's centre, in micrometres of the space that the layers say they lie in.
    """

    shape: tuple[int, int]
    channels: int | None = None
    dtype: str | None = None
    is_rgb: bool | None = None
    has_alpha: bool | None = None
    pixel_size_um: tuple[float, float] | None = None
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    channel_windows: tuple[tuple[float, float] | None, ...] = ()
    origin_um: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        try:
            y, x = map(operator.index, self.shape)
        except (TypeError, ValueError):
            y = x = 0
        if min(y, x) < 1:
            raise UsageError(f"canvas shape {self.shape!r} must be two positive whole numbers of pixels, [Y, X]")
        object.__setattr__(self, "shape", (y, x))
        if self.channels is not None:
            set_number(self, "channels", operator.index, "canvas channels")
        if self.dtype is not None:
            try:
                object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
            except TypeError:
                raise UsageError(
                    f"canvas dtype {self.dtype!r} is not known; use {', '.join(SUPPORTED_DTYPES)}"
                ) from None
        if self.pixel_size_um is not None:
            object.__setattr__(self, "pixel_size_um", checked_pixel_size(self.pixel_size_um, "the canvas"))
