"""A layer's tone: per channel gain x + offset, or optical density scaled (Beer-Lambert), applied by table.

Elementwise, each value by the same float32 operations or from the same table: the same bits for every cut. Results are
float32 and unrounded, and may leave the dtype's range: the blend clips once, at its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError

Colours = NDArray[Any]
"""(y, x, c)."""


@dataclass(frozen=True, slots=True)
class Tone:
    """One gain and one offset per channel: value' = gain value + offset, offsets in the dtype's units. Or `od`, one
    factor per channel for the optical density -log(value / white): value' = white (value / white)^od, white the dtype's
    maximum.

    >>> Tone((2.0,), (1.0,)).of(np.array([[[3]]], np.uint8)).item(), Tone(od=(2.0,)).of(np.uint8([[[51]]])).item()
    (7.0, 10.199999809265137)
    """

    gain: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    od: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (*self.gain, *self.offset, *self.od)
        if bool(self.od) == bool(self.gain) or len(self.gain) != len(self.offset) or not numbers:
            raise UsageError("a tone has one gain and one offset per channel, or one od")
        if not all(math.isfinite(number) for number in numbers):
            raise UsageError(f"tone {numbers} must be finite numbers")
        if any(number <= 0 for number in (*self.gain, *self.od)):
            raise UsageError(f"gain {list(self.gain or self.od)} must be above 0")

    @property
    def channels(self) -> int:
        """How many it is for."""
        return len(self.gain or self.od)

    @property
    def is_identity(self) -> bool:
        """True when it changes nothing."""
        return all(g == 1 for g in self.gain or self.od) and not any(self.offset)

    def of(self, colours: Colours, dtype: np.dtype[Any] | None = None) -> NDArray[np.float32]:
        """float32 colours (y, x, c), unrounded. dtype: of the image where its colours are resampled to float32."""
        stated = colours.dtype if dtype is None else np.dtype(dtype)
        if self.od and stated.kind == "f":
            raise UsageError("od needs a white point: it is for 8 and 16 bit images")
        if colours.dtype.kind == "u":
            return _looked_up(colours, _table(self, colours.dtype.name))
        if self.od:
            return _between(colours, _table(self, stated.name))
        with np.errstate(invalid="ignore", over="ignore"):
            scaled: NDArray[np.float32] = np.multiply(colours, np.asarray(self.gain, np.float32), dtype=np.float32)
            scaled += np.asarray(self.offset, np.float32)
        return scaled

    def rounded(self, colours: Colours) -> Colours:
        """As `of`, of uint8 or uint16 colours, rounded half to even and clipped to their dtype."""
        return _looked_up(colours, _whole_table(self, colours.dtype.name))


@lru_cache(maxsize=16)
def _whole_table(tone: Tone, dtype: str) -> NDArray[Any]:
    table = np.clip(np.rint(_table(tone, dtype)), 0, np.iinfo(dtype).max)
    return np.ascontiguousarray(table.astype(dtype))


@lru_cache(maxsize=16)
def _table(tone: Tone, dtype: str) -> NDArray[np.float32]:
    """(values, c): what each value of an unsigned dtype becomes."""
    white = int(np.iinfo(dtype).max)
    if tone.od:
        # Not numpy's power, whose last bit depends on how many values a processor takes at once.
        columns = [[white * math.pow(value / white, od) for value in range(white + 1)] for od in tone.od]
        return np.ascontiguousarray(np.array(columns, np.float64).T.astype(np.float32))
    values = np.arange(white + 1, dtype=np.float32)[:, None] * np.asarray(tone.gain, np.float32)
    return values + np.asarray(tone.offset, np.float32)


def _looked_up(colours: Colours, table: NDArray[Any]) -> NDArray[Any]:
    channels = colours.shape[2]
    if colours.dtype == np.uint8 and channels in (1, 3, 4) and colours.flags.c_contiguous:
        tabled: NDArray[Any] = cv2.LUT(colours, table.reshape(1, 256, channels))
        return tabled.reshape(colours.shape)
    out = np.empty_like(colours, table.dtype)
    for channel in range(channels):
        out[:, :, channel] = table[:, channel][colours[:, :, channel]]
    return out


def _between(colours: Colours, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of values between the table's: on the line between its entries."""
    out = np.empty_like(colours, np.float32)
    for channel in range(colours.shape[2]):
        values = np.clip(colours[:, :, channel], np.float32(0), np.float32(len(table) - 1))
        low = np.minimum(values.astype(np.int32), len(table) - 2)
        part = values - low.astype(np.float32)
        column = table[:, channel]
        out[:, :, channel] = column[low] * (np.float32(1) - part) + column[low + 1] * part
    return out
