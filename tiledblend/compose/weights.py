"""The weight of a layer over a region: opacity x alpha x feather(mask) x border, and what it brings to a blend."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.placed import Kept
from tiledblend.compose.reader import LayerReader
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Contribution
from tiledblend.kernels.feather import FeatheredMask
from tiledblend.kernels.snap import inside_only


class LayerField:
    """A layer's weight over one region of the canvas, prepared once: its feathered mask, border, opacity.

    kept: takes what is read of a mask that several layers share (one label image), so that it is decoded once; to be
    emptied when the fields of a region are made.
    """

    def __init__(self, reader: LayerReader, region: Region, kept: Kept | None = None) -> None:
        self.reader = reader
        self.visible = reader.visible & region
        self.mask: FeatheredMask | None = None
        if not self.visible.is_empty and reader.has_mask and reader.layer.opacity > 0:
            where = self._in_mask(self.visible)
            units = partial(reader.mask_units, kept=kept if reader.shares_mask else None)
            self.mask = FeatheredMask(reader.kernel, where, reader.mask_shape, units, reader.uniform_units)

    def _in_mask(self, region: Region) -> Region:
        return region.shift(-self.reader.mask_frame.y0, -self.reader.mask_frame.x0)

    def cover_bounds(self, region: Region) -> tuple[float, float]:
        """(lower, upper) bound of the weight in `region`, the image's own alpha left out; 0 and 1 are exact."""
        part = region & self.visible
        if part.is_empty or self.reader.layer.opacity == 0:
            return 0.0, 0.0
        low, high = self.reader.border.bounds(part)
        if self.mask is not None:
            mask_low, mask_high = self.mask.bounds(self._in_mask(part))
            if self.reader.layer.side == "inside" and not self.reader.kernel.is_identity:
                mask_low, mask_high = (max(0.0, 2 * b - 1) for b in (mask_low, mask_high))
            low, high = low * mask_low, high * mask_high
        if part != region:
            low = 0.0
        opacity = self.reader.layer.opacity
        return low * opacity, high * opacity

    def inner_bounds(self) -> tuple[float, float]:
        """(lower, upper) bound of mask times border over all that is visible: (1, 1) where only opacity and alpha weigh
        the layer's pixels."""
        low, high = self.reader.border.bounds(self.visible)
        if self.mask is not None:
            mask_low, mask_high = self.mask.bounds(self.mask.region)
            low, high = low * mask_low, high * mask_high
        return low, high

    def bounds(self, region: Region) -> tuple[float, float]:
        """As `cover_bounds`, the image's alpha included (unknown until it is read)."""
        low, high = self.cover_bounds(region)
        return (0.0 if self.reader.multiplies_alpha else low), high

    def cover(self, region: Region) -> NDArray[np.float32]:
        """The weight over the whole of `region`, the image's own alpha left out; zeros outside the layer."""
        weight = np.zeros(region.shape, np.float32)
        part = region & self.visible
        if not part.is_empty:
            inner = self._factor(part, None)
            weight[part.shift(-region.y0, -region.x0).slices] = 1 if inner is None else inner
        return weight

    def contribution(self, region: Region) -> Contribution:
        """Colours and weights over the whole of `region`, zeros outside the layer."""
        part = region & self.visible
        if part.is_empty:
            nothing = np.zeros(region.shape, np.float32)
            layer = self.reader.layer
            return Contribution(np.zeros((*region.shape, layer.colours), layer.image.dtype), nothing, None, nothing)
        colour, alpha = self.reader.read(part)
        cover = self._factor(part, None)
        if not self.reader.multiplies_alpha:
            alpha = None  # it counts once, as the mask
        weight = cover if alpha is None else self._factor(part, alpha)
        if part == region:
            return Contribution(colour, weight, alpha, cover)
        return _embedded(Contribution(colour, weight, alpha, cover), part, region)

    def _factor(self, part: Region, alpha: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """opacity x alpha x feather(mask) x border, in that order, float32; None where it is 1 everywhere."""
        opacity = np.float32(self.reader.layer.opacity)
        weight: NDArray[np.float32] | None = None
        if alpha is not None:
            weight = opacity * alpha
        mask = self._mask_weight(part)
        if mask is not None:
            weight = (opacity * mask if opacity != 1 else mask) if weight is None else weight * mask
        border = self.reader.border.weight(part)
        if border is not None:
            weight = opacity * border if weight is None else weight * border
        if weight is None and opacity != 1:
            weight = np.full(part.shape, opacity, np.float32)
        return weight

    def _mask_weight(self, part: Region) -> NDArray[np.float32] | None:
        if self.mask is None:
            return None
        weight = self.mask.weight(self._in_mask(part))
        if self.reader.layer.side == "inside" and not self.reader.kernel.is_identity:
            inside_only(weight)
        return weight


def _embedded(inner: Contribution, part: Region, region: Region) -> Contribution:
    """A contribution to part of a region as one to all of it."""
    at = part.shift(-region.y0, -region.x0).slices
    colour = np.zeros((*region.shape, inner.colour.shape[2]), inner.colour.dtype)
    colour[at] = inner.colour

    def grown(values: NDArray[np.float32] | None, inside: float) -> NDArray[np.float32]:
        out = np.zeros(region.shape, np.float32)
        out[at] = inside if values is None else values
        return out

    alpha = None if inner.alpha is None else grown(inner.alpha, 1)
    return Contribution(colour, grown(inner.weight, 1), alpha, grown(inner.cover, 1))
