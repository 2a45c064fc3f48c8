"""Mode over: layers from the bottom to the top, each laid over what is below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid, blended, classified
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Blended
from tiledblend.kernels.over import OVER


@dataclass(frozen=True, slots=True)
class Over:
    """out = w I + (1 - w) out; a layer of full weight hides what is below it."""

    halo_px: int = 0

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """The layers with weight, from the topmost that covers everything up."""
        needed: list[int] = []
        for index in range(len(fields) - 1, -1, -1):
            low, high = fields[index].bounds(region)
            if high == 0:
                continue
            needed.insert(0, index)
            if low == 1:
                break
        return classified(needed, fields, region, ground)

    def combine(self, laid: Laid) -> Blended:
        """As `BlendMode.combine`."""
        return blended(laid, OVER)

    def of_layer(self, index: int) -> str:
        """Nothing."""
        return ""
