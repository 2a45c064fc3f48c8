"""A raster mask in the pixels of what it covers: repeated, shifted or resampled, as units of full scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.masks import MaskRule, apply_mask_rule, one_channel, units_dtype
from tiledblend.compose.placed import Kept, PixelsInFrame, assembled, placed_pixels
from tiledblend.describe.agreement import mask_field, mask_scaling
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.placement import Placement
from tiledblend.geometry import Affine, Region, ceil_div
from tiledblend.kernels.mirror import Units
from tiledblend.kernels.resample import Method, ToSize
from tiledblend.sources.base import RasterSource


class MaskPixels:
    """A raster mask in the pixels of its frame on the canvas.

    rule: how its numbers become units. keep_float: floats stay floats, as of `apply_mask_rule`.
    """

    def __init__(
        self, composite: Composite, layer: Layer, placement: Placement, rule: MaskRule, *, keep_float: bool
    ) -> None:
        assert isinstance(layer.mask, RasterSource)
        self._mask, self._rule, self._keep_float = layer.mask, rule, keep_float
        self._known: dict[int, Units] = {}
        canvas = Region.of_shape(composite.shape)
        frame = canvas if layer.mask_frame == "canvas" else placement.frame
        self._repeat: int | None = mask_scaling(layer, composite)
        self._nearest: bool = self._repeat not in (None, 1)
        if placement.to_layer is None and composite.reduction == 1:
            shift = None if self._repeat is not None else ToSize(self._mask.shape, frame.shape)
            self._pixels = PixelsInFrame(self._mask, 0, shift)
            return
        to_mask = _mask_map(composite, layer, placement, self._repeat)
        warped = placement.warped and layer.mask_frame == "layer"
        self._pixels = placed_pixels(self._mask, to_mask, (frame.y0, frame.x0), warped=warped)
        self._nearest = self._nearest and max(to_mask.stretch) <= 1
        self._repeat = None if self._pixels.sampling is not None else 1

    @property
    def level(self) -> int:
        """The mask's level that is read."""
        return self._pixels.level

    def read(self, region: Region, kept: Kept | None = None) -> Units:
        """Units of a region of the frame: uint8 or uint16, or float32 (`apply_mask_rule`)."""
        if self._repeat is not None:
            return self._repeated(region, kept)
        return assembled(
            region, self._pixels.parts(region, self._method), lambda part: self._resampled(part, self._method, kept)
        )

    @property
    def _method(self) -> Method:
        return "nearest" if self._rule.kind == "labels" or self._nearest else "linear"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `read` gives."""
        rated = units_dtype(self._rule, self._mask.dtype, keep_float=self._keep_float)
        if self._repeat is None and self._method == "linear" and rated.kind == "u":
            return np.dtype(np.uint16)
        return rated

    def uniform(self, region: Region) -> Units | None:
        """As `read`, (1, 1), where the mask knows that the whole region has one value."""
        if self._repeat is None:
            return None
        native = self._native(region, self._repeat)
        value = self._mask.uniform(native, self._pixels.level)
        if value is None:
            return None
        known = self._known.get(value)
        if known is None:
            pixel = np.array([[[value]]], self._mask.dtype)
            known = self._known[value] = self._rated(pixel, native)
        return known

    def _native(self, region: Region, f: int) -> Region:
        """Pixels of the mask's level that a region of the frame shows, each f x f times."""
        if f == 1:
            return region.shift(*self._pixels.shift) & Region.of_shape(self._pixels.shape)
        last = self._mask.shape
        return Region(
            min(region.y0 // f, last[0] - 1),
            min(region.x0 // f, last[1] - 1),
            min(ceil_div(region.y1, f), last[0]),
            min(ceil_div(region.x1, f), last[1]),
        )

    def _repeated(self, region: Region, kept: Kept | None) -> Units:
        f = self._repeat
        assert f is not None
        if f == 1:
            return np.ascontiguousarray(self._rated(self._pixels.read(region, kept), region))
        native = self._native(region, f)
        return _repeated(self._rated(self._pixels.read_source(native, kept), native), native, region, f)

    def _resampled(self, region: Region, method: Method, kept: Kept | None) -> Units:
        sampling = self._pixels.sampling
        assert sampling is not None
        native = sampling.source_region(region, method)
        units = self._rated(self._pixels.read_source(native, kept), native)
        smooth = sampling.resample(units, region, method)
        if method == "nearest" or units.dtype == np.float32:
            return smooth
        return np.rint(np.clip(smooth * np.float32(65535 / np.iinfo(units.dtype).max), 0, 65535)).astype(np.uint16)

    def _rated(self, pixels: NDArray[Any], native: Region) -> Units:
        where = f"mask {self._mask.name}: level {self._pixels.level}, region {native}"
        values = one_channel(self._mask, pixels)
        return apply_mask_rule(self._rule, values, keep_float=self._keep_float, where=where)


def _mask_map(composite: Composite, layer: Layer, placement: Placement, repeat: int | None) -> Affine:
    """Canvas points to points of the mask's level 0."""
    assert isinstance(layer.mask, RasterSource)
    by, field, mask = composite.reduction, mask_field(layer, composite), layer.mask.shape
    if layer.mask_frame == "canvas" or layer.fit == "canvas" or placement.to_layer is None:
        to_field = Affine.scaling(by, by)
    else:
        to_field = placement.to_layer
    scale = (mask[1] / field[1], mask[0] / field[0]) if repeat is None else (1 / repeat, 1 / repeat)
    return Affine.scaling(*scale).after(to_field)


def _repeated(units: Units, native: Region, region: Region, f: int) -> Units:
    rows = np.minimum(np.arange(region.y0, region.y1) // f, native.y1 - 1) - native.y0
    columns = np.minimum(np.arange(region.x0, region.x1) // f, native.x1 - 1) - native.x0
    out: Units = units[:, columns][rows]
    return out


def is_inside(units: Units) -> NDArray[np.bool_]:
    """True from half of full scale on."""
    half = 0.5 if units.dtype == np.float32 else (int(np.iinfo(units.dtype).max) + 1) // 2
    inside: NDArray[np.bool_] = units >= units.dtype.type(half)
    return inside


def inverted(units: Units) -> Units:
    """What was outside is inside."""
    if units.dtype == np.float32:
        return np.float32(1) - units
    out: Units = units.dtype.type(np.iinfo(units.dtype).max) - units
    return out
