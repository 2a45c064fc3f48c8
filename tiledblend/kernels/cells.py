"""A mask averaged over cells and cells enlarged to pixels, by halves, in whole numbers.

A cell of side 2**k along an axis is centred on the pixel at its index times 2**k, wherever a tile starts. Each halving
and each doubling is by the taps (1, 4, 6, 4, 1), the pyramid of Burt & Adelson (1983): their spectrum has a fourfold
zero where patterns as fine as the cells would alias to coarse ones. What is averaged is uint16, rounded at every step;
what is enlarged too, except for the last step, to pixels, which is float32 and exact: its values are multiples of
2**-21 up to 1. So neither the order of summation nor the processor's vector width can change a bit.

A step halves the side along the axes that have the larger one: where sigma differs by axis, so does a cell's side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region

Side = tuple[int, int]
"""(y, x) in pixels, powers of 2."""

Cells = NDArray[Any]
"""uint16, or float32 where cells are pixels; shape (y, x)."""

PIXEL: Side = (1, 1)
UNIT_FULL = 65535
ENLARGED_FULL = 1 << 15
# One step's variance, in pixels squared of its finer grid.
STEP_VARIANCE = 1.0


def response(frequency: float, side: int) -> float:
    """What averaging into cells of `side` pixels and enlarging leave of a wave; frequency in cycles per cell.

    >>> response(0, 4), round(response(0.5, 2), 4)
    (1.0, 0.0625)
    """
    product = 1.0
    while side > 1:
        frequency, side = frequency / 2, side // 2
        product *= math.cos(math.pi * frequency) ** 8
    return product


def variance(side: int) -> float:
    """What averaging and enlarging add, in cells squared."""
    return 2 * STEP_VARIANCE * (1 - 1 / side**2) / 3


def capped(side: Side, most: int) -> Side:
    """The side, along no axis above `most`: one that enlarging comes by."""
    return min(side[0], most), min(side[1], most)


@lru_cache(maxsize=256)
def _steps(coarse: Side, fine: Side) -> tuple[tuple[Side, Side], ...]:
    """(side, the next finer one) from coarse to fine.

    >>> _steps((4, 8), (1, 1))
    (((4, 8), (4, 4)), ((4, 4), (2, 2)), ((2, 2), (1, 1)))
    """
    steps = []
    while coarse != fine:
        y, x = coarse
        finer = y // 2 if y >= x else y, x // 2 if x >= y else x
        steps.append((coarse, finer))
        coarse = finer
    return tuple(steps)


def averaged_over(cells: Region, coarse: Side, fine: Side = PIXEL) -> Region:
    """The finer cells (or pixels) that the averages over coarser ones depend on."""
    for side, finer in _steps(coarse, fine):
        y, x = (a != b for a, b in zip(side, finer, strict=True))
        if y:
            cells = Region(2 * cells.y0 - 2, cells.x0, 2 * cells.y1 + 1, cells.x1)
        if x:
            cells = Region(cells.y0, 2 * cells.x0 - 2, cells.y1, 2 * cells.x1 + 1)
    return cells


def _enlarged_from(region: Region, halved: tuple[bool, bool]) -> Region:
    """The coarser cells that finer ones are enlarged from, in one step."""
    (y0, y1), (x0, x1) = (
        ((low + 1) // 2 - 1, (high - 1) // 2 + 2) if two else (low, high)
        for two, low, high in zip(halved, (region.y0, region.x0), (region.y1, region.x1), strict=True)
    )
    return Region(y0, x0, y1, x1)


@lru_cache(maxsize=64)
def _enlarging(region: Region, coarse: Side, fine: Side) -> tuple[Region, ...]:
    """The cells that are needed at every step, coarsest first, the region itself last."""
    regions = [region]
    for side, finer in reversed(_steps(coarse, fine)):
        regions.append(_enlarged_from(regions[-1], (side[0] != finer[0], side[1] != finer[1])))
    return tuple(reversed(regions))


def enlarged_from(region: Region, coarse: Side, fine: Side = PIXEL) -> Region:
    """The coarser cells that finer ones (or pixels) are enlarged from."""
    return _enlarging(region, coarse, fine)[0]


def average(values: Cells, coarse: Side, fine: Side = PIXEL) -> Cells:
    """Coarser cells of finer ones (or pixels), uint16, rounded; of the values that `averaged_over` names.

    >>> average(np.full((7, 7), 65535, np.uint16), (2, 2)).tolist()
    [[65535, 65535], [65535, 65535]]
    """
    for side, finer in reversed(_steps(coarse, fine)):
        values = _halved(values, (side[0] != finer[0], side[1] != finer[1]))
    return values


def enlarge(cells: Cells, where: Region, coarse: Side, fine: Side, region: Region) -> Cells:
    """Finer cells of coarser ones, those of `where`: uint16 of full scale ENLARGED_FULL; pixels float32, up to 1.

    region: which of the finer cells; `where` contains what they are `enlarged_from`.
    """
    regions = _enlarging(region, coarse, fine)
    values: Cells = cells[regions[0].shift(-where.y0, -where.x0).slices]
    for (side, finer), from_, to in zip(_steps(coarse, fine), regions, regions[1:], strict=False):
        if finer == PIXEL:
            values = values.astype(np.float32)
            values *= np.float32(1 / ENLARGED_FULL)
        y, x = side[0] != finer[0], side[1] != finer[1]
        origin = from_.y0 * (1 + y), from_.x0 * (1 + x)
        values = _doubled(values, (y, x))[to.shift(-origin[0], -origin[1]).slices]
    return values


def _halved(values: Cells, axes: tuple[bool, bool]) -> Cells:
    """Averages by (1, 4, 6, 4, 1) around every other value of uint16; the first is around the third value."""
    if axes == (True, True):
        both: Cells = cv2.pyrDown(values)[1:-1, 1:-1]
        return both
    return _halved_rows(values) if axes[0] else _turned(_halved_rows(_turned(values)))


def _halved_rows(values: Cells) -> Cells:
    even, odd = values[::2].astype(np.uint32), values[1::2].astype(np.uint32)
    sums = even[1:-1] * np.uint32(6)
    sums += (odd[:-1] + odd[1:]) * np.uint32(4)
    sums += even[:-2]
    sums += even[2:]
    sums += np.uint32(8)
    return (sums >> np.uint32(4)).astype(np.uint16)


def _doubled(values: Cells, axes: tuple[bool, bool]) -> Cells:
    """Twice as many values along the axes; the very first and the very last ones lack a neighbour and are not right."""
    if axes == (True, True):
        both: Cells = cv2.pyrUp(values)
        return both
    return _doubled_rows(values) if axes[0] else _turned(_doubled_rows(_turned(values)))


def _doubled_rows(values: Cells) -> Cells:
    exact = values.dtype == np.float32
    wide = values if exact else values.astype(np.uint32)
    between = wide[:-1] + wide[1:]
    at = wide[1:-1] * wide.dtype.type(4)
    at += between[:-1]
    at += between[1:]
    out = np.zeros((2 * len(values), values.shape[1]), values.dtype)
    if exact:
        np.multiply(at, np.float32(1 / 8), out=out[2:-2:2])
        np.multiply(between, np.float32(1 / 2), out=out[1:-1:2])
    else:
        out[2:-2:2] = (at + np.uint32(4)) >> np.uint32(3)
        out[1:-1:2] = (between + np.uint32(1)) >> np.uint32(1)
    return out


def _turned(values: Cells) -> Cells:
    """Rows as columns, in C order."""
    turned: Cells = cv2.transpose(values)
    return turned


def rows_of(cells: Region, most: int) -> Iterator[Region]:
    """Strips of at most `most` rows."""
    for y in range(cells.y0, cells.y1, most):
        yield Region(y, cells.x0, min(y + most, cells.y1), cells.x1)


def columns_of(cells: Region, most: int) -> Iterator[Region]:
    """Blocks of at most `most` columns, from left to right."""
    for x in range(cells.x0, cells.x1, most):
        yield Region(cells.y0, x, cells.y1, min(x + most, cells.x1))
