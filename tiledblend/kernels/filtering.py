"""A Gaussian's taps over pixels or cells, by blocks that stay in the processor's cache; all sums exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.cells import columns_of, rows_of
from tiledblend.kernels.gaussian import CELL_FULL, KSIZE_TAP_SUM, TAP_SUM, FeatherKernel, Taps
from tiledblend.kernels.mirror import Units
from tiledblend.kernels.snap import snap, snap_into

SPARSE = 61
BLOCK = 256

_ONE = np.ones(1, np.float32)


def filter_pixels(units: Units, kernel: FeatherKernel) -> NDArray[np.float32]:
    """Filters an array that carries its halo; returns it without the halo."""
    if kernel.ksize is not None:
        return _filter_ksize(units, kernel.taps())
    full = int(np.iinfo(units.dtype).max)
    values = to_cell_scale(units, full) if full > CELL_FULL else units
    y, x = (len(axis) - 1 for axis in kernel.taps())
    out = np.empty((units.shape[0] - y, units.shape[1] - x), np.float32)
    for where, part in filtered_blocks(values, min(full, CELL_FULL), kernel.taps()):
        snap_into(part, out[where.slices])
    return out


def _filter_ksize(units: Units, taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """OpenCV's small kernels to its own precision: sums of 16-bit values and 18-bit taps are exact in float64."""
    y, x = taps
    radius = len(y) // 2
    sums = cv2.sepFilter2D(units.astype(np.float64), cv2.CV_64F, x, y, borderType=cv2.BORDER_CONSTANT)
    sums = sums[radius : sums.shape[0] - radius, radius : sums.shape[1] - radius]
    scale = 1.0 / (float(np.iinfo(units.dtype).max) * KSIZE_TAP_SUM * KSIZE_TAP_SUM)
    return snap((sums * scale).astype(np.float32))


def filtered_blocks(
    values: NDArray[Any], full: int, taps: tuple[Taps, Taps]
) -> Iterator[tuple[Region, NDArray[np.float32]]]:
    """(block of the array without its halo, its values by `_filter_exact`); 0 or full, halo and all, it stays."""
    over_y, over_x = (len(axis) - 1 for axis in taps)
    whole = Region(0, 0, values.shape[0] - over_y, values.shape[1] - over_x)
    for strip in rows_of(whole, BLOCK):
        for block in columns_of(strip, BLOCK):
            part = values[block.y0 : block.y1 + over_y, block.x0 : block.x1 + over_x]
            value = int(part[0, 0])
            if value in (0, full) and _is_all(part, value):
                yield block, np.full(block.shape, value // full, np.float32)
            else:
                yield block, _filter_exact(part, full, taps)


def _filter_exact(values: NDArray[Any], full: int, taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """Both axes of a filter, taps (y, x) of sum TAP_SUM, over integers (uint8 or float32) up to `full` <= CELL_FULL.

    Returns the part without the halo, as float32 of full scale 1. No sum exceeds full * TAP_SUM <= 2**24: exact, also
    where the taps are multiplied by a power of 2 first.
    """
    y, x = (axis.astype(np.float32) for axis in taps)
    over_y, over_x = len(y) // 2, len(x) // 2
    border = cv2.BORDER_CONSTANT
    if full == CELL_FULL:
        x *= np.float32(1 / TAP_SUM)
    y *= np.float32(1 / (CELL_FULL * TAP_SUM))
    rows: NDArray[Any] = cv2.sepFilter2D(values, cv2.CV_32F, x, _ONE, borderType=border)
    rows = rows[:, over_x : rows.shape[1] - over_x]
    if full != CELL_FULL:
        rows = np.multiply(rows, np.float32(CELL_FULL / (full * TAP_SUM)))
    rows = np.rint(rows, out=rows)
    sums: NDArray[Any] = cv2.sepFilter2D(rows, cv2.CV_32F, _ONE, y, borderType=border)
    return sums[over_y : sums.shape[0] - over_y]


def to_cell_scale(units: Units, full: int) -> NDArray[np.float32]:
    """Units of full scale `full` as whole numbers of full scale CELL_FULL."""
    scaled = units.astype(np.float32)
    scaled *= np.float32(CELL_FULL / full)
    return np.rint(scaled, out=scaled)


def _is_all(units: Units, value: int) -> bool:
    """True when every unit is `value`; a few are looked at first."""
    few = units[::SPARSE, ::SPARSE]
    return bool((few == value).all()) and int(units.min()) == int(units.max())
