"""An in-memory source with levels, which counts what is read of each."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.halve import halve_tile
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec


class Pyramid(RasterSource):
    """levels: arrays (y, x, c), finest first. reads: pixels read so far, by level."""

    def __init__(
        self,
        levels: list[NDArray[Any]],
        *,
        name: str = "pyramid",
        pixel_size_um: tuple[float, float] | None = None,
        alpha: Alpha = Alpha.NONE,
    ) -> None:
        self.arrays = levels
        self.spec = SourceSpec(name)
        self.dtype = levels[0].dtype
        self.channels = levels[0].shape[2]
        self.alpha = alpha
        self.is_rgb = self.channels - (alpha is not Alpha.NONE) == 3
        self.levels = tuple(Level((a.shape[0], a.shape[1]), (64, 64)) for a in levels)
        self.pixel_size_um = pixel_size_um
        self.info = SourceInfo("test", "yxc")
        self.reads: dict[int, int] = {}

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        self.reads[level] = self.reads.get(level, 0) + region.size
        return self.arrays[level][region.slices]

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": self.spec.path, "size": None, "modified": None, "structure": "test"}


def halved_levels(pixels: NDArray[Any], count: int, has_alpha: bool = False) -> list[NDArray[Any]]:
    """A pyramid of 2 x 2 means."""
    levels = [pixels]
    while len(levels) < count:
        levels.append(halve_tile(levels[-1], has_alpha=has_alpha))
    return levels
