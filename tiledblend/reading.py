"""Reading a layer in canvas pixels: colours, alpha, mask units. The writer and the lazy arrays both stand on this."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.composite import Composite, Labels, Layer, MaskValues, mask_scaling, mask_shape_on_canvas
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region, ceil_div
from tiledblend.kernels.feather import FeatherKernel, Units
from tiledblend.kernels.resample import resample_region, source_region
from tiledblend.sources.base import Alpha, RasterSource

log = logging.getLogger("tiledblend")

READ_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How a mask's numbers become units, decided once for the whole mask and checked in every region.

    kind: "binary" (0 and 1 only), "nonzero", "scale" (by the dtype's maximum), "unit" (floats in [0, 1]), "range"
    (lo..hi), "labels".
    """

    kind: Literal["binary", "nonzero", "scale", "unit", "range", "labels"]
    low: float = 0.0
    high: float = 1.0
    labels: tuple[int, ...] = ()


def decide_mask_rule(mask: RasterSource, values: MaskValues) -> MaskRule:
    """The rule for a mask; `auto` reads integer masks until a value decides it.

    Raises BadInputError for an integer mask whose maximum is above 1 and under 1/16 of its dtype's.
    """
    if isinstance(values, Labels):
        return MaskRule("labels", labels=values.values)
    if isinstance(values, tuple):
        return MaskRule("range", float(values[0]), float(values[1]))
    if values == "binary":
        return MaskRule("nonzero")
    if mask.dtype.kind == "f":
        return MaskRule("unit")
    if mask.dtype.kind == "b":
        return MaskRule("binary")
    return _decide_integers(mask)


def _decide_integers(mask: RasterSource) -> MaskRule:
    enough = np.iinfo(mask.dtype).max / 16
    highest = 0
    for region in _blocks(mask):
        highest = max(highest, int(one_channel(mask, mask.read(region)).max()))
        if highest >= enough:
            log.info("mask %s: %s values scaled by %d", mask.name, mask.dtype.name, np.iinfo(mask.dtype).max)
            return MaskRule("scale")
    if highest <= 1:
        log.info("mask %s: all values are 0 or 1, taken as binary", mask.name)
        return MaskRule("binary")
    raise BadInputError(
        f"mask {mask.name}: its maximum is {highest} of {mask.dtype.name}'s "
        f"{np.iinfo(mask.dtype).max}, so it holds labels or a narrower range; "
        f"give --mask-values '[0, {_next_full(highest)}]', --mask-values binary or --mask-values '{{labels: [...]}}'"
    )


def _next_full(value: int) -> int:
    return int((1 << value.bit_length()) - 1)


def _blocks(source: RasterSource) -> list[Region]:
    height, width = source.shape
    return [
        Region(y, x, min(y + READ_BLOCK, height), min(x + READ_BLOCK, width))
        for y in range(0, height, READ_BLOCK)
        for x in range(0, width, READ_BLOCK)
    ]


def one_channel(mask: RasterSource, pixels: NDArray[Any]) -> NDArray[Any]:
    """(y, x) of a mask: its only channel, or BT.601 luma of RGB (0.299 R + 0.587 G + 0.114 B), an alpha channel left
    out."""
    colours = pixels.shape[2] - (mask.alpha is not Alpha.NONE)
    if colours == 1:
        return pixels[:, :, 0]
    # Term by term: a matrix product may add in another order on another tile, and then round a tie differently.
    red, green, blue = (pixels[:, :, i].astype(np.float64) for i in range(3))
    luma = red * 0.299 + green * 0.587 + blue * 0.114
    if pixels.dtype.kind == "b":
        return luma >= 0.5
    return np.rint(luma).astype(pixels.dtype) if pixels.dtype.kind in "ui" else luma.astype(np.float32)


def apply_mask_rule(rule: MaskRule, values: NDArray[Any], *, keep_float: bool, where: str) -> Units:
    """Mask numbers (y, x) to units: uint8 or uint16 of full scale, or float32 weights when `keep_float` and the values
    are not full-scale integers.

    Raises BadInputError saying `where` for NaN and for values that the rule does not allow.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadInputError(f"{where}: the mask has NaN or infinite values; fill them with 0")
    if rule.kind == "labels":
        return np.isin(values, rule.labels).astype(np.uint8) * np.uint8(255)
    if rule.kind == "nonzero":
        return (values != 0).astype(np.uint8) * np.uint8(255)
    if rule.kind == "binary":
        if values.dtype.kind != "b" and ((values < 0) | (values > 1)).any():
            wrong = values.max() if values.max() > 1 else values.min()
            raise BadInputError(f"{where}: mask value {wrong} in a mask taken as binary; give --mask-values")
        return values.astype(np.uint8) * np.uint8(255)
    if rule.kind == "scale" and values.dtype in (np.uint8, np.uint16):
        return values
    low, high = (0.0, float(np.iinfo(values.dtype).max)) if rule.kind == "scale" else (rule.low, rule.high)
    smallest, largest = float(values.min()), float(values.max())
    if smallest < low or largest > high:
        raise BadInputError(
            f"{where}: mask values {smallest:g} to {largest:g} lie outside {low:g} to {high:g}; "
            "give --mask-values '[lo, hi]'"
        )
    unit = (values.astype(np.float64) - low) / (high - low)
    return unit.astype(np.float32) if keep_float else np.rint(unit * 65535).astype(np.uint16)


class LayerReader:
    """One layer of a composite, read in canvas pixels. Cheap to make; holds no pixels.

    frame: the layer's rectangle on the canvas. visible: its part on the canvas. kernel: its feather.
    border_sides: (top, left, bottom, right), True where the layer ends strictly inside the canvas.
    mask_frame: the rectangle that the mask covers, in canvas pixels.
    """

    def __init__(self, composite: Composite, layer: Layer, rule: MaskRule | None) -> None:
        self.layer = layer
        self.rule = rule
        self.frame = composite.frame(layer)
        canvas = Region.of_shape(composite.shape)
        self.visible = self.frame & canvas
        self.kernel: FeatherKernel = layer.feather.kernel(composite.grid.pixel_size_um)
        fades = self.kernel.ksize is None and self.kernel.sigma > 0
        self.border_sides = (
            fades and self.frame.y0 > 0,
            fades and self.frame.x0 > 0,
            fades and self.frame.y1 < canvas.y1,
            fades and self.frame.x1 < canvas.x1,
        )
        self.has_alpha = layer.image.alpha is not Alpha.NONE
        self.mask_frame = canvas if layer.mask_frame == "canvas" else self.frame
        self._mask_size = mask_shape_on_canvas(layer, composite)
        self._repeat = mask_scaling(layer, composite) if isinstance(layer.mask, RasterSource) else 1

    @property
    def has_mask(self) -> bool:
        """True when a mask or alpha is feathered (None: opaque)."""
        return self.layer.mask is not None

    @property
    def mask_shape(self) -> tuple[int, int]:
        """(y, x) of the mask in canvas pixels."""
        return self._mask_size

    @property
    def multiplies_alpha(self) -> bool:
        """True when the image's alpha enters the weight besides the mask."""
        return self.has_alpha and self.layer.mask != "alpha"

    def read(self, region: Region) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """(colours, alpha) of a region of the canvas inside `visible`.

        colours: (y, x, c), in the image's dtype, or float32 (unrounded) where resampled or un-multiplied. alpha:
        float32 (y, x) in [0, 1] or None.
        """
        region = region.shift(-self.frame.y0, -self.frame.x0)
        image = self.layer.image
        if image.shape == self.frame.shape:
            return _split_alpha(self._image_pixels(region), image.alpha)
        needed = source_region(region, image.shape, self.frame.shape)
        pixels = self._image_pixels(needed)
        return _resampled(pixels, image.alpha, region, image.shape, self.frame.shape)

    def _image_pixels(self, region: Region) -> NDArray[Any]:
        image = self.layer.image
        return _checked_alpha(image.read(region), image, region)

    def mask_units(self, region: Region) -> Units:
        """Units of a region of the mask's frame, in canvas pixels from the mask frame's origin; inside `mask_shape`."""
        layer = self.layer
        if layer.mask == "alpha":
            units = self._alpha_units(region)
        else:
            assert isinstance(layer.mask, RasterSource)
            units = self._raster_units(layer.mask, region)
        return _inverted(units) if layer.invert else units

    def _alpha_units(self, region: Region) -> Units:
        image = self.layer.image
        if image.shape == self.frame.shape and image.dtype.kind == "u":
            return np.ascontiguousarray(image.read(region)[:, :, -1])
        if image.shape == self.frame.shape:
            alpha = self._image_pixels(region)[:, :, -1]
        else:
            needed = source_region(region, image.shape, self.frame.shape)
            alpha = self._image_pixels(needed)[:, :, -1]
            full = _full_scale(alpha.dtype)
            alpha = resample_region(alpha, region, image.shape, self.frame.shape) / full
        return np.rint(np.clip(alpha, 0, 1) * np.float32(65535)).astype(np.uint16)

    def _raster_units(self, mask: RasterSource, region: Region) -> Units:
        assert self.rule is not None
        method: Literal["linear", "nearest"] = "nearest" if self.rule.kind == "labels" else "linear"
        f = self._repeat
        if f is None:
            native = source_region(region, mask.shape, self._mask_size, method)
        else:
            last = mask.shape
            native = Region(
                min(region.y0 // f, last[0] - 1),
                min(region.x0 // f, last[1] - 1),
                min(ceil_div(region.y1, f), last[0]),
                min(ceil_div(region.x1, f), last[1]),
            )
        values = one_channel(mask, mask.read(native))
        keep_float = self.kernel.is_identity
        units = apply_mask_rule(
            self.rule, values, keep_float=keep_float, where=f"mask {mask.name}: level 0, region {native}"
        )
        if f == 1:
            return np.ascontiguousarray(units)
        if f is not None:
            return _repeated(units, native, region, f)
        if method == "nearest":
            return resample_region(units, region, mask.shape, self._mask_size, method)
        smooth = resample_region(units, region, mask.shape, self._mask_size)
        if units.dtype == np.float32:
            return smooth
        return np.rint(np.clip(smooth * np.float32(65535 / np.iinfo(units.dtype).max), 0, 65535)).astype(np.uint16)


def _repeated(units: Units, native: Region, region: Region, f: int) -> Units:
    rows = np.minimum(np.arange(region.y0, region.y1) // f, native.y1 - 1) - native.y0
    columns = np.minimum(np.arange(region.x0, region.x1) // f, native.x1 - 1) - native.x0
    out: Units = units[:, columns][rows]
    return out


def _inverted(units: Units) -> Units:
    if units.dtype == np.float32:
        return np.float32(1) - units
    out: Units = units.dtype.type(np.iinfo(units.dtype).max) - units
    return out


def _full_scale(dtype: np.dtype[Any]) -> np.float32:
    """The alpha value that is opaque."""
    return np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)


def _checked_alpha(pixels: NDArray[Any], image: RasterSource, region: Region) -> NDArray[Any]:
    """The same pixels. Raises BadInputError for a float alpha that is NaN or not from 0 to 1."""
    if image.alpha is not Alpha.NONE and pixels.dtype.kind == "f":
        alpha = pixels[:, :, -1]
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise BadInputError(
                f"{image.name}: level 0, region {region}: alpha has NaN or values outside 0 to 1; "
                "scale it, or leave the channel out with channels"
            )
    return pixels


def _split_alpha(pixels: NDArray[Any], alpha: Alpha) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    if alpha is Alpha.NONE:
        return pixels, None
    full = _full_scale(pixels.dtype)
    opacity = pixels[:, :, -1].astype(np.float32) / full
    colour = pixels[:, :, :-1]
    if alpha is Alpha.PREMULTIPLIED:
        colour = _unmultiplied(colour.astype(np.float32), opacity, full)
    return colour, opacity


def _unmultiplied(colour: NDArray[np.float32], alpha: NDArray[np.float32], full: np.float32) -> NDArray[np.float32]:
    visible = (alpha > 0)[:, :, None]
    plain = np.where(visible, colour / np.where(visible, alpha[:, :, None], np.float32(1)), np.float32(0))
    return np.minimum(plain, full) if full > 1 else plain


def _resampled(
    pixels: NDArray[Any], alpha: Alpha, region: Region, shape_in: tuple[int, int], shape_out: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Colour is weighted by alpha while it is resampled, so that hidden colours do not bleed in."""
    if alpha is Alpha.NONE:
        return resample_region(pixels, region, shape_in, shape_out), None
    full = _full_scale(pixels.dtype)
    opacity = pixels[:, :, -1].astype(np.float32) / full
    colour = pixels[:, :, :-1].astype(np.float32)
    if alpha is Alpha.STRAIGHT:
        # Not 0 x infinity: a hidden colour is nothing, whatever it holds.
        colour = np.where(opacity[:, :, None] == 0, np.float32(0), colour) * opacity[:, :, None]
    smooth_alpha = resample_region(opacity, region, shape_in, shape_out)
    smooth = resample_region(colour, region, shape_in, shape_out)
    return _unmultiplied(smooth, smooth_alpha, full), smooth_alpha


def decide_rules(composite: Composite) -> tuple[MaskRule | None, ...]:
    """One rule per layer (None where there is no raster mask). Reads `auto` integer masks until they decide."""
    rules: list[MaskRule | None] = []
    for layer in composite.layers:
        mask = layer.mask
        if not isinstance(mask, RasterSource):
            rules.append(None)
            continue
        if mask.channels >= 3:
            log.info("mask %s: %d channels, taken as BT.601 luma", mask.name, mask.channels)
        rules.append(decide_mask_rule(mask, layer.mask_values))
    return tuple(rules)


def layer_readers(composite: Composite, rules: tuple[MaskRule | None, ...]) -> tuple[LayerReader, ...]:
    """A reader per layer, bottom first."""
    return tuple(LayerReader(composite, layer, rule) for layer, rule in zip(composite.layers, rules, strict=True))
