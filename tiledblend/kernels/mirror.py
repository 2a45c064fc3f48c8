"""A mask's units of any region, mirrored about the centres of its edge pixels where the region leaves the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region

Units = NDArray[Any]
"""uint8 or uint16 mask values, shape (y, x); the dtype's maximum means weight 1."""

ReadUnits = Callable[[Region], Units]
"""Reads a region that lies inside the mask."""


KnowUnits = Callable[[Region], Units | None]
"""The units of a region inside the mask as (1, 1), where it is known without reading that all are the same."""


def mirror_index(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Indices into [0, size) of positions start..stop-1, mirrored about the centres of the edge pixels.

    >>> mirror_index(-2, 6, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if size == 1:
        return np.zeros(stop - start, np.int64)
    period = 2 * (size - 1)
    folded = np.arange(start, stop, dtype=np.int64) % period
    return np.minimum(folded, period - folded)


def mirrored(region: Region, shape: tuple[int, int]) -> Region:
    """The part of a mask of `shape` that a region shows, where pixels outside the mask are mirrored inside it."""
    if Region.of_shape(shape).contains(region):
        return region
    rows = mirror_index(region.y0, region.y1, shape[0])
    columns = mirror_index(region.x0, region.x1, shape[1])
    return Region(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)


def read_mirrored(read: ReadUnits, region: Region, shape: tuple[int, int]) -> Units:
    """`region` of a mask of `shape`, where pixels outside the mask are mirrored inside it."""
    if Region.of_shape(shape).contains(region):
        return read(region)
    inside = region & Region.of_shape(shape)
    over = (inside.y0 - region.y0, region.y1 - inside.y1, inside.x0 - region.x0, region.x1 - inside.x1)
    if max(over[:2]) < inside.shape[0] and max(over[2:]) < inside.shape[1]:
        units: Units = cv2.copyMakeBorder(read(inside), *over, cv2.BORDER_REFLECT_101)
        return units
    rows = mirror_index(region.y0, region.y1, shape[0])
    columns = mirror_index(region.x0, region.x1, shape[1])
    needed = mirrored(region, shape)
    return np.ascontiguousarray(read(needed)[np.ix_(rows - needed.y0, columns - needed.x0)])
