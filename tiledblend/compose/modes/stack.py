"""Mode stack: the channels of all layers one after another, each layer alone over the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Blended, blend_tile, to_dtype
from tiledblend.kernels.over import OVER


@dataclass(frozen=True, slots=True)
class Stacked:
    """out[c] = w I + (1 - w) background[c] in the channels of each layer. colours: how many each has, bottom first.

    Layers are read one after another: a stack of many holds the pixels of one besides the result's.
    """

    colours: tuple[int, ...]
    halo_px: int = 0

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """The layers with weight."""
        return ChunkClass(tuple(i for i, field in enumerate(fields) if field.bounds(region)[1] != 0), False)

    def of_layer(self, index: int) -> str:
        """Which channels are its own."""
        return f"{sum(self.colours[:index])}+{self.colours[index]}"

    def combine(self, laid: Laid) -> Blended:
        """As `BlendMode.combine`."""
        ground, shape = laid.ground, laid.region.shape
        planes = np.empty((ground.channels, *shape), ground.dtype)
        planes[...] = to_dtype(ground.background, ground.dtype)[:, None, None]
        pixels = np.moveaxis(planes, 0, 2)
        nothing = np.ones(shape, np.bool_)
        for index in laid.layers:
            own = laid.layers[index]
            start = sum(self.colours[:index])
            channels = slice(start, start + self.colours[index])
            pixels[:, :, channels] = blend_tile([own], ground.background[channels], ground.dtype, OVER).pixels
            nothing &= False if own.weight is None else own.weight == 0
        return Blended(pixels, int(np.count_nonzero(nothing)))
