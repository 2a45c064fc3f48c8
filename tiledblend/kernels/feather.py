"""Gaussian feathering of masks, the same bits however the mask is cut.

Three ideas make it exact and keep its cost from growing with sigma:

- Mask values are integers (full scale at most 2048) and so are the filter's taps (they sum to 2**13); the rows' sums
  are rounded to full scale 2048 again before the columns are summed. All sums stay within 2**24, where float32
  addition is exact, so neither the order of summation nor the processor's vector width can change a bit.
- From sigma 4 on the mask is first averaged into cells of d x d pixels (d = floor(sigma / 4), at least 2) by a triangle
  two cells wide, which keeps patterns as fine as the cells from aliasing to coarse ones, then filtered on that small
  grid and enlarged by a quadratic B-spline. The grid starts at the mask's pixel (0, 0), wherever a tile starts.
  Where sigma differs by axis, so do d and the taps; along an axis of d = 1 nothing is averaged or enlarged.
  The variance that the triangle (about 1/6 cell) and the spline (1/4 cell) add is taken off the filter's own. Cells of
  64 px and more (sigma 256) average exact sums over boxes of 4 x 4 px, which keeps their cost down.
- What remains per pixel (the spline's polynomial, the final scaling) is elementwise float32, in one fixed order.

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

SNAP = np.float32(2.0**-12)
ONE_MINUS_SNAP = np.float32(1 - 2.0**-12)
_BELOW_SNAP = np.nextafter(SNAP, np.float32(0))
TAP_SUM = 1 << 13
KSIZE_TAP_SUM = 1 << 18
CELL_FULL = 2048
ROW_FULL = 65535
CELLS_PER_SIGMA = 4
SMALLEST_AVERAGED = 4.0
BOX = 4
COARSE_CELL = 64
FEW_ROWS = 8
STRIP_ROWS = 512
SPARSE = 61
BLOCK_CELLS = 256
ROUNDING = 1 / CELL_FULL
EXACT_FLOAT32 = 1 << 24
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
    ((4, 4), (73, 73), (0, 73))
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
        """(y, x) sides in pixels of the cells that the mask is averaged over (1: none)."""
        if self.ksize is not None:
            return 1, 1
        y, x = self.sigmas
        return _cell_side(y), _cell_side(x)

    @property
    def strip_px(self) -> tuple[int, int]:
        """(y, x) of the mask pixels that are averaged into cells at once."""
        y, x = (_cells_per_block(d) * d + 2 * (d // 2) for d in self.cell_px)
        return y, x

    @property
    def halo_px(self) -> tuple[int, int]:
        """(y, x) pixels around a region that its feather can depend on."""
        if self.is_direct:
            return self._reaches
        y, x = (
            reach if d == 1 else (reach + 2) * d - 1 + d // 2
            for reach, d in zip(self._reaches, self.cell_px, strict=True)
        )
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


def _cell_side(sigma: float) -> int:
    """Pixels; from COARSE_CELL on a multiple of two boxes, so that cells and their centres lie on whole boxes."""
    d = max(2 if sigma >= SMALLEST_AVERAGED else 1, int(sigma / CELLS_PER_SIGMA))
    return d - d % (2 * BOX) if d >= COARSE_CELL else d


@lru_cache(maxsize=64)
def _taps(sigma: float, ksize: int | None) -> Taps:
    total = TAP_SUM if ksize is None else KSIZE_TAP_SUM
    if ksize is not None and ksize in _OPENCV_SMALL_TAPS:
        small = np.array(_OPENCV_SMALL_TAPS[ksize], np.float64)
        return small * (total / small.sum())
    if ksize is not None:
        sigma, radius = 0.3 * ((ksize - 1) * 0.5 - 1) + 0.8, ksize // 2
    elif (d := _cell_side(sigma)) > 1:
        radius = int(4 * sigma / d + 0.5)
        sigma = math.sqrt((sigma / d) ** 2 - _averaging_variance(d) / d**2 - 1 / 4)
    else:
        radius = int(4 * sigma + 0.5)
    if sigma == 0 or radius == 0:
        return np.array([total], np.float64)
    half = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)])
    tail = half[:0:-1] / (half[0] + 2 * half[1:].sum()) * total
    # The running sum is rounded, not each tap: a step edge is then off by half a unit at most.
    rounded = np.diff(np.rint(np.cumsum(tail)), prepend=0.0)
    return np.concatenate([rounded, [total - 2 * rounded.sum()], rounded[::-1]])


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
    rows = max(1, SNAP_STRIP // weight.shape[1])
    for y in range(0, weight.shape[0], rows):
        _snap_strip(weight[y : y + rows])
    return weight


def _snap_strip(weight: NDArray[np.float32]) -> None:
    """Whole passes of OpenCV over a strip in the cache: their speed does not depend on how much is snapped."""
    cv2.threshold(weight, float(_BELOW_SNAP), 0, cv2.THRESH_TOZERO, dst=weight)
    ones = cv2.threshold(weight, float(ONE_MINUS_SNAP), 1, cv2.THRESH_BINARY)[1]
    np.maximum(weight, ones, out=weight)
    np.minimum(weight, np.float32(1), out=weight)


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
    for sigma >= 4 only the averaged cells are kept, and what `known` answers is not read.
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
            self._origin, self._cells = _filtered_cells(kernel, region, _Mask(shape, read, known))

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
            cells = self._cells_of(region)
            low, high = float(cells.min()), float(cells.max())
        # A pixel's float32 rounding may cross the snap; the margin keeps such chunks on the per-pixel path.
        low = 1.0 if low > 1 - 2.0**-12 + 1e-6 else low
        return max(low, 0.0), (0.0 if high < 2.0**-12 - 1e-6 else min(high, 1.0))

    def weight(self, region: Region) -> NDArray[np.float32]:
        """float32 weights in [0, 1] of `region` (inside the prepared one), snapped."""
        if self.kernel.is_identity:
            return units_to_weight(self._reach_of(region))
        if self.kernel.is_direct:
            return _filter_direct(self._reach_of(region), self.kernel)
        cells = self._cells_of(region)
        return snap(_enlarge(cells, self.kernel.cell_px, region))

    def _reach_of(self, region: Region) -> Units:
        grown = region.grow(*self.kernel.halo_px).shift(-self._reach.y0, -self._reach.x0)
        part: Units = self._units[grown.slices]
        return part

    def _cells_of(self, region: Region) -> NDArray[np.float32]:
        needed = _spline_cells(region, self.kernel.cell_px).shift(-self._origin[0], -self._origin[1])
        part: NDArray[np.float32] = self._cells[needed.slices]
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
    if full > CELL_FULL:
        units, full = _to_cell_scale(units.astype(np.float32), full), CELL_FULL
    return snap(_filter_exact(units, full, kernel.taps()))


def _filter_ksize(units: Units, taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """OpenCV's small kernels to its own precision: sums of 16-bit values and 18-bit taps are exact in float64."""
    y, x = taps
    radius = len(y) // 2
    sums = cv2.sepFilter2D(units.astype(np.float64), cv2.CV_64F, x, y, borderType=cv2.BORDER_CONSTANT)
    sums = sums[radius : sums.shape[0] - radius, radius : sums.shape[1] - radius]
    scale = 1.0 / (float(np.iinfo(units.dtype).max) * KSIZE_TAP_SUM * KSIZE_TAP_SUM)
    return snap((sums * scale).astype(np.float32))


_ONE = np.ones(1, np.float32)


def _filter_exact(values: NDArray[Any], full: int, taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """Both axes of a filter, taps (y, x) of sum TAP_SUM, over integers (uint8 or float32) up to `full` <= CELL_FULL.

    Returns the part without the halo, as float32 of full scale 1. No sum exceeds full * TAP_SUM <= 2**24: exact.
    """
    y, x = (axis.astype(np.float32) for axis in taps)
    over_y, over_x = len(y) // 2, len(x) // 2
    border = cv2.BORDER_CONSTANT
    rows: NDArray[Any] = cv2.sepFilter2D(values, cv2.CV_32F, x, _ONE, borderType=border)
    rows = np.multiply(rows[:, over_x : rows.shape[1] - over_x], np.float32(CELL_FULL / (full * TAP_SUM)))
    np.rint(rows, out=rows)
    sums: NDArray[Any] = cv2.sepFilter2D(rows, cv2.CV_32F, _ONE, y, borderType=border)
    sums = sums[over_y : rows.shape[0] - over_y]
    # A power of two: exact.
    sums *= np.float32(1 / (CELL_FULL * TAP_SUM))
    return sums


def _to_cell_scale(sums: NDArray[Any], full: float) -> NDArray[np.float32]:
    """Sums of full scale `full` as whole numbers of full scale CELL_FULL; in the array's own precision."""
    scaled = sums * sums.dtype.type(CELL_FULL / full)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.float32, copy=False)


def _spline_cells(region: Region, cell: tuple[int, int]) -> Region:
    """The cells that the spline needs for a region of pixels: its own, and one around where a cell is not a pixel."""
    y, x = cell
    own = Region(region.y0 // y, region.x0 // x, (region.y1 - 1) // y + 1, (region.x1 - 1) // x + 1)
    return own.grow(int(y > 1), int(x > 1))


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask of `shape`, and how its units are had."""

    shape: tuple[int, int]
    read: ReadUnits
    known: KnowUnits

    def full_or_empty(self, region: Region) -> int | None:
        """CELL_FULL or 0 where that is known of all pixels of a region, mirrored ones included."""
        units = self.known(mirrored(region, self.shape))
        if units is None or units.dtype == np.float32:
            return None
        return {0: 0, int(np.iinfo(units.dtype).max): CELL_FULL}.get(int(units[0, 0]))


def _filtered_cells(kernel: FeatherKernel, region: Region, mask: _Mask) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """((y, x) index of the first cell, filtered cells as float32 of full scale 1) for a region of pixels."""
    (y, x), taps = kernel.cell_px, kernel.taps()
    kept = _spline_cells(region, (y, x))
    needed = kept.grow(*(len(axis) // 2 for axis in taps))
    value = mask.full_or_empty(_pixels_of_cells(needed, (y, x)))
    if value is not None:
        return (kept.y0, kept.x0), np.full(kept.shape, value / CELL_FULL, np.float32)
    cells = np.empty(needed.shape, np.float32)
    rows_per_strip = _cells_per_block(y)
    for first in range(needed.y0, needed.y1, rows_per_strip):
        strip = Region(first, needed.x0, min(first + rows_per_strip, needed.y1), needed.x1)
        _average_strip(mask, strip, (y, x), cells[strip.shift(-needed.y0, -needed.x0).slices])
    return (kept.y0, kept.x0), _filter_blocks(cells, taps)


def _average_strip(mask: _Mask, strip: Region, cell: tuple[int, int], out: NDArray[np.float32]) -> None:
    """The cells of a strip, block by block: many are 0 or full, and of those much is known without reading."""
    unknown: list[Region] = []
    step = _cells_per_block(cell[1])
    for x in range(strip.x0, strip.x1, step):
        block = Region(strip.y0, x, strip.y1, min(x + step, strip.x1))
        value = mask.full_or_empty(_pixels_of_cells(block, cell))
        if value is None:
            unknown.append(block)
        else:
            out[:, block.x0 - strip.x0 : block.x1 - strip.x0] = value
    for run in _neighbours(unknown):
        here = Region(strip.y0, run[0].x0, strip.y1, run[-1].x1)
        pixels = _pixels_of_cells(here, cell)
        units = read_mirrored(mask.read, pixels, mask.shape)
        for block in run:
            part = _pixels_of_cells(block, cell).shift(-pixels.y0, -pixels.x0)
            out[:, block.x0 - strip.x0 : block.x1 - strip.x0] = average_cells(units[part.slices], cell)


def _pixels_of_cells(cells: Region, cell: tuple[int, int]) -> Region:
    """The pixels that the averages over cells of (y, x) pixels depend on."""
    y, x = cell
    return Region(cells.y0 * y, cells.x0 * x, cells.y1 * y, cells.x1 * x).grow(y // 2, x // 2)


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


def _cells_per_block(d: int) -> int:
    """Cells that are averaged together: about STRIP_ROWS pixels, twice that where cells are large: neighbours share the
    pixels around them."""
    return max(1, STRIP_ROWS // d, min(8, 2 * STRIP_ROWS // d))


def _filter_blocks(cells: NDArray[np.float32], taps: tuple[Taps, Taps]) -> NDArray[np.float32]:
    """`_filter_exact` block by block, where a block that is 0 or full with its halo stays as it is: the same bits."""
    over_y, over_x = (len(axis) - 1 for axis in taps)
    out = np.empty((cells.shape[0] - over_y, cells.shape[1] - over_x), np.float32)
    for y in range(0, out.shape[0], BLOCK_CELLS):
        for x in range(0, out.shape[1], BLOCK_CELLS):
            part = cells[y : y + BLOCK_CELLS + over_y, x : x + BLOCK_CELLS + over_x]
            low, high = float(part.min()), float(part.max())
            filled = low == high and low in (0, CELL_FULL)
            out[y : y + BLOCK_CELLS, x : x + BLOCK_CELLS] = (
                low / CELL_FULL if filled else _filter_exact(part, CELL_FULL, taps)
            )
    return out


@lru_cache(maxsize=64)
def _averaging_taps(d: int) -> tuple[int, ...]:
    """Integer weights of the pixels around a cell's centre: a triangle two cells wide.

    It is the box of d pixels convolved with itself, and for even d with (1, 1), so that it is centred on the cell: its
    spectrum has double zeros where patterns as fine as the cells would alias to coarse ones.
    """
    box = np.ones(d, np.int64)
    taps = np.convolve(box, box)
    return tuple(int(t) for t in (np.convolve(taps, [1, 1]) if d % 2 == 0 else taps))


def _variance(taps: tuple[int, ...]) -> float:
    """Of a symmetric filter, in pixels squared."""
    centre = (len(taps) - 1) / 2
    return sum(t * (i - centre) ** 2 for i, t in enumerate(taps)) / sum(taps)


def _averaging_variance(d: int) -> float:
    """What averaging into cells of d pixels adds, in pixels squared: a triangle, over boxes where cells are large."""
    if d < COARSE_CELL:
        return _variance(_averaging_taps(d))
    return _variance(_averaging_taps(d // BOX)) * BOX**2 + (BOX**2 - 1) / 12


def average_cells(units: Units, cell: tuple[int, int]) -> NDArray[np.float32]:
    """Means over cells by a triangle two cells wide, as integers of full scale CELL_FULL in float32.

    cell: (y, x) sides in pixels. units: whole cells and half a cell, rounded down, more on every side.

    >>> average_cells(np.full((8, 8), 255, np.uint8), (4, 4)).tolist()
    [[2048.0]]
    """
    height, width = ((n - 2 * (d // 2)) // d for n, d in zip(units.shape, cell, strict=True))
    full = int(np.iinfo(units.dtype).max)
    if (value := int(units[0, 0])) in (0, full) and _is_all(units, value):
        return np.full((height, width), CELL_FULL if value else 0, np.float32)
    y, x = (BOX if d >= COARSE_CELL else 1 for d in cell)
    values = units if (y, x) == (1, 1) else _box_sums(units, y, x)
    return _triangle_cells(values, full * y * x, (cell[0] // y, cell[1] // x), (height, width))


def _is_all(units: Units, value: int) -> bool:
    """True when every unit is `value`; a few are looked at first."""
    few = units[::SPARSE, ::SPARSE]
    return bool((few == value).all()) and int(units.min()) == int(units.max())


def _box_sums(units: Units, y: int, x: int) -> NDArray[Any]:
    """Sums over y x x pixels, exact: what a wide triangle needs of its pixels."""
    total = np.uint16 if units.dtype == np.uint8 else np.uint32
    rows = np.add.reduce(units.reshape(-1, y, units.shape[1]), axis=1, dtype=total)
    if units.dtype == np.uint8 and x == BOX:
        # Four sums of 16 bits side by side are one number, and times this their total is its highest 16 bits.
        four: NDArray[Any] = rows.view(np.uint64) * np.uint64(0x0001_0001_0001_0001) >> np.uint64(48)
        return four
    columns = np.ascontiguousarray(rows.T)
    out: NDArray[Any] = np.add.reduce(columns.reshape(-1, x, rows.shape[0]), axis=1, dtype=total).T
    return out


def _triangle_cells(
    values: NDArray[Any], full: int, cell: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Cells of (y, x) values, integers up to `full`, by a triangle two cells wide; of full scale CELL_FULL."""
    y, x = _averaging_taps(cell[0]), _averaging_taps(cell[1])
    rows = _weighted_rows(values, y, cell[0], shape[0], full)
    # Rounded to 16 bits between the axes, so that the sums of the second are exact too.
    rows = np.rint(rows * rows.dtype.type(ROW_FULL / (full * sum(y))))
    sums = _weighted_rows(_turned(rows), x, cell[1], shape[1], ROW_FULL)
    return _to_cell_scale(_turned(sums), ROW_FULL * sum(x))


def _weighted_rows(values: NDArray[Any], taps: tuple[int, ...], d: int, count: int, full: int) -> NDArray[Any]:
    """Sums of integers, `taps` rows each, every d rows: exact, whatever the order."""
    dtype = np.float32 if full * sum(taps) <= EXACT_FLOAT32 else np.float64
    if count <= FEW_ROWS:
        # Not `@`: it would start threads of its own beside the tiles'.
        sums: NDArray[Any] = np.einsum("ij,jk->ik", _placed_taps(taps, d, count, dtype), values.astype(dtype))
        return sums
    total: NDArray[Any] = np.zeros((count, values.shape[1]), dtype)
    for offset, tap in enumerate(taps):
        rows: NDArray[Any] = values[offset : offset + (count - 1) * d + 1 : d].astype(dtype)
        cv2.scaleAdd(rows, tap, total, dst=total)
    return total


@lru_cache(maxsize=64)
def _placed_taps(taps: tuple[int, ...], d: int, count: int, dtype: Any) -> NDArray[Any]:
    """(count, rows): the taps of each sum at the rows it takes."""
    placed = np.zeros((count, (count - 1) * d + len(taps)), dtype)
    for i in range(count):
        placed[i, i * d : i * d + len(taps)] = taps
    return placed


def _enlarge(cells: NDArray[np.float32], cell: tuple[int, int], region: Region) -> NDArray[np.float32]:
    """Cells, those of `_spline_cells`, to the region's pixels; elementwise, in one order."""
    columns = _enlarge_rows(_turned(cells), cell[1], region.x0, region.x1)
    return _enlarge_rows(_turned(columns), cell[0], region.y0, region.y1)


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    """Rows as columns, in C order."""
    turned: NDArray[Any] = cv2.transpose(values)
    return turned


def _enlarge_rows(cells: NDArray[np.float32], d: int, start: int, stop: int) -> NDArray[np.float32]:
    """Rows start..stop-1 of the quadratic B-spline through rows of cells, the first of which is start // d - 1.

    At -t and t from the middle cell's centre (t up to 1/2 cell) it is the even part, minus and plus the odd part
    (Unser 1999, eq. 7, for the degree 2). All rows that lie at -t and at t are made together. Cells of one pixel are
    the rows already, without one before.
    """
    if d == 1:
        return cells
    at, both, across = cells[1:-1], cells[:-2] + cells[2:], cells[2:] - cells[:-2]
    result = np.empty((stop - start, cells.shape[1]), np.float32)
    for phase in range((d + 1) // 2):
        t = (d - 1 - 2 * phase) / (2 * d)
        (rows, own), (mirror_rows, mirror) = (_at_phase(result, start, d, p) for p in (phase, d - 1 - phase))
        used = slice(min(own.start, mirror.start), max(own.stop, mirror.stop))
        even, odd = both[used] * np.float32(t * t / 2 + 1 / 8), across[used] * np.float32(t / 2)
        even += at[used] * np.float32(3 / 4 - t * t)
        np.subtract(even[_within(own, used)], odd[_within(own, used)], out=rows)
        np.add(even[_within(mirror, used)], odd[_within(mirror, used)], out=mirror_rows)
    return result


def _at_phase(rows: NDArray[np.float32], start: int, d: int, phase: int) -> tuple[NDArray[np.float32], slice]:
    """(the rows, from row `start` of the mask on, that are the phase-th of their cells; which cells these are)."""
    first = (phase - start) % d
    chosen = rows[first::d]
    cell = (start + first) // d - start // d
    return chosen, slice(cell, cell + len(chosen))


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


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
