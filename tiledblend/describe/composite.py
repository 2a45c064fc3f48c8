"""What is to be made: layers on a canvas, frozen, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from tiledblend.describe.agreement import check_image, check_mode, check_placement, mask_scaling
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.layers import Labels, Layer
from tiledblend.describe.lengths import Length, set_number
from tiledblend.describe.placement import Placement, place
from tiledblend.describe.places import by_scene, canvas_origin, coarser_origin, stated_corner
from tiledblend.describe.stacking import stacked_canvas
from tiledblend.display import ShownInNotebooks
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Affine, Region, ceil_div
from tiledblend.kernels.bands import Bands
from tiledblend.kernels.gaussian import FeatherKernel
from tiledblend.kernels.morphology import Growth
from tiledblend.sources.base import RasterSource
from tiledblend.sources.outlines.source import PolygonSource
from tiledblend.sources.profiles import Icc, converted, srgb_profile

Mode = Literal["over", "average", "stack"]


@dataclass(frozen=True)
class Composite(ShownInNotebooks):
    """Layers on a canvas, bottom first.

    mode: "over" (bottom to top), "average", or "stack" (the channels of all layers one after another). background: a
    number for all channels or one per channel, in the dtype's units. canvas: the first layer's grid unless given; what
    it leaves open is filled in from the layers. reduction: what is rendered is this many times smaller than the canvas
    (see `describe.levels`); offsets and feathers stay those of the full canvas. icc: colours stay ("keep"), or are
    converted into the profile of the first layer ("base") or into sRGB ("srgb").

    Raises BadInputError where layers do not agree (both sizes, dtypes or channel counts are named), UsageError for bad
    parameters.
    """

    layers: tuple[Layer, ...]
    mode: Mode = "over"
    background: float | tuple[float, ...] = 0
    canvas: Canvas | None = None
    reduction: float = 1.0
    icc: Icc = "keep"

    def __init__(
        self,
        layers: Sequence[Layer],
        mode: Mode = "over",
        background: float | Sequence[float] = 0,
        canvas: Canvas | None = None,
        reduction: float = 1.0,
        icc: Icc = "keep",
    ) -> None:
        if icc not in get_args(Icc):
            raise UsageError(f"icc {icc!r} must be keep, base or srgb")
        object.__setattr__(self, "icc", icc)
        object.__setattr__(self, "layers", _managed(_layers(layers), icc))
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "reduction", reduction)
        set_number(self, "reduction", float, "reduction")
        object.__setattr__(self, "background", _background(background))
        if not self.layers:
            raise UsageError("a composite needs at least one layer")
        if not (canvas is None or isinstance(canvas, Canvas)):
            raise UsageError(f"canvas {canvas!r} must be a Canvas; use for example Canvas((4000, 6000))")
        if mode not in get_args(Mode):
            raise UsageError(f"mode {mode!r} must be over, average or stack")
        if not (math.isfinite(self.reduction) and self.reduction >= 1):
            raise UsageError(f"reduction {reduction} must be 1 or more: a composite is not enlarged")
        object.__setattr__(self, "layers", by_scene(self.layers))
        object.__setattr__(self, "canvas", self._resolved(canvas))
        placed = tuple(_with_placed_polygons(layer, self.full.shape) for layer in self.layers)
        object.__setattr__(self, "layers", placed)
        self._check_layers()
        self.background_values()

    def _resolved(self, canvas: Canvas | None) -> Canvas:
        base = self.layers[0]
        given = canvas or Canvas(base.image.shape, pixel_size_um=base.known_pixel_size_um)
        if self.mode == "stack":
            return replace(stacked_canvas(given, self.layers), origin_um=given.origin_um or canvas_origin(base, given))
        own_channels = base.image.channels
        channels = own_channels if given.channels is None else given.channels
        if channels not in (base.colours, base.colours + 1):
            raise BadInputError(
                f"canvas has {channels} channels, but {base.image.name} has {base.colours} colour "
                f"channels; give channels: {base.colours}"
            )
        image = base.image
        return replace(
            given,
            channels=channels,
            has_alpha=channels == base.colours + 1,
            dtype=given.dtype or image.dtype.name,
            is_rgb=image.is_rgb if given.is_rgb is None else given.is_rgb,
            channel_names=given.channel_names or image.info.channel_names,
            channel_colors=given.channel_colors or image.info.channel_colors,
            channel_windows=given.channel_windows or image.info.channel_windows,
            origin_um=given.origin_um or canvas_origin(base, given),
        )

    @property
    def full(self) -> Canvas:
        """The canvas that layers are placed on, every field resolved; what is rendered is `reduction` times smaller."""
        assert self.canvas is not None
        return self.canvas

    @property
    def grid(self) -> Canvas:
        """The canvas that is rendered, every field resolved."""
        full, by = self.full, self.reduction
        if by == 1:
            return full
        size, origin = full.pixel_size_um, full.origin_um
        if size is None:
            return replace(full, shape=self.shape, origin_um=None)
        coarse = size[0] * by, size[1] * by
        return replace(full, shape=self.shape, pixel_size_um=coarse, origin_um=coarser_origin(origin, size, coarse))

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the canvas that is rendered: every pixel that the full one's touch."""
        return _reduced(self.full.shape[0], self.reduction), _reduced(self.full.shape[1], self.reduction)

    @property
    def channels(self) -> int:
        """Channels of the result, alpha included."""
        assert self.grid.channels is not None
        return self.grid.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the result."""
        return np.dtype(self.grid.dtype)

    @property
    def has_alpha(self) -> bool:
        """True when the result's last channel is straight alpha."""
        return bool(self.grid.has_alpha)

    @property
    def keeps_bottom_alpha(self) -> bool:
        """True when the bottom layer's pixels come through with their own alpha: nothing is under them."""
        return self.has_alpha and float(self.background_values()[-1]) == 0

    @property
    def icc_profile(self) -> bytes | None:
        """Of the result's colours; None where they are not known, or are no RGB."""
        if self.mode == "stack" or not self.grid.is_rgb:
            return None
        return srgb_profile() if self.icc == "srgb" else self.layers[0].image.icc_profile

    def frame(self, layer: Layer) -> Region:
        """The layer's rectangle in canvas pixels; it may reach beyond the canvas."""
        return self.placement(layer).frame

    def placement(self, layer: Layer) -> Placement:
        """Where the layer lies on the canvas that is rendered."""
        by, image, full = self.reduction, layer.image.shape, self.full.shape
        if layer.fit == "canvas":
            frame = Region.of_shape(self.shape)
            fill = Affine.scaling(by * image[1] / full[1], by * image[0] / full[0])
            return Placement(frame, None if by == 1 else fill)
        if layer.affine is not None and layer.affine.whole_shift is None:
            to_layer = layer.affine.inverse().after(Affine.scaling(by, by))
            return place(to_layer, image, (full[0] / by, full[1] / by), warped=True)
        if layer.fit == "physical" and (size := self.layer_pixels(layer)) != (1.0, 1.0):
            y, x = self.exact_offset(layer)
            to_layer = Affine.scaling(1 / size[1], 1 / size[0]).after(Affine.shifting(-x, -y))
        else:
            row, column = self.offset(layer)
            if by == 1:
                return Placement(Region.of_shape(image).shift(row, column))
            to_layer = Affine.shifting(-column, -row)
        return place(to_layer.after(Affine.scaling(by, by)), image, (full[0] / by, full[1] / by))

    def exact_offset(self, layer: Layer) -> tuple[float, float]:
        """(y, x) of the layer's corner in pixels of the full canvas."""
        if layer.fit == "physical" and layer.offset is None:
            return stated_corner(layer, self.full) or (0.0, 0.0)
        y, x = (layer.affine and layer.affine.whole_shift) or layer.offset or (0, 0)
        sizes = self.full.pixel_size_um or (None, None)
        first, second = (Length.parse(v).pixels(size, "offset") for v, size in zip((y, x), sizes, strict=True))
        return first, second

    def offset(self, layer: Layer) -> tuple[int, int]:
        """(y, x) of the layer's corner as it is taken where its pixels are not resampled: rounded, halves up."""
        y, x = self.exact_offset(layer)
        return math.floor(y + 0.5), math.floor(x + 0.5)

    def layer_pixels(self, layer: Layer) -> tuple[float, float]:
        """(y, x) size of a layer's pixel in pixels of the full canvas, by their pixel sizes."""
        own, canvas = layer.known_pixel_size_um, self.full.pixel_size_um
        for size, what in ((own, layer.image.name), (canvas, "the canvas")):
            if size is None:
                raise BadInputError(
                    f"{layer.image.name}: fit physical needs the pixel sizes of layer and canvas, and {what} has none; "
                    "state it with pixel_size_um"
                )
        assert own is not None
        assert canvas is not None
        y, x = own[0] / canvas[0], own[1] / canvas[1]
        return (1.0, 1.0) if max(abs(y - 1), abs(x - 1)) < 1e-6 else (y, x)

    def kernel(self, layer: Layer) -> FeatherKernel:
        """The layer's feather on the canvas that is rendered."""
        return layer.feather.kernel(self.full.pixel_size_um, self.reduction)

    def bands(self, layer: Layer) -> Bands | None:
        """The layer's multi-band edge on the canvas that is rendered: where that is 2^k times smaller, k bands fewer;
        None for another edge, and where one band is left."""
        if layer.feather.band_count is None:
            return None
        count = layer.feather.band_count - round(math.log2(self.reduction))
        return Bands(count) if count > 1 else None

    def growth(self, layer: Layer) -> Growth | None:
        """By how much the layer's mask grows on the canvas that is rendered: as a circle, in micrometres an ellipse of
        pixels where they are not square."""
        if layer.grow is None:
            return None
        if layer.grow.unit == "px":
            return Growth(layer.grow.value / self.reduction)
        if self.grid.pixel_size_um is None:
            layer.grow.pixels(None, "grow")
        return Growth(layer.grow.value, self.grid.pixel_size_um or (1.0, 1.0))

    def background_values(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 background, one value per channel."""
        given = self.background
        if isinstance(given, tuple) and len(given) != self.channels:
            raise UsageError(f"background has {len(given)} values; the canvas has {self.channels} channels")
        values = np.broadcast_to(np.asarray(given, np.float64), (self.channels,))
        if not np.isfinite(values).all() or (np.abs(values) > np.finfo(np.float32).max).any():
            raise UsageError(f"background {given} must be finite")
        if self.dtype.kind == "u" and (values.min() < 0 or values.max() > np.iinfo(self.dtype).max):
            raise UsageError(f"background {given} lies outside {self.dtype.name}, 0 to {np.iinfo(self.dtype).max}")
        return values.astype(np.float32)

    def _check_layers(self) -> None:
        base = self.layers[0]
        for layer in self.layers:
            check_image(layer, base, self)
            check_mode(layer, self)
            check_placement(layer, self)
            if isinstance(layer.mask, RasterSource):
                mask_scaling(layer, self)
            self.kernel(layer)
            self.growth(layer)


def _layers(given: Any) -> tuple[Layer, ...]:
    try:
        layers = tuple(given)
    except TypeError:
        layers = (None,)
    if not all(isinstance(layer, Layer) for layer in layers):
        raise UsageError(f"layers {given!r} must be a list of Layer; use Composite([Layer(source), ...])")
    return layers


def _managed(layers: tuple[Layer, ...], icc: Icc) -> tuple[Layer, ...]:
    """The layers in the colours that are asked for."""
    if icc == "keep" or not layers:
        return layers
    target = srgb_profile() if icc == "srgb" else layers[0].image.icc_profile or srgb_profile()
    images = [converted(layer.image, target) for layer in layers]
    return tuple(
        layer if image is layer.image else replace(layer, image=image)
        for layer, image in zip(layers, images, strict=True)
    )


def _background(given: Any) -> float | tuple[float, ...]:
    try:
        if np.ndim(given) == 0:
            return given if isinstance(given, (int, float)) else float(given)
        return tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise UsageError(f"background {given!r} must be a number, or one per channel") from None


def _reduced(size: int, by: float) -> int:
    if by.is_integer():
        return ceil_div(size, int(by))
    return math.ceil(size / by - 1e-9)


def _with_placed_polygons(layer: Layer, canvas: tuple[int, int]) -> Layer:
    """Outlines have no size of their own: they are put on the grid of what they cover."""
    if not isinstance(layer.mask, PolygonSource):
        return layer
    shape = canvas if layer.mask_frame == "canvas" else layer.image.shape
    labels = isinstance(layer.mask_values, Labels)
    if (layer.mask.spec.shape, layer.mask.spec.labels) == (shape, labels):
        return layer
    return replace(layer, mask=layer.mask.with_shape(shape, labels=labels))
