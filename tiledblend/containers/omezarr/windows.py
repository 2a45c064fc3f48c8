"""Display windows of a result: those that its base states, else of what its coarsest level holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.stored import read_region
from tiledblend.geometry import Region
from tiledblend.kernels.contrast import display_range

Window = tuple[float, float]
MOST_CHUNKS = 16
"""Of a result whose coarsest level is a large one, so many are looked at, evenly spread."""


def channel_windows(stated: Sequence[Window | None], channels: int, *, has_alpha: bool) -> tuple[Window | None, ...]:
    """The windows that a base states, one per channel of the result; empty where they are not of these channels."""
    if len(stated) == channels - 1 and has_alpha:
        return (*stated, None)
    return tuple(stated) if len(stated) == channels else ()


def windows_of(layout: ArrayLayout, store: ObjectStore, stated: Sequence[Window | None]) -> tuple[Window, ...]:
    """(low, high) of each channel: as stated; the dtype's range for uint8 and alpha; else by the stored pixels.

    uint16 and float32 seldom use the range of their dtype, which would show black. Channels of one RGB picture have one
    window. Raises as `read_region`.
    """
    given = [*stated] or [None] * layout.channels
    if layout.dtype == "uint8" or None not in given:
        return tuple(window or dtype_window(layout.dtype) for window in given)
    found = _of_data(layout, store)
    return tuple(window or of_data for window, of_data in zip(given, found, strict=True))


def dtype_window(dtype: str) -> Window:
    """The range of a dtype; 0 to 1 for floats."""
    return (0.0, 1.0) if dtype == "float32" else (0, int(np.iinfo(dtype).max))


def _of_data(layout: ArrayLayout, store: ObjectStore) -> list[Window]:
    level = layout.grid.levels - 1
    regions = _sample(layout.grid.level_shape(level), layout.grid.chunk)
    blocks = [read_region(layout, store, level, region).reshape(-1, layout.channels) for region in regions]
    pixels = np.concatenate(blocks)
    if layout.is_rgb:
        colours = display_range(pixels[:, :3])
        return [colours if channel < 3 else dtype_window(layout.dtype) for channel in range(layout.channels)]
    return [_plain(display_range(pixels[:, channel]), layout.dtype) for channel in range(layout.channels)]


def _plain(window: Window, dtype: str) -> Window:
    """Whole numbers for integers."""
    return window if dtype == "float32" else (int(np.floor(window[0])), int(np.ceil(window[1])))


def _sample(shape: tuple[int, int], chunk: int) -> list[Region]:
    whole = Region.of_shape(shape)
    regions = [
        Region(y, x, y + chunk, x + chunk) & whole for y in range(0, shape[0], chunk) for x in range(0, shape[1], chunk)
    ]
    picked = np.unique(np.linspace(0, len(regions) - 1, min(len(regions), MOST_CHUNKS)).round().astype(int))
    return [regions[number] for number in picked]
