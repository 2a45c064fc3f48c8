"""Resampling along an affine map, point by point: a part of the result equals that part of the whole.

A pixel's position in the input is computed in float64 from its place on the canvas alone, its four neighbours are
summed in a fixed order in float32. Where a pixel covers more than two of the input's, several of its points are
averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Affine, Region
from tiledblend.kernels.resample import Method

STRIP_PIXELS = 1 << 16
"""Points that are gathered at once: they stay in the cache."""

Positions = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Warped:
    """Frame pixels by an affine map: bilinear between the centres of the input's pixels, or the nearest one.

    to_input: canvas points to points of the input. shape_in: (y, x) of the input; beyond its border the last pixel is
    repeated. origin: (y, x) of the frame on the canvas. points: points per pixel and axis, evenly spread, averaged.

    >>> turned = Warped(Affine(0, 1, 0, -1, 0, 2), (2, 2))  # a quarter turn
    >>> turned.resample(np.array([[1.0, 2], [3, 4]]), Region(0, 0, 2, 2)).tolist()
    [[3.0, 1.0], [4.0, 2.0]]
    """

    to_input: Affine
    shape_in: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    points: int = 1

    def source_region(self, region: Region, method: Method = "linear") -> Region:
        """The input pixels that a region of the frame depends on."""
        at = region.shift(*self.origin)
        first, last = self._offsets()[0], self._offsets()[-1]
        # Positions grow or fall with x and with y, rounding included: their extremes are at the corners.
        y = np.array([at.y0 + first, at.y1 - 1 + last], np.float64)
        x = np.array([at.x0 + first, at.x1 - 1 + last], np.float64)
        spans = []
        for position, size in zip(self._positions(y, x), self.shape_in, strict=True):
            low, high = float(position.min()), float(position.max())
            start, stop = (low, high) if method == "nearest" else (low - 0.5, high + 0.5)
            spans.append((int(np.clip(np.floor(start), 0, size - 1)), int(np.clip(np.floor(stop), 0, size - 1)) + 1))
        (y0, y1), (x0, x1) = spans
        return Region(y0, x0, y1, x1)

    def resample(self, pixels: NDArray[Any], region: Region, method: Method = "linear") -> NDArray[Any]:
        """`region` of the frame from its `source_region`, (y, x) or (y, x, c): float32, not rounded (nearest: the
        input's dtype)."""
        native = self.source_region(region, method)
        height, width = region.shape
        dtype = pixels.dtype if method == "nearest" else np.dtype(np.float32)
        out = np.empty((height, width, *pixels.shape[2:]), dtype)
        rows = max(1, STRIP_PIXELS // max(1, width))
        flat = pixels.reshape(-1, *pixels.shape[2:])
        for y in range(0, height, rows):
            strip = Region(region.y0 + y, region.x0, min(region.y0 + y + rows, region.y1), region.x1)
            out[y : y + rows] = self._strip(flat, native, strip.shift(*self.origin), method)
        return out

    def _strip(self, flat: NDArray[Any], native: Region, at: Region, method: Method) -> NDArray[Any]:
        if method == "nearest":
            y, x = self._positions(_places(at.y0, at.y1, 0.5), _places(at.x0, at.x1, 0.5))
            return flat[self._index(np.floor(y), np.floor(x), native)]
        total: NDArray[np.float32] | None = None
        for dy in self._offsets():
            for dx in self._offsets():
                y, x = self._positions(_places(at.y0, at.y1, dy), _places(at.x0, at.x1, dx))
                point = self._bilinear(flat, native, y - 0.5, x - 0.5)
                total = point if total is None else total + point
        assert total is not None
        return total if self.points == 1 else total * np.float32(1 / self.points**2)

    def _bilinear(
        self, flat: NDArray[Any], native: Region, y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        top, left = np.floor(y), np.floor(x)
        down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
        up, leftward = 1 - down, 1 - right
        total: NDArray[np.float32] | None = None
        taps = ((0, 0, up * leftward), (0, 1, up * right), (1, 0, down * leftward), (1, 1, down * right))
        for dy, dx, weight in taps:
            weight = weight.reshape(weight.shape + (1,) * (flat.ndim - 1))
            values = np.take(flat, self._index(top + dy, left + dx, native), axis=0)
            with np.errstate(invalid="ignore", over="ignore"):
                term = values.astype(np.float32) * weight
                if flat.dtype.kind == "f":
                    # NaN and infinity must not leak in through a tap of weight 0.
                    term = np.where(weight == 0, np.float32(0), term)
                total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        return total

    def _index(self, y: NDArray[np.float64], x: NDArray[np.float64], native: Region) -> NDArray[np.int64]:
        """Places in the flattened region of the pixels (y, x), the last ones beyond the border."""
        rows = np.clip(y, 0, self.shape_in[0] - 1).astype(np.int64) - native.y0
        columns = np.clip(x, 0, self.shape_in[1] - 1).astype(np.int64) - native.x0
        return rows * native.shape[1] + columns

    def _offsets(self) -> list[float]:
        return [(i + 0.5) / self.points for i in range(self.points)]

    def _positions(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> Positions:
        """(y, x) in the input of the canvas points of a grid."""
        m = self.to_input
        down = (m.e * y + m.f)[:, None] + (m.d * x)[None, :]
        across = (m.b * y + m.c)[:, None] + (m.a * x)[None, :]
        return down, across


def _places(start: int, stop: int, offset: float) -> NDArray[np.float64]:
    return np.arange(start, stop, dtype=np.float64) + offset
