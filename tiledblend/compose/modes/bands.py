"""Mode over with multi-band layers: what a layer changes is blended band by band (Burt & Adelson 1983)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid, full_of
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.bands import Bands, Patch, blend_bands
from tiledblend.kernels.blend import Blended, Contribution, count_background, to_dtype
from tiledblend.kernels.operators import Operator, operated
from tiledblend.kernels.over import laid_over

Colours = NDArray[Any]
"""float32, or the canvas's dtype where they are an image's own."""


@dataclass(frozen=True, slots=True)
class BandedLayer:
    """A layer as it is laid. bands: of its edge. operator: how its colours meet those below. frame: its pixels' grid on
    the canvas. domain: the part of it on the canvas; its levels are mirrored there."""

    bands: Bands
    operator: Operator
    frame: Region
    domain: Region

    @property
    def hides(self) -> bool:
        """True where full weight hides what is below."""
        return self.operator == "normal"


@dataclass(frozen=True, slots=True)
class Banded:
    """out = below + sum of expand(w_k L_k(layer - below)); a layer of one band is laid over as ever.

    A multi-band layer needs what lies below it for its reach, and so do those below it in turn. Canvases are opaque.
    canvas: all of it.
    """

    layers: tuple[BandedLayer, ...]
    canvas: Region

    @property
    def halo_px(self) -> int:
        """The reaches of all layers together."""
        return sum(layer.bands.reach_px for layer in self.layers)

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """The layers with weight within reach, from the topmost that covers everything up to there."""
        needed: list[int] = []
        covers = False
        for index in range(len(fields) - 1, -1, -1):
            layer, field = self.layers[index], fields[index]
            within = region.grow(layer.bands.reach_px) & layer.domain
            low, high = (0.0, 0.0) if within.is_empty else field.bounds(within)
            if high == 0:
                continue
            needed.insert(0, index)
            covers = low == 1 and layer.hides and layer.domain.contains(region)
            if covers:
                break
            region = region.grow(layer.bands.reach_px) & self.canvas
        return ChunkClass(tuple(needed), covers and len(needed) == 1)

    def of_layer(self, index: int) -> str:
        """Its bands, operator and place."""
        return repr(self.layers[index])

    def combine(self, laid: Laid) -> Blended:
        """As `BlendMode.combine`."""
        ground = laid.ground
        # Float images may hold NaN and infinities: they come through or spread as IEEE 754 says, without a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            layers = dict(laid.layers)
            total = self._summed(laid, layers)
        at = _within(laid.region, laid.reach)
        own = [_cropped(brought, at) for brought in layers.values()]
        return Blended(to_dtype(total, ground.dtype), count_background(own))

    def _summed(self, laid: Laid, layers: Mapping[int, Contribution]) -> Colours:
        """Colours of the region, unrounded: layer by layer, each on as much as those above it need."""
        wanted = [laid.region]
        for index in reversed(list(layers)):
            wanted.insert(0, wanted[0].grow(self.layers[index].bands.reach_px) & laid.reach)
        total: Colours = np.broadcast_to(laid.ground.background, (*wanted[0].shape, laid.ground.channels))
        for (number, whole), known, to in zip(layers.items(), wanted, wanted[1:], strict=False):
            own = _cropped(whole, _within(known, laid.reach))
            total = _laid_by(self.layers[number], own, total, known, to, laid.ground)
        return total


def _laid_by(
    layer: BandedLayer, own: Contribution, below: Colours, known: Region, to: Region, ground: Ground
) -> Colours:
    """One layer over what lies below it: both known in a region, `to` the part that is wanted."""
    if layer.bands.count == 1 and layer.hides and own.weight is None:
        return own.colour  # whole numbers stay what they are: differences of these cost less
    colour = own.colour if layer.hides else operated(layer.operator, below, own.colour, full_of(ground.dtype))
    weight = np.ones(known.shape, np.float32) if own.weight is None else own.weight
    if layer.bands.count == 1:
        wide = np.broadcast_to(weight[:, :, None], colour.shape)
        return laid_over(below, colour, wide, select=ground.dtype.kind == "f")
    out = np.array(below[_within(to, known)], np.float32, order="C")
    part = to & layer.domain
    if part.is_empty:
        return out
    inside = known & layer.domain
    at, y, x = _within(inside, known), layer.frame.y0, layer.frame.x0
    patch = Patch(colour[at], below[at], weight[at], inside.shift(-y, -x), layer.domain.shift(-y, -x))
    out[_within(part, to)] = blend_bands(layer.bands, patch, part.shift(-y, -x), whole_levels=ground.dtype == np.uint8)
    return out


def _within(region: Region, where: Region) -> tuple[slice, slice]:
    return region.shift(-where.y0, -where.x0).slices


def _cropped(own: Contribution, at: tuple[slice, slice]) -> Contribution:
    colour, weight = own.colour[at], None if own.weight is None else own.weight[at]
    return Contribution(colour, weight)
