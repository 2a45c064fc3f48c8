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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.averaging import MaskUnits, filtered_cells
from tiledblend.kernels.cells import ENLARGED_FULL, PIXEL, enlarge, enlarged_from
from tiledblend.kernels.filtering import filter_pixels
from tiledblend.kernels.gaussian import CELL_FULL, FeatherKernel
from tiledblend.kernels.mirror import KnowUnits, ReadUnits, Units, read_mirrored
from tiledblend.kernels.snap import snap_into, units_to_weight

ROUNDING = 1 / CELL_FULL


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
            self._kept, self._cells = filtered_cells(kernel, region, MaskUnits(shape, read, known))

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
            return filter_pixels(self._reach_of(region), self.kernel)
        weight = np.empty(region.shape, np.float32)
        snap_into(enlarge(self._cells, self._kept, self.kernel.kept_px, PIXEL, region), weight)
        return weight

    def deciding(self) -> tuple[str, NDArray[Any]]:
        """(how, values) that alone decide `weight`: where both are equal, so are all weights of the region."""
        if self.kernel.is_direct:
            return repr((self.region, self.kernel)), self._units
        return repr((self.region, self._kept, self.kernel.kept_px)), self._cells

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
