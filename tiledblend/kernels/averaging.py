"""A mask averaged into cells strip by strip, filtered there, and enlarged to the cells that a feather keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.cells import (
    ENLARGED_FULL,
    UNIT_FULL,
    Side,
    average,
    averaged_over,
    columns_of,
    enlarge,
    enlarged_from,
    rows_of,
)
from tiledblend.kernels.filtering import filtered_blocks, to_cell_scale
from tiledblend.kernels.gaussian import CELL_FULL, FeatherKernel, cells_per_strip
from tiledblend.kernels.mirror import KnowUnits, ReadUnits, Units, mirrored, read_mirrored


@dataclass(frozen=True, slots=True)
class MaskUnits:
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


def filtered_cells(kernel: FeatherKernel, region: Region, mask: MaskUnits) -> tuple[Region, NDArray[np.uint16]]:
    """(the cells of side `kept_px` that a region of pixels is enlarged from; they, filtered, of ENLARGED_FULL)."""
    side, kept_px, taps = kernel.cell_px, kernel.kept_px, kernel.taps()
    kept = enlarged_from(region, kept_px)
    coarse = enlarged_from(kept, side, kept_px)
    needed = coarse.grow(*(len(axis) // 2 for axis in taps))
    value = mask.full_or_empty(averaged_over(needed, side))
    if value is not None:
        return kept, np.full(kept.shape, ENLARGED_FULL if value else 0, np.uint16)
    values = to_cell_scale(_averaged(kernel, needed, mask), UNIT_FULL)
    cells = np.empty(coarse.shape, np.uint16)
    for where, part in filtered_blocks(values, CELL_FULL, taps):
        cells[where.slices] = np.rint(part * np.float32(ENLARGED_FULL))
    return kept, enlarge(cells, coarse, side, kept_px, kept)


def _averaged(kernel: FeatherKernel, cells: Region, mask: MaskUnits) -> NDArray[np.uint16]:
    """Averages over cells of side `cell_px`, of UNIT_FULL: over smaller cells strip by strip, then over these."""
    side = kernel.strip_cell_px
    needed = averaged_over(cells, kernel.cell_px, side)
    small = np.empty(needed.shape, np.uint16)
    for strip in rows_of(needed, cells_per_strip(side[0])):
        _average_strip(mask, strip, side, small[strip.shift(-needed.y0, -needed.x0).slices])
    return average(small, kernel.cell_px, side)


def _average_strip(mask: MaskUnits, strip: Region, side: Side, out: NDArray[np.uint16]) -> None:
    """The cells of a strip, block by block: many are 0 or full, and of those much is known without reading."""
    unknown: list[Region] = []
    for block in columns_of(strip, cells_per_strip(side[1])):
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
