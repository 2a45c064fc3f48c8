"""One layer of a scene, read in canvas pixels: colours, alpha, mask units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.colours import checked_alpha, full_scale, resampled, split_alpha
from tiledblend.compose.mask_pixels import MaskPixels, inverted, is_inside
from tiledblend.compose.masks import MaskRule
from tiledblend.compose.placed import Kept, assembled, pixels_of
from tiledblend.describe.composite import Composite
from tiledblend.describe.matching import Match
from tiledblend.describe.placement import Placement
from tiledblend.geometry import Region
from tiledblend.kernels.border import AlignedBorder, Border, PlacedBorder
from tiledblend.kernels.gaussian import FeatherKernel, Sigmas
from tiledblend.kernels.mirror import Units
from tiledblend.kernels.morphology import grown
from tiledblend.sources.base import Alpha, RasterSource


class LayerReader:
    """One layer of a scene, read in canvas pixels. Cheap to make; holds no pixels; pickles with its sources' names.

    index: of the layer, bottom 0. rule: how its mask's numbers are taken, None without a raster mask. shares_mask: True
    when another layer has the same mask. canvas: its (y, x). frame: the layer's rectangle on the canvas. visible: its
    part on the canvas. kernel: its feather. bands: of a multi-band edge, None: it has none. tone: of its
    colours, None: they are as stored. border: its weight towards
    its own sides. mask_frame: the rectangle that the mask covers, in canvas pixels. growth: by how much the mask grows,
    None: it stays as it is. pixels: the image's, in the frame.
    """

    def __init__(self, composite: Composite, index: int, rule: MaskRule | None) -> None:
        layer = composite.layers[index]
        self.layer, self.index, self.rule = layer, index, rule
        self.shares_mask = sum(other.mask is layer.mask for other in composite.layers) > 1
        placement = composite.placement(layer)
        self.frame = placement.frame
        self.canvas = composite.shape
        canvas = Region.of_shape(composite.shape)
        self.visible = self.frame & canvas
        self.kernel: FeatherKernel = composite.kernel(layer)
        fade = (0.0, 0.0) if layer.feather.kernel_size is not None else self.kernel.sigmas
        self.border = _border(placement, canvas, fade)
        self.growth = composite.growth(layer)
        self.bands = composite.bands(layer)
        assert not isinstance(layer.match, Match), "decided by the scene"
        self.tone = None if layer.match is None or layer.match.is_identity else layer.match
        self.has_alpha = layer.image.alpha is not Alpha.NONE
        self.mask_frame = canvas if layer.mask_frame == "canvas" else self.frame
        self.pixels = pixels_of(layer.image, placement)
        self._units = None
        if isinstance(layer.mask, RasterSource):
            assert rule is not None
            keep_float = self.kernel.is_identity
            self._units = MaskPixels(composite, layer, placement, rule, keep_float=keep_float)

    @property
    def mask_level(self) -> int | None:
        """The level of a raster mask that is read; None without one."""
        return None if self._units is None else self._units.level

    @property
    def has_mask(self) -> bool:
        """True when a mask or alpha is feathered (None: opaque)."""
        return self.layer.mask is not None

    @property
    def mask_shape(self) -> tuple[int, int]:
        """(y, x) of the mask in canvas pixels."""
        return self.mask_frame.shape

    @property
    def multiplies_alpha(self) -> bool:
        """True when the image's alpha enters the weight besides the mask."""
        return self.has_alpha and self.layer.mask != "alpha"

    def read(self, region: Region, *, rounded: bool = False) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """(colours, alpha) of a region of the canvas inside `visible`.

        colours: (y, x, c), in the image's dtype, or float32 (unrounded) where resampled, un-multiplied or toned. alpha:
        float32 (y, x) in [0, 1] or None. rounded: colours are wanted in the image's dtype, which saves time where they
        are whole numbers; others stay as they are.
        """
        region = region.shift(-self.frame.y0, -self.frame.x0)
        image, sampling = self.layer.image, self.pixels.sampling
        if sampling is None:
            stored = checked_alpha(self.pixels.read(region), image, region, self.pixels.level)
            colour, alpha = split_alpha(stored, image.alpha)
        else:
            pixels = assembled(region, self.pixels.parts(region), self._resampled)
            colour, alpha = (pixels, None) if image.alpha is Alpha.NONE else (pixels[:, :, :-1], pixels[:, :, -1])
        if self.tone is None:
            return colour, alpha
        if rounded and colour.dtype.kind == "u":
            return self.tone.rounded(colour), alpha
        return self.tone.of(colour, image.dtype), alpha

    def expect(self, regions: Sequence[Region], *, fetch: bool = True) -> int:
        """These regions, as of `read`, will be read soon (`RasterSource.expect`)."""
        inside = [region.shift(-self.frame.y0, -self.frame.x0) for region in regions]
        needed = [native for region in inside for native in self.pixels.native(region)]
        return self.layer.image.expect(needed, self.pixels.level, fetch=fetch)

    def _resampled(self, part: Region) -> NDArray[np.float32]:
        """(y, x, c) of a region of the frame, alpha (0 to 1) last if there is one."""
        image, sampling = self.layer.image, self.pixels.sampling
        assert sampling is not None
        native = sampling.source_region(part)
        pixels = checked_alpha(self.pixels.read_source(native), image, native, self.pixels.level)
        colour, alpha = resampled(pixels, image.alpha, part, sampling)
        return colour if alpha is None else np.concatenate([colour, alpha[:, :, None]], axis=2)

    def mask_units(self, region: Region, kept: Kept | None = None) -> Units:
        """Units of a region of the mask's frame, in canvas pixels from the mask frame's origin; inside `mask_shape`.

        kept: takes what is read of the mask's file, for the next layer that has the same one.
        """
        if self.growth is None:
            return self._drawn_units(region, kept)
        reach = self._reach(region)
        inside = grown(is_inside(self._drawn_units(reach, kept)), self.growth)
        return inside[region.shift(-reach.y0, -reach.x0).slices].astype(np.uint8) * np.uint8(255)

    @property
    def units_dtype(self) -> np.dtype[Any]:
        """Of what `mask_units` gives, told without reading."""
        if self.growth is not None:
            return np.dtype(np.uint8)
        if self._units is not None:
            return self._units.dtype
        as_stored = self.pixels.sampling is None and self.layer.image.dtype.kind == "u"
        return self.layer.image.dtype if as_stored else np.dtype(np.uint16)

    def _reach(self, region: Region) -> Region:
        """The part of the mask as it is drawn that decides a region's units."""
        reach = region if self.growth is None else region.grow(*self.growth.halo_px)
        return reach & Region.of_shape(self.mask_shape)

    def uniform_units(self, region: Region) -> Units | None:
        """As `mask_units`, (1, 1), where it is known without looking that all the region's units are the same."""
        if self._units is None:
            return None
        units = self._units.uniform(self._reach(region))
        if units is None:
            return None
        units = inverted(units) if self.layer.invert else units
        return units if self.growth is None else is_inside(units).astype(np.uint8) * np.uint8(255)

    def _drawn_units(self, region: Region, kept: Kept | None) -> Units:
        """As the mask is drawn, neither grown nor shrunk."""
        units = self._alpha_units(region) if self._units is None else self._units.read(region, kept)
        return inverted(units) if self.layer.invert else units

    def _alpha_units(self, region: Region) -> Units:
        image = self.layer.image
        if self.pixels.sampling is None and image.dtype.kind == "u":
            return np.ascontiguousarray(self.pixels.read(region)[:, :, -1])
        if self.pixels.sampling is None:
            alpha = checked_alpha(self.pixels.read(region), image, region, self.pixels.level)[:, :, -1]
        else:
            alpha = assembled(region, self.pixels.parts(region), self._resampled_alpha)
        return np.rint(np.clip(alpha, 0, 1) * np.float32(65535)).astype(np.uint16)

    def _resampled_alpha(self, part: Region) -> NDArray[np.float32]:
        image, sampling = self.layer.image, self.pixels.sampling
        assert sampling is not None
        native = sampling.source_region(part)
        alpha = checked_alpha(self.pixels.read_source(native), image, native, self.pixels.level)[:, :, -1]
        smooth: NDArray[np.float32] = sampling.resample(alpha, part)
        return np.divide(smooth, full_scale(alpha.dtype), dtype=np.float32)


def _border(placement: Placement, canvas: Region, sigmas: Sigmas) -> Border:
    if placement.to_layer is not None:
        return PlacedBorder(placement.sides, sigmas)
    frame, (fades_y, fades_x) = placement.frame, (sigma > 0 for sigma in sigmas)
    sides = (
        fades_y and frame.y0 > 0,
        fades_x and frame.x0 > 0,
        fades_y and frame.y1 < canvas.y1,
        fades_x and frame.x1 < canvas.x1,
    )
    return AlignedBorder(frame, sides, sigmas)
