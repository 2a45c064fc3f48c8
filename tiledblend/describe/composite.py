"""What is to be made: frozen descriptions of layers on a canvas, checked when they are made."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tiledblend.describe.placement import Placement, overlaps, place
from tiledblend.display import ShownInNotebooks
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Affine, Region, ceil_div, is_square
from tiledblend.kernels.blend import Mode
from tiledblend.kernels.feather import FeatherKernel
from tiledblend.kernels.morphology import Growth
from tiledblend.sources.base import SUPPORTED_DTYPES, Alpha, RasterSource
from tiledblend.sources.outlines.source import PolygonSource

_LENGTH = re.compile(r"^\s*([-+0-9.eE]+)\s*(px|um|µm|μm|)\s*$")


@dataclass(frozen=True, slots=True)
class Length:
    """A distance on the canvas: pixels of the full canvas, or micrometres.

    >>> Length.parse("12um"), Length.parse(3)
    (Length(value=12.0, unit='um'), Length(value=3.0, unit='px'))
    """

    value: float
    unit: Literal["px", "um"] = "px"

    def __post_init__(self) -> None:
        _plain(self, "value", float, "length")
        if not math.isfinite(self.value):
            raise UsageError(f"length {self.value} {self.unit} must be finite")
        if self.unit not in ("px", "um"):
            raise UsageError(f"length unit {self.unit!r} must be px or um")

    @classmethod
    def parse(cls, value: Any) -> Length:
        """From a number of pixels, or text such as "16px" or "8um". Raises ValueError for anything else."""
        if isinstance(value, Length):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(float(value))
        match = _LENGTH.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is no length")
        return cls(float(match[1]), "px" if match[2] in ("px", "") else "um")

    def pixels(self, pixel_um: float | None, what: str) -> float:
        """In pixels of `pixel_um` micrometres. Raises UsageError naming `what` when that is not known."""
        if self.unit == "px":
            return self.value
        if pixel_um is None:
            raise UsageError(
                f"{what} {self} needs a pixel size, and the canvas has none; give it in px, or the size with --mpp"
            )
        return self.value / pixel_um

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Feather:
    """Width of a layer's edge: a Gaussian's sigma in pixels of the canvas or in micrometres, or OpenCV's kernel size.

    >>> Feather.parse("16px") == Feather.px(16), Feather.parse("ksize:5") == Feather.ksize(5)
    (True, True)
    """

    sigma: float = 0.0
    unit: Literal["px", "um"] = "px"
    kernel_size: int | None = None

    def __post_init__(self) -> None:
        _plain(self, "sigma", float, "feather sigma")
        if self.kernel_size is not None:
            _plain(self, "kernel_size", operator.index, "feather ksize")
        if not math.isfinite(self.sigma) or self.sigma < 0:
            raise UsageError(f"feather sigma {self.sigma} must be 0 or more; use for example --feather 16px")
        if self.unit not in ("px", "um"):
            raise UsageError(f"feather unit {self.unit!r} must be px or um")
        FeatherKernel(0.0 if self.kernel_size is None else self.sigma, self.kernel_size)

    @classmethod
    def px(cls, sigma: float) -> Feather:
        """Sigma in canvas pixels."""
        return cls(sigma)

    @classmethod
    def um(cls, sigma: float) -> Feather:
        """Sigma in micrometres; needs a canvas with a pixel size."""
        return cls(sigma, "um")

    @classmethod
    def ksize(cls, size: int) -> Feather:
        """OpenCV's `GaussianBlur(mask, (size, size), 0)`."""
        return cls(0.0, "px", size)

    @classmethod
    def parse(cls, value: Any) -> Feather:
        """From a job file or a flag: 0, 16, "16px", "8um", "ksize:5", {"sigma": "16px"}, {"ksize": 5}."""
        if isinstance(value, Feather):
            return value
        if isinstance(value, dict) and len(value) == 1:
            key, inner = next(iter(value.items()))
            if key == "sigma":
                return cls.parse(inner)
            if key == "ksize" and isinstance(inner, int) and not isinstance(inner, bool):
                return cls.ksize(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls.px(value)
        elif isinstance(value, str):
            if value.startswith("ksize:") and value[6:].strip().isdecimal():
                return cls.ksize(int(value[6:]))
            try:
                length = Length.parse(value)
            except ValueError:
                raise UsageError(f"feather {value!r} is not understood; use 16px, 8um or ksize:5") from None
            return cls(length.value, length.unit)
        raise UsageError(f"feather {value!r} is not understood; use 16px, 8um or ksize:5")

    def kernel(self, pixel_size_um: tuple[float, float] | None, reduction: float = 1.0) -> FeatherKernel:
        """The filter on the grid of a canvas with pixels of this size, or of one that is `reduction` times smaller.

        There OpenCV's kernel is the Gaussian that OpenCV takes it for.
        """
        if reduction != 1:
            full = self.kernel(pixel_size_um)
            # cv2.getGaussianKernel's sigma for a given size; at 1 it leaves the pixels alone
            if full.ksize is not None:
                return FeatherKernel(0.0 if full.ksize == 1 else (0.3 * ((full.ksize - 1) * 0.5 - 1) + 0.8) / reduction)
            y, x = full.sigmas
            return FeatherKernel((y / reduction, x / reduction))
        if self.kernel_size is not None:
            return FeatherKernel(0.0, self.kernel_size)
        if self.unit == "px" or self.sigma == 0:
            return FeatherKernel(self.sigma)
        if pixel_size_um is None:
            raise UsageError(
                f"feather {self.sigma:g}um needs a pixel size, and the canvas has none; give the feather in px"
            )
        y, x = pixel_size_um
        if not is_square(pixel_size_um):
            return FeatherKernel((self.sigma / y, self.sigma / x))
        return FeatherKernel(self.sigma / math.sqrt(y * x))


@dataclass(frozen=True, slots=True)
class Labels:
    """Mask values that count as inside; all others are outside.

    >>> Labels((2, 5)).values
    (2, 5)
    """

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        given: Any = self.values
        try:
            object.__setattr__(self, "values", tuple(map(operator.index, given)))
        except TypeError:
            raise UsageError(f"mask_values labels {given!r} must be whole numbers, such as (2, 5)") from None
        if not self.values:
            raise UsageError("mask_values labels must name at least one label")


MaskValues = Literal["auto", "binary"] | tuple[float, float] | Labels


def checked_mask_values(values: Any) -> MaskValues:
    """How a mask's numbers become 0..1, [lo, hi] as a tuple of floats. Raises UsageError."""
    if isinstance(values, Labels):
        return values
    if isinstance(values, str):
        if values == "auto":
            return "auto"
        if values == "binary":
            return "binary"
        raise UsageError(f"mask_values {values!r} must be auto, binary, [lo, hi] or labels")
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"mask_values {values!r} must be auto, binary, (lo, hi) or Labels((2, 5))") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"mask_values {[low, high]} must be [lo, hi] with lo below hi")
    return low, high


def _plain(described: Any, name: str, made: Callable[[Any], Any], what: str) -> None:
    """A field of a frozen description as a number of Python's own. Raises UsageError."""
    given = getattr(described, name)
    try:
        if isinstance(given, (str, bool)):
            raise TypeError
        object.__setattr__(described, name, made(given))
    except (TypeError, ValueError):
        raise UsageError(f"{what} {given!r} must be {'a number' if made is float else 'a whole number'}") from None


@dataclass(frozen=True, slots=True)
class Layer:
    """An image with its weight and its place on the canvas.

    image: the colours. mask: one-channel (or RGB) source, "alpha" for the image's own alpha channel, or None (opaque).
    mask_values: how the mask's numbers become 0..1. mask_frame: what the mask covers, this layer or the whole canvas
    (None: the canvas for polygons, else the layer).
    feather_side: "both" or "inside" (None: inside for alpha, else both). opacity: 0..1. offset: (y, x) of the image's
    top-left corner on the canvas, whole pixels or `Length`s (also "12um"), may be negative; None: not placed, so the
    sizes must agree. fit: "canvas" resamples image and mask to the canvas's size, "physical" by the pixel sizes of
    layer and canvas. pixel_size_um: (y, x) of the image, instead of what its file says. affine: maps points (x, y) of
    the layer to points of the canvas, instead of offset and fit; rows [[a, b, c], [d, e, f]] will do (`Affine`).
    grow: the mask grows by this much on the canvas before it is feathered (negative: shrinks), in pixels or "8um".

    An offset in micrometres is rounded to a whole pixel of the canvas where the layer's pixels are not resampled.
    """

    image: RasterSource
    mask: RasterSource | Literal["alpha"] | None = None
    mask_values: MaskValues = "auto"
    mask_frame: Literal["layer", "canvas"] | None = None
    invert: bool = False
    feather: Feather = field(default_factory=Feather)
    feather_side: Literal["both", "inside"] | None = None
    opacity: float = 1.0
    offset: tuple[int, int] | tuple[Length, Length] | None = None
    fit: Literal["canvas", "physical"] | None = None
    pixel_size_um: tuple[float, float] | None = None
    affine: Affine | None = None
    grow: Length | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.mask_frame is None:
            object.__setattr__(self, "mask_frame", "canvas" if isinstance(self.mask, PolygonSource) else "layer")
        if not 0 <= self.opacity <= 1:
            raise UsageError(f"opacity {self.opacity} of layer {self.image.name} must be from 0 to 1")
        if self.affine is not None and (self.fit is not None or self.offset is not None):
            raise UsageError(
                f"layer {self.image.name} has an affine and {'fit' if self.fit else 'an offset'}; give one"
            )
        if self.fit == "canvas" and self.offset not in (None, (0, 0)):
            raise UsageError(f"layer {self.image.name} has both fit canvas and an offset; give one of them")
        if self.mask_frame not in ("layer", "canvas") or self.fit not in (None, "canvas", "physical"):
            raise UsageError(
                f"layer {self.image.name}: mask_frame must be layer or canvas, fit must be none, canvas or physical"
            )
        if self.mask is None:
            self._refuse_what_needs_a_mask()
        if self.feather_side not in (None, "both", "inside"):
            raise UsageError(f"layer {self.image.name}: feather_side {self.feather_side!r} must be both or inside")
        if self.mask == "alpha" and self.image.alpha is Alpha.NONE:
            raise BadInputError(
                f"{self.image.name}: mask is alpha, but the image has {self.image.channels} channels "
                "and no alpha; give a mask file"
            )
        self._check_mask_channels()

    def _check_kinds(self) -> None:
        """Python callers get words for what would fail much later; lists become tuples."""
        if not isinstance(self.image, RasterSource):
            raise UsageError(f"image {self.image!r} must be a source; use tiledblend.open or tiledblend.from_array")
        is_alpha = isinstance(self.mask, str) and self.mask == "alpha"
        if not (self.mask is None or is_alpha or isinstance(self.mask, RasterSource)):
            raise UsageError(
                f"mask {self.mask!r} must be a source (use tiledblend.open or tiledblend.from_array), 'alpha' or None"
            )
        if not isinstance(self.feather, Feather):
            raise UsageError(f"feather {self.feather!r} must be a Feather; use for example Feather.px(16)")
        _plain(self, "opacity", float, f"opacity of layer {self.image.name}")
        if not isinstance(self.invert, (bool, np.bool_)):
            raise UsageError(f"layer {self.image.name}: invert {self.invert!r} must be True or False")
        object.__setattr__(self, "invert", bool(self.invert))
        object.__setattr__(self, "mask_values", checked_mask_values(self.mask_values))
        if self.offset is not None:
            object.__setattr__(self, "offset", _offset(self.offset))
        if self.grow is not None:
            object.__setattr__(self, "grow", _grow(self.grow))
        matrix: Any = self.affine
        if not (matrix is None or isinstance(matrix, Affine)):
            object.__setattr__(self, "affine", Affine.of_matrix(matrix))
        if self.pixel_size_um is not None:
            object.__setattr__(self, "pixel_size_um", _pixel_size(self.pixel_size_um, self.image.name))

    def _refuse_what_needs_a_mask(self) -> None:
        """A mask that was forgotten would else show the whole layer, without a word."""
        given = {"grow": self.grow is not None, "invert": self.invert, "mask_values": self.mask_values != "auto"}
        for what in (name for name, is_given in given.items() if is_given):
            raise UsageError(f"layer {self.image.name}: {what} needs a mask")

    def _check_mask_channels(self) -> None:
        if isinstance(self.mask, RasterSource) and not (self.mask.channels == 1 or _is_rgb_mask(self.mask)):
            raise BadInputError(
                f"mask {self.mask.name} has {self.mask.channels} channels; a mask has one (or is RGB, "
                "taken as luma): select one with channels"
            )

    @property
    def known_pixel_size_um(self) -> tuple[float, float] | None:
        """(y, x) of the image's pixels: as stated, else as the file says."""
        return self.pixel_size_um or self.image.pixel_size_um

    @property
    def side(self) -> Literal["both", "inside"]:
        """The feather's side with its default resolved."""
        if self.feather_side is not None:
            return self.feather_side
        return "inside" if self.mask == "alpha" else "both"

    @property
    def colours(self) -> int:
        """Number of colour channels, alpha left out."""
        return self.image.channels - (self.image.alpha is not Alpha.NONE)


def _grow(given: Any) -> Length | None:
    """None for nothing."""
    try:
        length = Length.parse(given)
    except UsageError:
        raise
    except ValueError:
        raise UsageError(f"grow {given!r} is not understood; use 8px, -3um") from None
    return length if length.value else None


def _offset(given: Any) -> tuple[int, int] | tuple[Length, Length]:
    try:
        if isinstance(given, str):
            raise ValueError("one text is no pair")
        y, x = (Length.parse(v) if isinstance(v, (str, Length)) else operator.index(v) for v in given)
    except UsageError:
        raise
    except (TypeError, ValueError):
        raise UsageError(
            f"offset {given!r} must be two whole numbers of pixels, (y, x), or two lengths such as 12um"
        ) from None
    if isinstance(y, int) and isinstance(x, int):
        return y, x
    return Length.parse(y), Length.parse(x)


def _pixel_size(given: Any, name: str) -> tuple[float, float]:
    try:
        y, x = (float(given),) * 2 if np.ndim(given) == 0 else (float(size) for size in given)
    except (TypeError, ValueError):
        y = x = math.nan
    if not all(math.isfinite(size) and size > 0 for size in (y, x)):
        raise UsageError(f"pixel size {given!r} of {name} must be one or two ([y, x]) positive numbers of micrometres")
    return y, x


def _is_rgb_mask(mask: RasterSource) -> bool:
    return mask.channels - (mask.alpha is not Alpha.NONE) in (1, 3)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The level-0 pixel grid of the result. None: taken from the layers.

    shape: (y, x). channels: alpha included. dtype: uint8, uint16 or float32. pixel_size_um: (y, x) micrometres.
    """

    shape: tuple[int, int]
    channels: int | None = None
    dtype: str | None = None
    is_rgb: bool | None = None
    has_alpha: bool | None = None
    pixel_size_um: tuple[float, float] | None = None
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            y, x = map(operator.index, self.shape)
        except (TypeError, ValueError):
            y = x = 0
        if min(y, x) < 1:
            raise UsageError(f"canvas shape {self.shape!r} must be two positive whole numbers of pixels, [Y, X]")
        object.__setattr__(self, "shape", (y, x))
        if self.channels is not None:
            _plain(self, "channels", operator.index, "canvas channels")
        if self.dtype is not None:
            try:
                object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
            except TypeError:
                raise UsageError(
                    f"canvas dtype {self.dtype!r} is not known; use {', '.join(SUPPORTED_DTYPES)}"
                ) from None
        if self.pixel_size_um is not None:
            object.__setattr__(self, "pixel_size_um", _pixel_size(self.pixel_size_um, "the canvas"))


@dataclass(frozen=True)
class Composite(ShownInNotebooks):
    """Layers on a canvas, bottom first.

    mode: "over" (bottom to top) or "average". background: a number for all channels or one per channel, in the
    dtype's units. canvas: the first layer's grid unless given; what it leaves open is filled in from the layers.
    reduction: what is rendered is this many times smaller than the canvas (see `describe.levels`); offsets and
    feathers stay those of the full canvas.

    Raises BadInputError where layers do not agree (both sizes, dtypes or channel counts are named), UsageError for bad
    parameters.
    """

    layers: tuple[Layer, ...]
    mode: Mode = "over"
    background: float | tuple[float, ...] = 0
    canvas: Canvas | None = None
    reduction: float = 1.0

    def __init__(
        self,
        layers: Sequence[Layer],
        mode: Mode = "over",
        background: float | Sequence[float] = 0,
        canvas: Canvas | None = None,
        reduction: float = 1.0,
    ) -> None:
        object.__setattr__(self, "layers", _layers(layers))
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "reduction", reduction)
        _plain(self, "reduction", float, "reduction")
        object.__setattr__(self, "background", _background(background))
        if not self.layers:
            raise UsageError("a composite needs at least one layer")
        if not (canvas is None or isinstance(canvas, Canvas)):
            raise UsageError(f"canvas {canvas!r} must be a Canvas; use for example Canvas((4000, 6000))")
        if mode not in ("over", "average"):
            raise UsageError(f"mode {mode!r} must be over or average")
        if not (math.isfinite(self.reduction) and self.reduction >= 1):
            raise UsageError(f"reduction {reduction} must be 1 or more: a composite is not enlarged")
        object.__setattr__(self, "canvas", self._resolved(canvas))
        placed = tuple(_with_placed_polygons(layer, self.full.shape) for layer in self.layers)
        object.__setattr__(self, "layers", placed)
        self._check_layers()
        self.background_values()

    def _resolved(self, canvas: Canvas | None) -> Canvas:
        base = self.layers[0]
        given = canvas or Canvas(base.image.shape, pixel_size_um=base.known_pixel_size_um)
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
        size = full.pixel_size_um
        return replace(full, shape=self.shape, pixel_size_um=None if size is None else (size[0] * by, size[1] * by))

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
        if layer.fit == "physical" and (size := self._layer_pixels(layer)) != (1.0, 1.0):
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
        y, x = (layer.affine and layer.affine.whole_shift) or layer.offset or (0, 0)
        sizes = self.full.pixel_size_um or (None, None)
        first, second = (Length.parse(v).pixels(size, "offset") for v, size in zip((y, x), sizes, strict=True))
        return first, second

    def offset(self, layer: Layer) -> tuple[int, int]:
        """(y, x) of the layer's corner as it is taken where its pixels are not resampled: rounded, halves up."""
        y, x = self.exact_offset(layer)
        return math.floor(y + 0.5), math.floor(x + 0.5)

    def _layer_pixels(self, layer: Layer) -> tuple[float, float]:
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
            _check_image(layer, base, self)
            _check_placement(layer, self)
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


def _check_image(layer: Layer, base: Layer, composite: Composite) -> None:
    image = layer.image
    if image.info.problem:
        raise BadInputError(f"{image.name}: {image.info.problem}")
    if image.dtype.name not in SUPPORTED_DTYPES:
        raise BadInputError(
            f"{image.name}: dtype {image.dtype.name} cannot be blended; convert it to one of "
            f"{', '.join(SUPPORTED_DTYPES)}"
        )
    if base.image.dtype != composite.dtype:
        raise BadInputError(
            f"canvas dtype is {composite.dtype.name}, but {base.image.name} is {base.image.dtype.name}; leave it out"
        )
    if image.dtype != composite.dtype:
        raise BadInputError(
            f"{image.name} is {image.dtype.name}, but {base.image.name} is {composite.dtype.name}; convert one of them"
        )
    if layer.colours != base.colours:
        raise BadInputError(
            f"{image.name} has {layer.colours} colour channels, but {base.image.name} has "
            f"{base.colours}; select channels so that they agree"
        )


FIELD_TOLERANCE = 0.01


def _check_placement(layer: Layer, composite: Composite) -> None:
    size, canvas, name = layer.image.shape, composite.full.shape, layer.image.name
    if layer.fit is None and layer.offset is None and layer.affine is None and size != canvas:
        base = composite.layers[0].image
        of_base = f", as {base.name} is" if base.shape == canvas else ""
        known = layer.known_pixel_size_um is not None and composite.full.pixel_size_um is not None
        raise BadInputError(
            f"{name} is {size[0]} x {size[1]} pixels (y x x), but the canvas is {canvas[0]} x {canvas[1]}{of_base}; "
            f"give --offset Y,X to place it{', --fit physical to place it by micrometres' if known else ''} "
            "or --fit canvas to resample it"
        )
    if layer.fit == "physical" and layer.offset is None:
        _check_same_field(layer, composite)
    if composite.reduction == 1 and not overlaps(composite.placement(layer), size, canvas):
        raise BadInputError(
            f"{name} of {size[0]} x {size[1]} pixels {_placed_by(layer)} lies wholly outside the canvas of "
            f"{canvas[0]} x {canvas[1]}{'; does the matrix map the other way?' if layer.affine else ''}"
        )


def _placed_by(layer: Layer) -> str:
    if layer.affine is not None:
        return f"mapped by {layer.affine.rows}"
    return "at offset 0, 0" if layer.offset is None else f"at offset {layer.offset[0]}, {layer.offset[1]}"


def _check_same_field(layer: Layer, composite: Composite) -> None:
    """Without an offset, layer and canvas show one field: what their sizes say of the scale must agree with what their
    pixel sizes say."""
    scale, size, canvas = composite._layer_pixels(layer), layer.image.shape, composite.full.shape
    reach = tuple(n * s for n, s in zip(size, scale, strict=True))
    if all(abs(r - n) <= FIELD_TOLERANCE * n + max(1.0, s) for r, n, s in zip(reach, canvas, scale, strict=True)):
        return
    own, full = layer.known_pixel_size_um, composite.full.pixel_size_um
    assert own is not None
    assert full is not None
    raise BadInputError(
        f"{layer.image.name}: its {_field(size, own)} (y x x), the canvas's {_field(canvas, full)}: sizes and pixel "
        "sizes disagree; "
        "correct a pixel size with pixel_size_um, or give --offset 0,0 if the corners coincide"
    )


def _field(shape: tuple[int, int], um: tuple[float, float]) -> str:
    covered = " x ".join(f"{n * size:,.0f}" for n, size in zip(shape, um, strict=True))
    return f"{shape[0]} x {shape[1]} pixels of {um[0]:g} x {um[1]:g} um cover {covered} um"


def mask_field(layer: Layer, composite: Composite) -> tuple[int, int]:
    """(y, x) of what the layer's mask covers: pixels of the layer's level 0, or of the full canvas."""
    if layer.mask_frame == "canvas" or layer.fit == "canvas":
        return composite.full.shape
    return layer.image.shape


def mask_scaling(layer: Layer, composite: Composite) -> int | None:
    """How a raster mask lies in its frame: the power of two f by which each mask pixel is repeated, or None for the
    ratio of the sizes.

    f is taken when |f * mask - frame| < f on both axes; else the aspect must agree to within one mask pixel
    (`fit` resamples to the canvas whatever the aspect). Raises BadInputError naming both sizes.
    """
    assert isinstance(layer.mask, RasterSource)
    mask, frame = layer.mask.shape, mask_field(layer, composite)
    if mask == frame:
        return 1
    if layer.fit == "canvas" and layer.mask_frame == "layer":
        return None
    for power in range(1, 31):
        f = 1 << power
        if all(abs(f * m - n) < f for m, n in zip(mask, frame, strict=True)):
            return f
    if abs(mask[0] - frame[0] * mask[1] / frame[1]) <= 1 or abs(mask[1] - frame[1] * mask[0] / frame[0]) <= 1:
        return None
    raise BadInputError(
        f"mask {layer.mask.name} is {mask[0]} x {mask[1]} pixels (y x x), which does not match "
        f"the {layer.mask_frame} of {frame[0]} x {frame[1]} "
        "at any scale; give a mask of the same field of view"
    )
