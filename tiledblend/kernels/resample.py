"""Resampling an axis at a time, elementwise in a fixed order: a part of the result equals that part of the whole.

Pixel centres are aligned as in `cv2.resize`: output pixel i covers [i, i + 1) * n / m of the input's n pixels
(`ToSize`), or [i, i + 1) * scale + shift (`Scaled`). Per axis: bilinear when enlarging, area average when shrinking,
nearest on request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region, ceil_div

Method = Literal["linear", "nearest"]

STRIP_PIXELS = 1 << 16
"""Of the input's width, what is summed at once: it stays in the cache."""


@dataclass(frozen=True, slots=True)
class AxisTaps:
    """Weighted taps of consecutive output pixels along one axis.

    first, stop: the input pixels needed. index: (taps, outputs) relative to `first`. weight: the same shape, float32,
    summing to 1 along taps.
    """

    first: int
    stop: int
    index: NDArray[np.int64]
    weight: NDArray[np.float32]


def axis_taps(start: int, stop: int, size_in: int, size_out: int, method: Method = "linear") -> AxisTaps:
    """Taps for output pixels start..stop-1 of an axis that goes from `size_in` to `size_out` pixels.

    >>> axis_taps(0, 2, 4, 2).weight.tolist()
    [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]
    """
    if method == "nearest":
        positions, weights = _nearest(start, stop, size_in, size_out)
    elif size_out >= size_in:
        positions, weights = _bilinear(start, stop, size_in, size_out)
    else:
        positions, weights = _area(start, stop, size_in, size_out)
    first = int(positions.min())
    return AxisTaps(first, int(positions.max()) + 1, positions - first, weights)


def _nearest(start: int, stop: int, size_in: int, size_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # The input pixel under the output pixel's centre, in integers: floor((i + 1/2) * n / m).
    out = np.arange(start, stop, dtype=np.int64)
    index = np.minimum((2 * out + 1) * size_in // (2 * size_out), size_in - 1)
    return index[None], np.ones((1, len(out)), np.float32)


def _bilinear(start: int, stop: int, size_in: int, size_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # Position (i + 1/2) * n / m - 1/2 as a fraction over 2 m, exact in integers.
    numerator = (2 * np.arange(start, stop, dtype=np.int64) + 1) * size_in - size_out
    low = numerator // (2 * size_out)
    fraction = ((numerator - low * 2 * size_out) / (2 * size_out)).astype(np.float32)
    index = np.clip(np.stack([low, low + 1]), 0, size_in - 1)
    return index, np.stack([1 - fraction, fraction])


def _area(start: int, stop: int, size_in: int, size_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # In units of 1 / m input pixels an output pixel covers [i n, (i + 1) n), an input pixel [j m, (j + 1) m).
    out = np.arange(start, stop, dtype=np.int64)
    first = out * size_in // size_out
    count = ceil_div(size_in, size_out) + 1
    index = first[None] + np.arange(count, dtype=np.int64)[:, None]
    low = np.maximum(index * size_out, out * size_in)
    high = np.minimum((index + 1) * size_out, (out + 1) * size_in)
    weight = (np.maximum(high - low, 0) / size_in).astype(np.float32)
    return np.minimum(index, size_in - 1), weight


def scaled_taps(start: int, stop: int, scale: float, shift: float, size_in: int, method: Method = "linear") -> AxisTaps:
    """Taps for output pixels start..stop-1 where pixel i covers [i, i + 1) * scale + shift of an axis of `size_in`
    pixels; beyond its ends the last pixel is repeated.

    In float64 from the absolute index i, so that every cut of the output has the same taps.

    >>> scaled_taps(0, 2, 2.0, 0.5, 5).weight.tolist()
    [[0.25, 0.25], [0.5, 0.5], [0.25, 0.25]]
    """
    out = np.arange(start, stop, dtype=np.float64)
    if method == "nearest":
        positions = np.floor((out + 0.5) * scale + shift)[None]
        weights = np.ones((1, len(out)), np.float32)
    elif scale <= 1:
        centre = (out + 0.5) * scale + (shift - 0.5)
        low = np.floor(centre)
        fraction = (centre - low).astype(np.float32)
        positions, weights = np.stack([low, low + 1]), np.stack([1 - fraction, fraction])
    else:
        low, high = out * scale + shift, (out + 1) * scale + shift
        positions = np.floor(low)[None] + np.arange(math.ceil(scale) + 1, dtype=np.float64)[:, None]
        covered = np.minimum(positions + 1, high) - np.maximum(positions, low)
        weights = (np.maximum(covered, 0) / scale).astype(np.float32)
    index = np.clip(positions, 0, size_in - 1).astype(np.int64)
    first = int(index.min())
    return AxisTaps(first, int(index.max()) + 1, index - first, weights)


class Sampling(Protocol):
    """How the pixels of a frame come from an input's. A part of the frame equals that part of the whole."""

    def source_region(self, region: Region, method: Method = "linear") -> Region:
        """The input pixels that a region of the frame depends on."""
        ...

    def resample(self, pixels: NDArray[Any], region: Region, method: Method = "linear") -> NDArray[Any]:
        """`region` of the frame from its `source_region`, (y, x) or (y, x, c): float32, not rounded (nearest: the
        input's dtype)."""
        ...


class _Separable:
    """Axis by axis."""

    def _taps(self, region: Region, method: Method) -> tuple[AxisTaps, AxisTaps]:
        raise NotImplementedError

    def source_region(self, region: Region, method: Method = "linear") -> Region:
        rows, columns = self._taps(region, method)
        return Region(rows.first, columns.first, rows.stop, columns.stop)

    def resample(self, pixels: NDArray[Any], region: Region, method: Method = "linear") -> NDArray[Any]:
        rows, columns = self._taps(region, method)
        if method == "nearest":
            return pixels[np.ix_(rows.index[0], columns.index[0])]
        out = np.empty((*region.shape, *pixels.shape[2:]), np.float32)
        step = max(1, STRIP_PIXELS // max(1, pixels.shape[1]))
        for y in range(0, region.shape[0], step):
            strip = AxisTaps(rows.first, rows.stop, rows.index[:, y : y + step], rows.weight[:, y : y + step])
            out[y : y + step] = _weighted(_weighted(pixels, strip, 0), columns, 1)
        return out


@dataclass(frozen=True, slots=True)
class ToSize(_Separable):
    """An input of shape_in (y, x) made to fill shape_out, in exact integers."""

    shape_in: tuple[int, int]
    shape_out: tuple[int, int]

    def _taps(self, region: Region, method: Method) -> tuple[AxisTaps, AxisTaps]:
        return (
            axis_taps(region.y0, region.y1, self.shape_in[0], self.shape_out[0], method),
            axis_taps(region.x0, region.x1, self.shape_in[1], self.shape_out[1], method),
        )


@dataclass(frozen=True, slots=True)
class Scaled(_Separable):
    """Pixel (y, x) of the frame covers [y + origin, y + origin + 1) * scale + shift of an input of shape_in.

    origin: (y, x) in whole pixels, of the frame on the canvas: positions are counted from the canvas.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]
    shape_in: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    def _taps(self, region: Region, method: Method) -> tuple[AxisTaps, AxisTaps]:
        at = region.shift(*self.origin)
        return (
            scaled_taps(at.y0, at.y1, self.scale[0], self.shift[0], self.shape_in[0], method),
            scaled_taps(at.x0, at.x1, self.scale[1], self.shift[1], self.shape_in[1], method),
        )


def _weighted(pixels: NDArray[Any], taps: AxisTaps, axis: int) -> NDArray[np.float32]:
    shape = [1] * pixels.ndim
    shape[axis] = -1
    total: NDArray[np.float32] | None = None
    with np.errstate(invalid="ignore", over="ignore"):
        for index, weight in zip(taps.index, taps.weight, strict=True):
            term = np.take(pixels, index, axis).astype(np.float32) * weight.reshape(shape)
            if pixels.dtype.kind == "f":
                # NaN and infinity must not leak in through a tap of weight 0.
                term = np.where(weight.reshape(shape) == 0, np.float32(0), term)
            total = term if total is None else np.add(total, term, out=total)
    assert total is not None
    return total
