"""Growing and shrinking of binary masks by an exact Euclidean distance, the same however the mask is cut.

A pixel is in the grown mask when its centre lies within the radius of the centre of a mask pixel: what
`scipy.ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius` gives on the whole mask. Shrinking by r is
growing the outside: a pixel stays when no pixel outside lies within r, `distance_transform_edt(mask) > r`. What lies
beyond the array is neither inside nor outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError

MAX_RADIUS_PX = 4096
STRIP_ROWS = 512
_FAR = 65535

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Growth:
    """By `radius` (negative: shrink), in the units in which a pixel is `spacing` (y, x) wide.

    >>> Growth(-2.5).halo_px, Growth(4.0, (0.5, 0.25)).halo_px
    ((2, 2), (8, 16))
    """

    radius: float
    spacing: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        # Not by the halo alone: that is counted row by row.
        is_near = math.isfinite(self.radius) and abs(self.radius) / min(self.spacing) < MAX_RADIUS_PX + 1
        if not (is_near and max(self.halo_px) <= MAX_RADIUS_PX):
            raise UsageError(f"grow by {self.radius:g} reaches further than {MAX_RADIUS_PX} pixels")

    @property
    def halo_px(self) -> tuple[int, int]:
        """(y, x) pixels around a region that its result can depend on."""
        return len(_half_widths(abs(self.radius), *self.spacing)) - 1, _reach(abs(self.radius), self.spacing[1], 0.0)


def _reach(radius: float, spacing: float, across: float) -> int:
    """Most pixels of `spacing` that stay within the radius at a distance `across`, -1: none. As scipy measures."""
    if not math.isfinite(radius):
        return 0
    count = int(math.sqrt(max(0.0, radius * radius - across * across)) / spacing) + 1
    while count >= 0 and math.sqrt(across * across + (count * spacing) ** 2) > radius:
        count -= 1
    return count


@lru_cache(maxsize=64)
def _half_widths(radius: float, y: float, x: float) -> tuple[int, ...]:
    """Half the width of the disc in pixels, by rows from its middle."""
    rows = _reach(radius, y, 0.0)
    return tuple(_reach(radius, x, dy * y) for dy in range(rows + 1))


def grown(mask: Mask, growth: Growth) -> Mask:
    """The mask grown or shrunk, same shape (y, x); right at least `growth.halo_px` from cut edges.

    >>> grown(np.array([[0, 0, 1, 0, 0]], bool), Growth(1.0)).astype(int).tolist()
    [[0, 1, 1, 1, 0]]
    """
    if growth.radius < 0:
        return ~_dilated(~mask, growth)
    return _dilated(mask, growth)


def _dilated(mask: Mask, growth: Growth) -> Mask:
    if mask.all() or not mask.any():
        return mask.copy()
    widths, height = _half_widths(abs(growth.radius), *growth.spacing), mask.shape[0]
    reach = len(widths) - 1
    out = np.zeros(mask.shape, np.bool_)
    step = max(STRIP_ROWS, 2 * reach)
    for y0 in range(0, height, step):
        y1 = min(y0 + step, height)
        first = max(0, y0 - reach)
        near = mask[first : min(y1 + reach, height)]
        if near.any():
            _dilate_rows(_row_distance(near), y0 - first, widths, out[y0:y1])
    return out


def _dilate_rows(distance: NDArray[np.uint16], first: int, widths: tuple[int, ...], out: Mask) -> None:
    """out: rows from `first` of the rows of `distance` on."""
    stop = first + out.shape[0]
    within = np.empty(out.shape, np.bool_)
    for dy in range(-len(widths) + 1, len(widths)):
        start, end = max(0, first + dy), min(stop + dy, distance.shape[0])
        if start >= end:
            continue
        rows = slice(start - first - dy, end - first - dy)
        np.less_equal(distance[start:end], np.uint16(widths[abs(dy)]), out=within[rows])
        np.logical_or(out[rows], within[rows], out=out[rows])


def _row_distance(mask: Mask) -> NDArray[np.uint16]:
    """Pixels to the nearest mask pixel of the same row, 65535 where it is farther or there is none."""
    width = mask.shape[1]
    place = np.arange(width, dtype=np.int32)
    before = np.maximum.accumulate(np.where(mask, place, np.int32(-2 * _FAR)), axis=1)
    after = np.minimum.accumulate(np.where(mask, place, np.int32(width + 2 * _FAR))[:, ::-1], axis=1)[:, ::-1]
    nearest = np.minimum(place - before, after - place)
    return np.minimum(nearest, _FAR).astype(np.uint16)
