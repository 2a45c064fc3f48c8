"""Gaussian feathering of masks, the same bits however the mask is cut.

Three ideas make it exact and keep its cost from growing with sigma:

- Mask values are integers (full scale at most 2048) and so are the filter's taps (they sum to 2**13); the rows' sums
  are rounded to full scale 2048 again before the columns are summed. All sums stay within 2**24, where float32
  addition is exact, so neither the order of summation nor the processor's vector width can change a bit.
- From sigma 3.125 on the mask is first averaged into cells of d x d pixels, d a power of 2, then filtered on that small
  grid and enlarged again (`cells`). The filter's spectrum is the Gaussian's divided by what averaging and enlarging
  leave. Where sigma differs by axis, so do d and the taps; along an axis of d = 1 nothing is averaged or enlarged.
- Filtering goes by blocks that stay in the processor's cache.

The reference is `scipy.ndimage.gaussian_filter(mask, sigma, mode="mirror", truncate=4)` in float64; the error is below
0.002 of full scale (tests/test_feather.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.cells import (
    ENLARGED_FULL,
    PIXEL,
    UNIT_FULL,
    Side,
    average,
    averaged_over,
    capped,
    columns_of,
    enlarge,
    enlarged_from,
    response,
    rows_of,
    variance,
)

SNAP = np.float32(2.0**-12)
ONE_MINUS_SNAP = np.float32(1 - 2.0**-12)
_BELOW_SNAP = np.nextafter(SNAP, np.float32(0))
TAP_SUM = 1 << 13
KSIZE_TAP_SUM = 1 << 18
CELL_FULL = 2048
CELLS_PER_SIGMA = 1.75
CELLS_PER_WIDE_SIGMA = 7.0
SMALLEST_AVERAGED = 3.125
WIDE_CELL = 16
KEPT_CELL = 4
STRIP_CELL = 8
STRIP_ROWS = 512
SPARSE = 61
BLOCK = 256
ROUNDING = 1 / CELL_FULL
FREQUENCIES = 256
SNAP_STRIP = 32_768

# cv2.getGaussianKernel(n, 0): OpenCV takes these fixed binomial-like taps for small kernels, not a sampled Gaussian.
_OPENCV_SMALL_TAPS = {
    1: (1,),
    3: (1, 2, 1),
    5: (1, 4, 6, 4, 1),
    7: (2, 7, 14, 18, 14, 7, 2),
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}


Sigmas = tuple[float, float]
"""(y, x) in pixels."""

Taps = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatherKernel:
    """A Gaussian on the pixel grid: `sigma` in pixels, one or (y, x) (0: none), or OpenCV's `ksize` x `ksize` kernel.

    >>> FeatherKernel(16).cell_px, FeatherKernel(16).halo_px, FeatherKernel((0, 16)).halo_px
    ((8, 8), (84, 84), (0, 84))
    """

    sigma: float | Sigmas = 0.0
    ksize: int | None = None

    def __post_init__(self) -> None:
        for sigma in self.sigmas:
            if not (math.isfinite(sigma) and sigma >= 0):
                raise UsageError(f"feather sigma {self.sigma} must be a finite number of pixels, 0 or more")
            if sigma > 100_000:
                raise UsageError(f"feather sigma {self.sigma} px is beyond 100000 px")
        if self.ksize is not None and (self.ksize < 1 or self.ksize % 2 == 0 or self.ksize > 301):
            raise UsageError(f"feather ksize {self.ksize} must be odd, from 1 to 301")
        if self.ksize is not None and self.sigmas != (0, 0):
            raise UsageError(f"feather has both sigma {self.sigma} and ksize {self.ksize}; give one of them")

    @property
    def sigmas(self) -> Sigmas:
        """(y, x)."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)

    @property
    def is_identity(self) -> bool:
        """True when nothing is filtered."""
        return self.ksize in (None, 1) and self.sigmas == (0, 0)

    @property
    def is_direct(self) -> bool:
        """True when pixels are filtered as they are, False when the cells that they are averaged over."""
        return self.cell_px == (1, 1)

    @property
    def cell_px(self) -> tuple[int, int]:
        """(y, x) sides in pixels, powers of 2, of the cells that the mask is averaged over (1: none)."""
        if self.ksize is not None:
            return PIXEL
        y, x = self.sigmas
        return _cell_side(y), _cell_side(x)

    @property
    def kept_px(self) -> Side:
        """(y, x) sides of the cells that are kept: finer ones than are filtered bound the weights more closely."""
        return capped(self.cell_px, KEPT_CELL)

    @property
    def strip_cell_px(self) -> Side:
        """(y, x) sides of the cells that strips of the mask are averaged into, before all of these are further."""
        return capped(self.cell_px, max(STRIP_CELL, max(self.cell_px) // WIDE_CELL))

    @property
    def strip_px(self) -> tuple[int, int]:
        """(y, x) of the mask pixels that are averaged into cells at once."""
        y, x = (_cells_per_strip(d) * d + 3 * (d - 1) for d in self.strip_cell_px)
        return y, x

    @property
    def halo_px(self) -> tuple[int, int]:
        """(y, x) pixels around a region that its feather can depend on."""
        # Averaging and enlarging reach 2 (d - 1) pixels each.
        y, x = (reach * d + 4 * (d - 1) for reach, d in zip(self._reaches, self.cell_px, strict=True))
        return y, x

    @property
    def _reaches(self) -> tuple[int, int]:
        """(y, x) taps on either side, in cells."""
        y, x = self.taps()
        return len(y) // 2, len(x) // 2

    def taps(self) -> tuple[Taps, Taps]:
        """(y, x): integers (as float64) that sum to TAP_SUM (KSIZE_TAP_SUM with ksize), symmetric, odd in number."""
        y, x = self.sigmas
        return _taps(y, self.ksize), _taps(x, self.ksize)


@lru_cache(maxsize=64)
def _cell_side(sigma: float) -> int:
    """Pixels: as large as the error allows; wide Gaussians cost little on finer cells too, which reach less far."""
    if sigma < SMALLEST_AVERAGED:
        return 1
    side = max(2, _power_of_2(sigma / CELLS_PER_SIGMA))
    return min(side, max(WIDE_CELL, _power_of_2(sigma / CELLS_PER_WIDE_SIGMA)))


def _power_of_2(value: float) -> int:
    """The largest one that is not above `value`; 1 at least."""
    return 1 << max(0, math.floor(math.log2(value)))


@lru_cache(maxsize=64)
def _taps(sigma: float, ksize: int | None) -> Taps:
    total = TAP_SUM if ksize is None else KSIZE_TAP_SUM
    if ksize is not None and ksize in _OPENCV_SMALL_TAPS:
        small = np.array(_OPENCV_SMALL_TAPS[ksize], np.float64)
        return small * (total / small.sum())
    if ksize is not None:
        sigma = 0.3 * ((ksize - 1) * 0.5 - 1) + 0.8
        half = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(ksize // 2 + 1)]
    elif sigma == 0:
        half = [1.0]
    elif (d := _cell_side(sigma)) > 1:
        half = _cell_taps(sigma / d, d)
    else:
        half = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(int(4 * sigma + 0.5) + 1)]
    tail = np.array(half[:0:-1]) / (half[0] + 2 * sum(half[1:])) * total
    # The running sum is rounded, not each tap: a step edge is then off by half a unit at most.
    rounded = np.diff(np.rint(np.cumsum(tail)), prepend=0.0)
    # Zeros at the ends would cost time and reach for nothing.
    rounded = np.trim_zeros(rounded, "f")
    return np.concatenate([rounded, [total - 2 * rounded.sum()], rounded[::-1]])


def _cell_taps(sigma: float, d: int) -> list[float]:
    """From the middle on: with averaging over cells of d pixels and enlarging a Gaussian of `sigma` cells.

    The inverse Fourier transform of the Gaussian's spectrum, divided by what averaging and enlarging leave.
    """
    spectrum = [
        math.exp(-2 * (math.pi * sigma * f) ** 2) / response(f, d)
        for f in ((i + 0.5) / (2 * FREQUENCIES) for i in range(FREQUENCIES))
    ]
    reach = int(4 * math.sqrt(sigma**2 - variance(d)) + 0.5)
    return [
        sum(part * math.cos(math.pi * (i + 0.5) / FREQUENCIES * n) for i, part in enumerate(spectrum))
        for n in range(reach + 1)
    ]


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


Units = NDArray[Any]
"""uint8 or uint16 mask values, shape (y, x); the dtype's maximum means weight 1."""

ReadUnits = Callable[[Region], Units]
"""Reads a region that lies inside the mask."""


KnowUnits = Callable[[Region], Units | None]
"""The units of a region inside the mask as (1, 1), where it is known without reading that all are the same."""


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


def snap(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place, weights in [0, 1]: below 2**-12 becomes 0, above 1 - 2**-12 becomes 1, so that plateaus are exact."""
    if weight.ndim != 2 or not weight.size or weight.strides[1] != weight.itemsize:
        weight[weight < SNAP] = 0
        weight[weight > ONE_MINUS_SNAP] = 1
        return weight
    _snap_into(weight, weight)
    return weight


def _snap_into(weight: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """`snap`, written to `out`, which may be `weight`.

    Whole passes of OpenCV over strips in the cache: their speed does not depend on how much is snapped.
    """
    rows = max(1, SNAP_STRIP // weight.shape[1])
    for y in range(0, weight.shape[0], rows):
        strip = out[y : y + rows]
        cv2.threshold(weight[y : y + rows], float(_BELOW_SNAP), 0, cv2.THRESH_TOZERO, dst=strip)
        ones = cv2.threshold(strip, float(ONE_MINUS_SNAP), 1, cv2.THRESH_BINARY)[1]
        cv2.max(strip, ones, dst=strip)
        cv2.threshold(strip, 1, 1, cv2.THRESH_TRUNC, dst=strip)


def units_to_weight(units: Units) -> NDArray[np.float32]:
    """uint8 or uint16 units as float32 weights in [0, 1], snapped; float32 weights are only snapped."""
    if units.dtype == np.float32:
        return snap(units.copy())
    return snap(units.astype(np.float32) / np.float32(np.iinfo(units.dtype).max))


def inside_only(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place: the one-sided feather max(0, 2 G - 1), snapped: nothing outside the mask gets weight."""
    weight *= np.float32(2)
    weight -= np.float32(1)
    np.maximum(weight, np.float32(0), out=weight)
    return snap(weight)


class FeatheredMask:
    """The feather of one region of a mask, prepared once and then asked for any part of that region.

    kernel: the Gaussian. region: what will be asked for, in the mask's frame. shape: (y, x) of the whole mask.
    read: yields uint8/uint16 units of a region inside the mask. Preparing reads the region with its halo, in strips;
    for sigma >= 3.125 only the filtered cells are kept, and what `known` answers is not read.
    """

    def __init__(
        self,
        kernel: FeatherKernel,
        region: Region,
        shape: tuple[int, int],
        read: ReadUnits,
        known: KnowUnits = lambda _: None,
    ) -> None:
        self.kernel = kernel
        self.region = region
        if kernel.is_direct:
            self._reach = region.grow(*kernel.halo_px)
            self._units = read_mirrored(read, self._reach, shape)
        else:
            self._kept, self._cells = _filtered_cells(kernel, region, _Mask(shape, read, known))

    def bounds(self, region: Region) -> tuple[float, float]:
        """(lower, upper) bound of the weight inside `region`; (0, 0) and (1, 1) are exact statements."""
        if self.kernel.is_direct:
            part = self._reach_of(region)
            full = 1.0 if part.dtype == np.float32 else float(np.iinfo(part.dtype).max)
            low, high = float(part.min()) / full, float(part.max()) / full
            if not self.kernel.is_identity and self.kernel.ksize is None:
                # Rounding to full scale 2048, at most twice, by half a unit each.
                low, high = (b if b in (0, 1) else b + margin for b, margin in ((low, -ROUNDING), (high, ROUNDING)))
        else:
            needed = enlarged_from(region, self.kernel.kept_px).shift(-self._kept.y0, -self._kept.x0)
            cells = self._cells[needed.slices]
            low, high = float(cells.min()) / ENLARGED_FULL, float(cells.max()) / ENLARGED_FULL
        # A pixel's float32 rounding may cross the snap; the margin keeps such chunks on the per-pixel path.
        low = 1.0 if low > 1 - 2.0**-12 + 1e-6 else low
        return max(low, 0.0), (0.0 if high < 2.0**-12 - 1e-6 else min(high, 1.0))

    def weight(self, region: Region) -> NDArray[np.float32]:
        """float32 weights in [0, 1] of `region` (inside the prepared one), snapped."""
        if self.kernel.is_identity:
            return units_to_weight(self._reach_of(region))
        if self.kernel.is_direct:
            return _filter_direct(self._reach_of(region), self.kernel)
        weight = np.empty(region.shape, np.float32)
        _snap_into(enlarge(self._cells, self._kept, self.kernel.kept_px, PIXEL, region), weight)
        return weight

    def _reach_of(self, region: Region) -> Units:
        grown = region.grow(*self.kernel.halo_px).shift(-self._reach.y0, -self._reach.x0)
        part: Units = self._units[grown.slices]
        return part


def feather_tile(kernel: FeatherKernel, region: Region, shape: tuple[int, int], read: ReadUnits) -> NDArray[np.float32]:
    """float32 weights of `region` of a mask of `shape`: equal to that part of the whole mask's feather.

    >>> mask = np.array([[0, 0, 255, 255]], np.uint8)
    >>> feather_tile(FeatherKernel(0), Region(0, 1, 1, 3), mask.shape, lambda r: mask[r.slices]).tolist()
    [[0.0, 1.0]]
    """
    if kernel.is_identity:
        return units_to_weight(read(region))
    return FeatheredMask(kernel, region, shape, read).weight(region)


def _filter_direct(units: Units, kernel: FeatherKernel) -> NDArray[np.float32]:
    """Filters an array that carries its halo; returns it without the halo."""
    if kernel.ksize is not None:
        return _filter_ksize(units, kernel.taps())
    full = int(np.iinfo(units.dtype).max)
    values = _to_cell_scale(units, full) if full > CELL_FULL else units
    y, x = (len(axis) - 1 for axis in kernel.taps())
    out = np.empty((units.shape[0] - y, units.shape[1] - x), np.float32)
    for where, part in _filtered_blocks(values, min(full, CELL_FULL), kernel.taps()):
        _snap_into(part, out[where.slices])
    return out


def _filter_ksize(units: Units, taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """OpenCV's small kernels to its own precision: sums of 16-bit values and 18-bit taps are exact in float64."""
    y, x = taps
    radius = len(y) // 2
    sums = cv2.sepFilter2D(units.astype(np.float64), cv2.CV_64F, x, y, borderType=cv2.BORDER_CONSTANT)
    sums = sums[radius : sums.shape[0] - radius, radius : sums.shape[1] - radius]
    scale = 1.0 / (float(np.iinfo(units.dtype).max) * KSIZE_TAP_SUM * KSIZE_TAP_SUM)
    return snap((sums * scale).astype(np.float32))


_ONE = np.ones(1, np.float32)


def _filtered_blocks(
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


def _to_cell_scale(units: Units, full: int) -> NDArray[np.float32]:
    """Units of full scale `full` as whole numbers of full scale CELL_FULL."""
    scaled = units.astype(np.float32)
    scaled *= np.float32(CELL_FULL / full)
    return np.rint(scaled, out=scaled)


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask of `shape`, and how its units are had."""

    shape: tuple[int, int]
    read: ReadUnits
    known: KnowUnits

    def full_or_empty(self, region: Region) -> int | None:
        """UNIT_FULL or 0 where that is known of all pixels of a region, mirrored ones included."""
        units = self.known(mirrored(region, self.shape))
        if units is None or units.dtype == np.float32:
            return None
        return {0: 0, int(np.iinfo(units.dtype).max): UNIT_FULL}.get(int(units[0, 0]))


def _filtered_cells(kernel: FeatherKernel, region: Region, mask: _Mask) -> tuple[Region, NDArray[np.uint16]]:
    """(the cells of side `kept_px` that a region of pixels is enlarged from; they, filtered, of ENLARGED_FULL)."""
    side, kept_px, taps = kernel.cell_px, kernel.kept_px, kernel.taps()
    kept = enlarged_from(region, kept_px)
    coarse = enlarged_from(kept, side, kept_px)
    needed = coarse.grow(*(len(axis) // 2 for axis in taps))
    value = mask.full_or_empty(averaged_over(needed, side))
    if value is not None:
        return kept, np.full(kept.shape, ENLARGED_FULL if value else 0, np.uint16)
    values = _to_cell_scale(_averaged(kernel, needed, mask), UNIT_FULL)
    cells = np.empty(coarse.shape, np.uint16)
    for where, part in _filtered_blocks(values, CELL_FULL, taps):
        cells[where.slices] = np.rint(part * np.float32(ENLARGED_FULL))
    return kept, enlarge(cells, coarse, side, kept_px, kept)


def _averaged(kernel: FeatherKernel, cells: Region, mask: _Mask) -> NDArray[np.uint16]:
    """Averages over cells of side `cell_px`, of UNIT_FULL: over smaller cells strip by strip, then over these."""
    side = kernel.strip_cell_px
    needed = averaged_over(cells, kernel.cell_px, side)
    small = np.empty(needed.shape, np.uint16)
    for strip in rows_of(needed, _cells_per_strip(side[0])):
        _average_strip(mask, strip, side, small[strip.shift(-needed.y0, -needed.x0).slices])
    return average(small, kernel.cell_px, side)


def _average_strip(mask: _Mask, strip: Region, side: Side, out: NDArray[np.uint16]) -> None:
    """The cells of a strip, block by block: many are 0 or full, and of those much is known without reading."""
    unknown: list[Region] = []
    for block in columns_of(strip, _cells_per_strip(side[1])):
        value = mask.full_or_empty(averaged_over(block, side))
        if value is None:
            unknown.append(block)
        else:
            out[:, block.x0 - strip.x0 : block.x1 - strip.x0] = value
    for run in _neighbours(unknown):
        here = Region(strip.y0, run[0].x0, strip.y1, run[-1].x1)
        units = read_mirrored(mask.read, averaged_over(here, side), mask.shape)
        out[:, here.x0 - strip.x0 : here.x1 - strip.x0] = average_units(units, side)


def average_units(units: Units, side: Side) -> NDArray[np.uint16]:
    """Averages over cells, of full scale UNIT_FULL, of the units that `averaged_over` names.

    >>> average_units(np.full((7, 5), 255, np.uint8), (2, 2)).tolist()
    [[65535], [65535]]
    """
    if units.dtype == np.uint8:
        units = np.multiply(units, np.uint16(UNIT_FULL // 255), dtype=np.uint16)
    return average(units, side)


def _is_all(units: Units, value: int) -> bool:
    """True when every unit is `value`; a few are looked at first."""
    few = units[::SPARSE, ::SPARSE]
    return bool((few == value).all()) and int(units.min()) == int(units.max())


def _neighbours(blocks: list[Region]) -> Iterator[list[Region]]:
    """Blocks from left to right, in runs without a gap."""
    run: list[Region] = []
    for block in blocks:
        if run and run[-1].x1 != block.x0:
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _cells_per_strip(d: int) -> int:
    """Cells that are averaged together: STRIP_ROWS pixels, more where most would be shared with neighbours."""
    return max(STRIP_CELL, STRIP_ROWS // d)


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
