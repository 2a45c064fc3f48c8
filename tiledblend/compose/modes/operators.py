"""Mode over with operators: a layer's colours first meet those below it, as W3C Compositing and Blending says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid, blended, classified, full_of
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Blended
from tiledblend.kernels.operators import Operator, operating


@dataclass(frozen=True, slots=True)
class Operating:
    """out = w B(below, I) + (1 - w) below; a layer of full weight hides what is below it only where it is normal.

    operators: one a layer, bottom first.
    """

    operators: tuple[Operator, ...]
    halo_px: int = 0

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """The layers with weight, from the topmost that covers everything up."""
        needed: list[int] = []
        for index in range(len(fields) - 1, -1, -1):
            low, high = fields[index].bounds(region)
            if high == 0:
                continue
            needed.insert(0, index)
            if low == 1 and self.operators[index] == "normal":
                break
        if len(needed) == 1 and self.operators[needed[0]] != "normal":
            return ChunkClass(tuple(needed), False)
        return classified(needed, fields, region, ground)

    def combine(self, laid: Laid) -> Blended:
        """As `BlendMode.combine`."""
        operators = [self.operators[index] for index in laid.layers]
        if laid.ground.has_alpha and 0 not in laid.layers:
            operators.insert(0, "normal")  # of the empty bottom that `blended` puts there
        return blended(laid, operating(operators, full_of(laid.ground.dtype)))

    def of_layer(self, index: int) -> str:
        """Its operator."""
        return self.operators[index]
