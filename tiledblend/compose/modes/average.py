"""Mode average: the mean of the layers, each by its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid, blended, classified
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.average import AVERAGE
from tiledblend.kernels.blend import Blended


@dataclass(frozen=True, slots=True)
class Average:
    """sum(w I) / sum(w): every layer with weight counts."""

    halo_px: int = 0

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """The layers with weight."""
        needed = [index for index, field in enumerate(fields) if field.bounds(region)[1] != 0]
        return classified(needed, fields, region, ground)

    def combine(self, laid: Laid) -> Blended:
        """As `BlendMode.combine`."""
        return blended(laid, AVERAGE)

    def of_layer(self, index: int) -> str:
        """Nothing."""
        return ""
