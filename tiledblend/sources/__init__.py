"""Sources of pixels: files, stores and arrays behind one interface (see `base.RasterSource`)."""

from tiledblend.sources.arrays import from_array
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec
from tiledblend.sources.opening import open_source

__all__ = ["Alpha", "Level", "RasterSource", "SourceInfo", "SourceSpec", "from_array", "open_source"]
