"""Reading a layer in canvas pixels: colours, alpha, mask units. The writer and the lazy arrays both stand on this."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.describe.agreement import mask_field, mask_scaling
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Labels, Layer, MaskValues
from tiledblend.describe.placement import Placement
from tiledblend.errors import BadInputError
from tiledblend.geometry import Affine, Region, ceil_div
from tiledblend.kernels.affine import Warped
from tiledblend.kernels.border import AlignedBorder, Border, PlacedBorder
from tiledblend.kernels.feather import FeatherKernel, Sigmas, Units
from tiledblend.kernels.morphology import grown
from tiledblend.kernels.resample import Method, Sampling, Scaled, ToSize
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.views import downsampling

log = logging.getLogger("tiledblend")

READ_BLOCK = 4096
Kept = dict[tuple[int, int, Region], NDArray[Any]]
"""Pixels by source, level and region."""
MOST_SHRINK = 2.0
"""Up to here one bilinear point per pixel is enough; beyond it a warped layer averages several."""
SOURCE_PIXELS = 1 << 21
"""Of a source that is resampled, most pixels that are held at once."""


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
        value = mask.uniform(region)
        highest = max(highest, int(one_channel(mask, mask.read(region)).max()) if value is None else value)
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


def units_dtype(rule: MaskRule, dtype: np.dtype[Any], *, keep_float: bool) -> np.dtype[Any]:
    """Of what `apply_mask_rule` makes of a mask of this dtype."""
    if rule.kind in ("labels", "nonzero", "binary"):
        return np.dtype(np.uint8)
    if rule.kind == "scale" and dtype in (np.uint8, np.uint16):
        return dtype
    return np.dtype(np.float32 if keep_float else np.uint16)


class LayerReader:
    """One layer of a composite, read in canvas pixels. Cheap to make; holds no pixels.

    frame: the layer's rectangle on the canvas. visible: its part on the canvas. kernel: its feather.
    border: its weight towards its own sides. mask_frame: the rectangle that the mask covers, in canvas pixels.
    growth: by how much the mask grows, None: it stays as it is.
    """

    def __init__(self, composite: Composite, layer: Layer, rule: MaskRule | None, kept: Kept | None = None) -> None:
        self.layer = layer
        self.rule = rule
        placement = composite.placement(layer)
        self.frame = placement.frame
        canvas = Region.of_shape(composite.shape)
        self.visible = self.frame & canvas
        self.kernel: FeatherKernel = composite.kernel(layer)
        fade = (0.0, 0.0) if layer.feather.kernel_size is not None else self.kernel.sigmas
        self.border = _border(placement, canvas, fade)
        self.growth = composite.growth(layer)
        self.has_alpha = layer.image.alpha is not Alpha.NONE
        self.mask_frame = canvas if layer.mask_frame == "canvas" else self.frame
        self.pixels = _pixels_of(layer.image, placement)
        self._units = _MaskPixels(composite, layer, placement, kept) if isinstance(layer.mask, RasterSource) else None

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

    def read(self, region: Region) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """(colours, alpha) of a region of the canvas inside `visible`.

        colours: (y, x, c), in the image's dtype, or float32 (unrounded) where resampled or un-multiplied. alpha:
        float32 (y, x) in [0, 1] or None.
        """
        region = region.shift(-self.frame.y0, -self.frame.x0)
        image, sampling = self.layer.image, self.pixels.sampling
        if sampling is None:
            return _split_alpha(_checked_alpha(self.pixels.read(region), image, region, self.pixels.level), image.alpha)
        pixels = _assembled(region, self.pixels.parts(region), self._resampled)
        return (pixels, None) if image.alpha is Alpha.NONE else (pixels[:, :, :-1], pixels[:, :, -1])

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
        pixels = _checked_alpha(self.pixels.read_source(native), image, native, self.pixels.level)
        colour, alpha = _resampled(pixels, image.alpha, part, sampling)
        return colour if alpha is None else np.concatenate([colour, alpha[:, :, None]], axis=2)

    def mask_units(self, region: Region) -> Units:
        """Units of a region of the mask's frame, in canvas pixels from the mask frame's origin; inside `mask_shape`."""
        if self.growth is None:
            return self._drawn_units(region)
        reach = self._reach(region)
        inside = grown(_is_inside(self._drawn_units(reach)), self.growth)
        return inside[region.shift(-reach.y0, -reach.x0).slices].astype(np.uint8) * np.uint8(255)

    @property
    def units_dtype(self) -> np.dtype[Any]:
        """Of what `mask_units` gives, told without reading."""
        if self.growth is not None:
            return np.dtype(np.uint8)
        if self._units is not None:
            assert self.rule is not None
            return self._units.dtype(self.rule, keep_float=self.kernel.is_identity)
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
        assert self.rule is not None
        units = self._units.uniform(self._reach(region), self.rule, keep_float=self.kernel.is_identity)
        if units is None:
            return None
        units = _inverted(units) if self.layer.invert else units
        return units if self.growth is None else _is_inside(units).astype(np.uint8) * np.uint8(255)

    def _drawn_units(self, region: Region) -> Units:
        """As the mask is drawn, neither grown nor shrunk."""
        if self._units is None:
            units = self._alpha_units(region)
        else:
            assert self.rule is not None
            units = self._units.read(region, self.rule, keep_float=self.kernel.is_identity)
        return _inverted(units) if self.layer.invert else units

    def _alpha_units(self, region: Region) -> Units:
        image = self.layer.image
        if self.pixels.sampling is None and image.dtype.kind == "u":
            return np.ascontiguousarray(self.pixels.read(region)[:, :, -1])
        if self.pixels.sampling is None:
            alpha = _checked_alpha(self.pixels.read(region), image, region, self.pixels.level)[:, :, -1]
        else:
            alpha = _assembled(region, self.pixels.parts(region), self._resampled_alpha)
        return np.rint(np.clip(alpha, 0, 1) * np.float32(65535)).astype(np.uint16)

    def _resampled_alpha(self, part: Region) -> NDArray[np.float32]:
        image, sampling = self.layer.image, self.pixels.sampling
        assert sampling is not None
        native = sampling.source_region(part)
        alpha = _checked_alpha(self.pixels.read_source(native), image, native, self.pixels.level)[:, :, -1]
        smooth: NDArray[np.float32] = sampling.resample(alpha, part)
        return np.divide(smooth, _full_scale(alpha.dtype), dtype=np.float32)


def _assembled(region: Region, parts: list[Region], made: Callable[[Region], NDArray[Any]]) -> NDArray[Any]:
    """A region of which one part after the other is made."""
    if len(parts) == 1:
        return made(parts[0])
    out: NDArray[Any] | None = None
    for part in parts:
        pixels = made(part)
        if out is None:
            out = np.empty((*region.shape, *pixels.shape[2:]), pixels.dtype)
        out[part.shift(-region.y0, -region.x0).slices] = pixels
    assert out is not None
    return out


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


class PixelsInFrame:
    """A source's pixels at the places of a frame's: those of one of its levels, shifted by whole pixels, or resampled.

    level: which is read. sampling: None when the level's own pixels are taken. shift: (y, x) of the frame's corner on
    the level then.
    """

    def __init__(
        self, source: RasterSource, level: int, sampling: Sampling | None, shift: tuple[int, int] = (0, 0)
    ) -> None:
        self.source, self.level, self.sampling, self.shift = source, level, sampling, shift
        self.kept: Kept | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the level."""
        return self.source.levels[self.level].shape

    @property
    def tile_side(self) -> int:
        """The longer side of the level's stored tiles, in pixels; 0 where it is resampled."""
        return 0 if self.sampling is not None else max(self.source.levels[self.level].tile)

    def read(self, region: Region) -> NDArray[Any]:
        """Pixels of a region of the frame as the level has them; beyond its end the last ones are repeated."""
        region = region.shift(*self.shift)
        inside = region & Region.of_shape(self.shape)
        if inside == region:
            return self.read_source(region)
        rows = np.clip(np.arange(region.y0, region.y1), 0, self.shape[0] - 1)
        columns = np.clip(np.arange(region.x0, region.x1), 0, self.shape[1] - 1)
        needed = Region(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        return self.read_source(needed)[rows - needed.y0][:, columns - needed.x0]

    def native(self, region: Region) -> list[Region]:
        """Regions of the level that a region of the frame is made of."""
        if self.sampling is not None:
            return [self.sampling.source_region(part) for part in self.parts(region)]
        inside = region.shift(*self.shift) & Region.of_shape(self.shape)
        return [] if inside.is_empty else [inside]

    def read_source(self, native: Region) -> NDArray[Any]:
        """Pixels of a region of the level."""
        if self.kept is None:
            return self.source.read(native, self.level)
        key = id(self.source), self.level, native
        if key not in self.kept:
            self.kept[key] = self.source.read(native, self.level)
        return self.kept[key]

    def parts(self, region: Region, method: Method = "linear") -> list[Region]:
        """A region of the frame cut until none needs more than a few megapixels of the source."""
        assert self.sampling is not None
        if region.size <= 1 or self.sampling.source_region(region, method).size <= SOURCE_PIXELS:
            return [region]
        return [part for half in _halves(region) for part in self.parts(half, method)]


def _halves(region: Region) -> tuple[Region, Region]:
    height, width = region.shape
    if height >= width:
        y = region.y0 + height // 2
        return Region(region.y0, region.x0, y, region.x1), Region(y, region.x0, region.y1, region.x1)
    x = region.x0 + width // 2
    return Region(region.y0, region.x0, region.y1, x), Region(region.y0, x, region.y1, region.x1)


def _pixels_of(image: RasterSource, placement: Placement) -> PixelsInFrame:
    frame = placement.frame
    if placement.to_layer is not None:
        return _placed_pixels(image, placement.to_layer, (frame.y0, frame.x0), warped=placement.warped)
    return PixelsInFrame(image, 0, None if image.shape == frame.shape else ToSize(image.shape, frame.shape))


def _placed_pixels(
    source: RasterSource, to_source: Affine, origin: tuple[int, int], *, warped: bool = False
) -> PixelsInFrame:
    """A source read through a map of canvas points to points of its level 0: from its coarsest level that is not
    coarser than the canvas, along each axis and in every direction."""
    scale = (to_source.stretch[0],) * 2 if warped else (to_source.e, to_source.a)
    level = max((i for i in range(len(source.levels)) if _is_fine(source, i, scale)), default=0)
    factor, shape = level_factor(source, level), source.levels[level].shape
    to_level = Affine.scaling(1 / factor[1], 1 / factor[0]).after(to_source)
    start = to_level.of(origin[1], origin[0])
    is_shift = (to_level.a, to_level.b, to_level.d, to_level.e) == (1.0, 0.0, 0.0, 1.0)
    if is_shift and all(s.is_integer() for s in start):
        return PixelsInFrame(source, level, None, (int(start[1]), int(start[0])))
    if warped:
        shrinks = to_level.stretch[1]
        points = 1 if shrinks <= MOST_SHRINK * (1 + 1e-9) else math.ceil(shrinks - 1e-9)
        return PixelsInFrame(source, level, Warped(to_level, shape, origin, points))
    scaled = Scaled((to_level.e, to_level.a), (to_level.f, to_level.c), shape, origin)
    return PixelsInFrame(source, level, scaled)


def _is_fine(source: RasterSource, level: int, scale: tuple[float, float]) -> bool:
    return all(f <= s * (1 + 1e-9) for f, s in zip(level_factor(source, level), scale, strict=True))


def level_factor(source: RasterSource, level: int) -> tuple[float, float]:
    """(y, x) pixels of level 0 that one pixel of `level` stands for."""
    fine, coarse = source.shape, source.levels[level].shape
    return downsampling(fine[0], coarse[0]), downsampling(fine[1], coarse[1])


class _MaskPixels:
    """A raster mask in the pixels of its frame on the canvas."""

    def __init__(self, composite: Composite, layer: Layer, placement: Placement, kept: Kept | None) -> None:
        assert isinstance(layer.mask, RasterSource)
        self._mask = layer.mask
        self._known: dict[int, Units] = {}
        canvas = Region.of_shape(composite.shape)
        frame = canvas if layer.mask_frame == "canvas" else placement.frame
        self._repeat: int | None = mask_scaling(layer, composite)
        self._nearest: bool = self._repeat not in (None, 1)
        if placement.to_layer is None and composite.reduction == 1:
            shift = None if self._repeat is not None else ToSize(self._mask.shape, frame.shape)
            self._pixels = PixelsInFrame(self._mask, 0, shift)
            self._pixels.kept = kept
            return
        to_mask = _mask_map(composite, layer, placement, self._repeat)
        warped = placement.warped and layer.mask_frame == "layer"
        self._pixels = _placed_pixels(self._mask, to_mask, (frame.y0, frame.x0), warped=warped)
        self._pixels.kept = kept
        self._nearest = self._nearest and max(to_mask.stretch) <= 1
        self._repeat = None if self._pixels.sampling is not None else 1

    @property
    def level(self) -> int:
        """The mask's level that is read."""
        return self._pixels.level

    def read(self, region: Region, rule: MaskRule, *, keep_float: bool) -> Units:
        """Units of a region of the frame: uint8 or uint16, or float32 (`apply_mask_rule`)."""
        method = self._method(rule)
        if self._repeat is not None:
            return self._repeated(region, rule, keep_float)

        def resampled(part: Region) -> Units:
            return self._resampled(part, rule, method, keep_float)

        return _assembled(region, self._pixels.parts(region, method), resampled)

    def _method(self, rule: MaskRule) -> Method:
        return "nearest" if rule.kind == "labels" or self._nearest else "linear"

    def dtype(self, rule: MaskRule, *, keep_float: bool) -> np.dtype[Any]:
        """Of what `read` gives."""
        rated = units_dtype(rule, self._mask.dtype, keep_float=keep_float)
        if self._repeat is None and self._method(rule) == "linear" and rated.kind == "u":
            return np.dtype(np.uint16)
        return rated

    def uniform(self, region: Region, rule: MaskRule, *, keep_float: bool) -> Units | None:
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
            known = self._known[value] = self._rated(pixel, rule, keep_float, native)
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

    def _repeated(self, region: Region, rule: MaskRule, keep_float: bool) -> Units:
        f = self._repeat
        assert f is not None
        if f == 1:
            return np.ascontiguousarray(self._rated(self._pixels.read(region), rule, keep_float, region))
        native = self._native(region, f)
        return _repeated(self._rated(self._pixels.read_source(native), rule, keep_float, native), native, region, f)

    def _resampled(self, region: Region, rule: MaskRule, method: Method, keep_float: bool) -> Units:
        sampling = self._pixels.sampling
        assert sampling is not None
        native = sampling.source_region(region, method)
        units = self._rated(self._pixels.read_source(native), rule, keep_float, native)
        smooth = sampling.resample(units, region, method)
        if method == "nearest" or units.dtype == np.float32:
            return smooth
        return np.rint(np.clip(smooth * np.float32(65535 / np.iinfo(units.dtype).max), 0, 65535)).astype(np.uint16)

    def _rated(self, pixels: NDArray[Any], rule: MaskRule, keep_float: bool, native: Region) -> Units:
        where = f"mask {self._mask.name}: level {self._pixels.level}, region {native}"
        return apply_mask_rule(rule, one_channel(self._mask, pixels), keep_float=keep_float, where=where)


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


def _is_inside(units: Units) -> NDArray[np.bool_]:
    """True from half of full scale on."""
    half = 0.5 if units.dtype == np.float32 else (int(np.iinfo(units.dtype).max) + 1) // 2
    inside: NDArray[np.bool_] = units >= units.dtype.type(half)
    return inside


def _inverted(units: Units) -> Units:
    if units.dtype == np.float32:
        return np.float32(1) - units
    out: Units = units.dtype.type(np.iinfo(units.dtype).max) - units
    return out


def _full_scale(dtype: np.dtype[Any]) -> np.float32:
    """The alpha value that is opaque."""
    return np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)


def _checked_alpha(pixels: NDArray[Any], image: RasterSource, region: Region, level: int = 0) -> NDArray[Any]:
    """The same pixels. Raises BadInputError for a float alpha that is NaN or not from 0 to 1."""
    if image.alpha is not Alpha.NONE and pixels.dtype.kind == "f":
        alpha = pixels[:, :, -1]
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise BadInputError(
                f"{image.name}: level {level}, region {region}: alpha has NaN or values outside 0 to 1; "
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
    pixels: NDArray[Any], alpha: Alpha, region: Region, sampling: Sampling
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Colour is weighted by alpha while it is resampled, so that hidden colours do not bleed in."""
    if alpha is Alpha.NONE:
        return sampling.resample(pixels, region), None
    full = _full_scale(pixels.dtype)
    opacity = pixels[:, :, -1].astype(np.float32) / full
    colour = pixels[:, :, :-1].astype(np.float32)
    if alpha is Alpha.STRAIGHT:
        # Not 0 x infinity: a hidden colour is nothing, whatever it holds.
        colour = np.where(opacity[:, :, None] == 0, np.float32(0), colour) * opacity[:, :, None]
    else:
        # What _unmultiplied makes of each pixel, weighted by alpha again: it cuts a colour beyond its alpha.
        if full > 1:
            colour = np.minimum(colour, pixels[:, :, -1:].astype(np.float32))
        colour = np.where(opacity[:, :, None] == 0, np.float32(0), colour)
    smooth_alpha = sampling.resample(opacity, region)
    smooth = sampling.resample(colour, region)
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
        mask.rest()
    return tuple(rules)


def layer_readers(
    composite: Composite, rules: tuple[MaskRule | None, ...], kept: Kept | None = None
) -> tuple[LayerReader, ...]:
    """A reader per layer, bottom first. kept: takes what is read of a mask that several layers share (one label image),
    so that it is decoded once; to be emptied when the masks of a tile are read."""
    masks = [id(layer.mask) for layer in composite.layers]
    return tuple(
        LayerReader(composite, layer, rule, kept if masks.count(id(layer.mask)) > 1 else None)
        for layer, rule in zip(composite.layers, rules, strict=True)
    )
