"""CPU time of the feather per mixed pixel, by sigma: `python benchmarks/feather_cost.py`. One thread, reading left out.

Every block of the mask is mixed; preparing (averaging, filtering) and the weights of a 4096 px square are timed.
"""

from __future__ import annotations

import time

import numpy as np

from tiledblend.geometry import Region
from tiledblend.guard.process import prepare_process
from tiledblend.kernels.feather import FeatheredMask
from tiledblend.kernels.gaussian import FeatherKernel

SIDE, SIZE, BLOCK = 4096, 12288, 256


def seconds(mask: np.ndarray, sigma: float) -> float:
    """Best of three, CPU seconds for one square in the middle."""
    start = (SIZE - SIDE) // 2
    region = Region(start, start, start + SIDE, start + SIDE)
    times = []
    for _ in range(3):
        begun = time.process_time()  # threads that a library starts count too
        field = FeatheredMask(FeatherKernel(sigma), region, mask.shape, lambda part: mask[part.slices])
        for y in range(region.y0, region.y1, BLOCK):
            field.weight(Region(y, region.x0, y + BLOCK, region.x1))
        times.append(time.process_time() - begun)
    return min(times)


def main() -> None:
    """Print one line per sigma."""
    prepare_process()
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = (((y // 96 + x // 96) % 2) * 255).astype(np.uint8)
    first = None
    for sigma in (2, 2.5, 3, 3.2, 4, 5.9, 6.9, 8, 12, 16, 24, 32, 64, 110, 128, 256, 512):
        spent = seconds(mask, sigma)
        first = first or spent
        print(f"sigma {sigma:5g}: {SIDE * SIDE / spent / 1e6:5.0f} Mpx/s, {spent / first:4.2f} x sigma 2")


if __name__ == "__main__":
    main()
