"""The fade of a layer to 0 at its own border, for layers along the canvas's pixels and for those placed by an affine
map. Every pixel's weight is computed from its place on the canvas alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.gaussian import Sigmas
from tiledblend.kernels.snap import snap

REACH_SIGMAS = 5.0
"""From here on a side weighs exactly 1, whether it is looked at or not: 1 - erf(5 / sqrt 2) is 6e-7."""
_TABLE_STEPS = 512
_MARGIN = 1e-6


class Border(Protocol):
    """Weight of a layer's place on the canvas; regions in canvas pixels."""

    def weight(self, region: Region) -> NDArray[np.float32] | None:
        """float32 in [0, 1], snapped; None where it is 1."""
        ...

    def bounds(self, region: Region) -> tuple[float, float]:
        """(lower, upper) bound of the weight; 0 and 1 are exact."""
        ...


@dataclass(frozen=True, slots=True)
class AlignedBorder:
    """A frame of whole canvas pixels. sides: (top, left, bottom, right), True where that side fades."""

    frame: Region
    sides: tuple[bool, bool, bool, bool]
    sigmas: Sigmas

    def weight(self, region: Region) -> NDArray[np.float32] | None:
        """As `Border.weight`, for a region inside the frame."""
        return border_weight(self._inside(region), self.frame.shape, self.sides, self.sigmas)

    def bounds(self, region: Region) -> tuple[float, float]:
        """As `Border.bounds`."""
        return border_bounds(self._inside(region), self.frame.shape, self.sides, self.sigmas)

    def _inside(self, region: Region) -> Region:
        return region.shift(-self.frame.y0, -self.frame.x0)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a placed layer. nx, ny, c: nx x + ny y + c is the distance in canvas pixels of a point from its line,
    positive inside. closed: a pixel whose centre lies exactly on the line is inside."""

    nx: float
    ny: float
    c: float
    closed: bool

    def sigma(self, sigmas: Sigmas) -> float:
        """Of a Gaussian across this side's line."""
        y, x = sigmas
        return y if y == x else math.hypot(self.ny * y, self.nx * x)


@dataclass(frozen=True, slots=True)
class PlacedBorder:
    """A parallelogram on the canvas: 0 where a pixel's centre lies outside, inside the product over its sides of
    erf(d / (sigma sqrt 2)) when sigma > 0, with d the distance of the centre from the side's line and sigma that of the
    Gaussian across it.

    sides: those that lie on the canvas.

    >>> PlacedBorder((Side(1.0, 0.0, -1.0, True),), (0.0, 0.0)).weight(Region(0, 0, 1, 3)).tolist()
    [[0.0, 1.0, 1.0]]
    """

    sides: tuple[Side, ...]
    sigmas: Sigmas

    def weight(self, region: Region) -> NDArray[np.float32] | None:
        """As `Border.weight`."""
        if self.bounds(region) == (1.0, 1.0):
            return None
        x = np.arange(region.x0, region.x1, dtype=np.float64) + 0.5
        y = np.arange(region.y0, region.y1, dtype=np.float64) + 0.5
        weight = np.ones(region.shape, np.float32)
        for side in self.sides:
            sigma = side.sigma(self.sigmas)
            if _extremes(side, region)[0] > _reach(sigma):
                continue
            distance = (side.nx * x)[None, :] + (side.ny * y + side.c)[:, None]
            inside = distance >= 0 if side.closed else distance > 0
            weight *= inside if sigma == 0 else np.where(inside, _erf(distance, sigma), np.float32(0))
        return snap(weight)

    def bounds(self, region: Region) -> tuple[float, float]:
        """As `Border.bounds`."""
        extremes = [(side, *_extremes(side, region)) for side in self.sides]
        if any(high < -_MARGIN for _, _, high in extremes):
            return 0.0, 0.0
        return (1.0 if all(low > _reach(side.sigma(self.sigmas)) for side, low, _ in extremes) else 0.0), 1.0


def _reach(sigma: float) -> float:
    return REACH_SIGMAS * sigma + _MARGIN


def _extremes(side: Side, region: Region) -> tuple[float, float]:
    """(least, greatest) distance of the pixel centres of a region."""
    along_x = (side.nx * (region.x0 + 0.5), side.nx * (region.x1 - 0.5))
    along_y = (side.ny * (region.y0 + 0.5), side.ny * (region.y1 - 0.5))
    return min(along_x) + min(along_y) + side.c, max(along_x) + max(along_y) + side.c


@cache
def _erf_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    at = np.arange(int(REACH_SIGMAS * _TABLE_STEPS) + 1) / _TABLE_STEPS
    return at, np.array([*(math.erf(t / math.sqrt(2)) for t in at[:-1]), 1.0])


def _erf(distance: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """erf(d / (sigma sqrt 2)) between the entries of a table, to 5e-7."""
    at, values = _erf_table()
    return np.interp(distance / sigma, at, values).astype(np.float32)


def border_weight(
    region: Region, shape: tuple[int, int], sides: tuple[bool, bool, bool, bool], sigmas: Sigmas
) -> NDArray[np.float32] | None:
    """Fade of a layer to 0 at its own sides: the product of erf(d / (sigma sqrt 2)), snapped; None where it is 1.

    region: inside the layer's frame of `shape`. sides: (top, left, bottom, right), True where that side ends strictly
    inside the canvas, along an axis whose sigma is above 0. d: distance from the pixel's centre to the side, in pixels.
    """
    if not any(sides):
        return None
    top, left, bottom, right = sides
    rows = _fade(region.y0, region.y1, shape[0], top, bottom, sigmas[0])
    columns = _fade(region.x0, region.x1, shape[1], left, right, sigmas[1])
    return snap(rows[:, None] * columns[None, :])


def border_bounds(
    region: Region, shape: tuple[int, int], sides: tuple[bool, bool, bool, bool], sigmas: Sigmas
) -> tuple[float, float]:
    """(lower, upper) bound of the border weight inside a region, from its distances alone."""
    if not any(sides):
        return 1.0, 1.0
    y, x = 5 * sigmas[0], 5 * sigmas[1]
    top, left, bottom, right = sides
    touched = (
        (top and region.y0 < y)
        or (left and region.x0 < x)
        or (bottom and shape[0] - region.y1 < y)
        or (right and shape[1] - region.x1 < x)
    )
    return (0.0 if touched else 1.0), 1.0


def _fade(start: int, stop: int, size: int, low: bool, high: bool, sigma: float) -> NDArray[np.float32]:
    if not (low or high):
        return np.ones(stop - start, np.float32)
    scale = 1 / (sigma * math.sqrt(2))
    values = [
        (math.erf((p + 0.5) * scale) if low else 1.0) * (math.erf((size - p - 0.5) * scale) if high else 1.0)
        for p in range(start, stop)
    ]
    return np.array(values, np.float32)
