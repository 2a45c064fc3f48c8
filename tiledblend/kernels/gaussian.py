"""The feather's Gaussian on the pixel grid: its taps in whole numbers, the cells that it is filtered on, its reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError
from tiledblend.kernels.cells import PIXEL, Side, capped, response, variance

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
FREQUENCIES = 256

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
        y, x = (cells_per_strip(d) * d + 3 * (d - 1) for d in self.strip_cell_px)
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


def cells_per_strip(d: int) -> int:
    """Cells that are averaged together: STRIP_ROWS pixels, more where most would be shared with neighbours."""
    return max(STRIP_CELL, STRIP_ROWS // d)
