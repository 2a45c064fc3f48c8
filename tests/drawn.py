"""Random composites for hypothesis: the same layers as `Picture`s for the reference and as a `Composite`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Picture, full_scale, power_of_two, same_aspect

from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Labels, Layer
from tiledblend.describe.lengths import Feather
from tiledblend.geometry import Grid
from tiledblend.kernels.tone import Tone
from tiledblend.sources import Alpha, from_array

Array = NDArray[Any]
MASK_KINDS = ("bool", "zero_one", "uint8", "uint16", "uint32", "float32", "float64", "rgb", "labels", "range", "binary")
PATTERNS = ("noise", "step", "blob", "pixel", "zeros", "ones", "stripes")
OPERATORS = (*["normal"] * 6, "multiply", "screen", "darken", "lighten", "difference")
SIGMAS = (0.0, 0.6, 1.5, 4.0, 11.9, 12.0, 19.0, 31.0)


@dataclass
class Case:
    """One drawn composite, its reference form and how its canvas is cut."""

    pictures: list[Picture]
    composite: Composite
    output: OutputSpec
    has_alpha: bool

    @property
    def grid(self) -> Grid:
        return self.output.grid(self.composite.shape)

    def __repr__(self) -> str:
        layers = [
            {
                key: (value.shape, value.dtype.name) if isinstance(value, np.ndarray) else value
                for key, value in vars(picture).items()
            }
            for picture in self.pictures
        ]
        canvas = self.composite
        return f"Case({canvas.shape}, {canvas.mode}, {canvas.background}, {self.output}, layers={layers})"


def pattern(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Array:
    """float64 (y, x) in [0, 1]."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    if kind == "noise":
        return rng.random(shape)
    if kind == "step":
        return (x >= rng.integers(0, shape[1] + 1)).astype(float)
    if kind == "blob":
        centre = rng.random(2) * shape
        return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (rng.random() * max(shape)) ** 2).astype(float)
    if kind == "pixel":
        out = np.zeros(shape)
        out[rng.integers(shape[0]), rng.integers(shape[1])] = 1
        return out
    if kind == "stripes":
        return ((y // int(rng.integers(1, 9))) % 2).astype(float)
    return np.full(shape, float(kind == "ones"))


def mask_values(unit: Array, kind: str) -> tuple[Array, Any]:
    """(mask in its dtype, `mask_values`) of a pattern."""
    if kind == "bool":
        return unit > 0.5, "auto"
    if kind == "zero_one":
        return (unit > 0.5).astype(np.uint8), "auto"
    if kind in ("uint8", "uint16", "uint32"):
        top = np.iinfo(kind).max
        grey = np.rint(unit * top).astype(kind)
        grey.flat[0] = top
        return grey, "auto"
    if kind == "float32":
        return unit.astype(np.float32), "auto"
    if kind == "rgb":
        grey = np.rint(np.stack([unit, 1 - unit, unit**2], axis=2) * 255).astype(np.uint8)
        grey[0, 0] = 255
        return grey, "auto"
    if kind == "labels":
        return np.rint(unit * 6).astype(np.int32), [2, 5, 6]
    if kind == "range":
        return np.rint(unit * 4095).astype(np.uint16), (0, 4095)
    if kind == "binary":
        return np.rint(unit * 5).astype(np.uint8), "binary"
    return unit, "auto"


def image(
    rng: np.random.Generator, shape: tuple[int, int], channels: int, dtype: str, alpha: str, odd: bool = False
) -> Array:
    """odd: float colours with NaN, infinities and negative zeros among them."""
    full = full_scale(dtype)
    pixels = rng.random((*shape, channels)) * full
    if odd and dtype == "float32":
        chosen = rng.integers(0, 12, pixels.shape)
        for number, value in enumerate((np.nan, np.inf, -np.inf, -0.0)):
            colours = pixels[..., : channels - (alpha != "none")]
            colours[chosen[..., : colours.shape[2]] == number] = value
    if alpha != "none":
        opacity = pixels[..., -1:] / full
        opacity = np.where(opacity < 0.3, 0, np.where(opacity > 0.6, 1, opacity))
        pixels[..., -1:] = opacity * full
        if alpha == "premultiplied":
            pixels[..., :-1] *= np.where(opacity == 0, np.nextafter(0, 1), opacity) if odd else opacity
    return pixels.astype(dtype) if dtype == "float32" else np.rint(pixels).astype(dtype)


@st.composite
def mask_shapes(draw: st.DrawFn, frame: tuple[int, int], fit: bool) -> tuple[int, int]:
    kind = draw(st.sampled_from(["same", "same", "f", "f", "ratio"]))
    if kind == "f":
        f = draw(st.sampled_from([2, 4, 8]))
        up = draw(st.booleans())
        shape = tuple(max(1, -(-n // f) if up else n // f) for n in frame)
    elif kind == "ratio":
        ratio = draw(st.sampled_from([0.3, 0.7, 1.4]))
        shape = tuple(max(1, round(n * ratio)) for n in frame)
    else:
        shape = frame
    if fit or power_of_two(shape, frame) or same_aspect(shape, frame):
        return shape  # type: ignore[return-value]
    return frame


@st.composite
def pictures(
    draw: st.DrawFn,
    rng: np.random.Generator,
    canvas: tuple[int, int],
    colours: int,
    dtype: str,
    bottom_alpha: bool,
    odd: bool,
    stretch: float | None,
) -> Picture:
    alpha = draw(st.sampled_from(["none", "none", "straight", "premultiplied"])) if not bottom_alpha else "straight"
    fit = draw(st.integers(0, 5)) == 0
    place = draw(st.sampled_from(["same", "same", "offset"])) if not fit else "fit"
    if place == "same":
        shape, offset = canvas, (0, 0)
    else:
        shape = tuple(draw(st.integers(1, n + 20)) for n in canvas)  # type: ignore[assignment]
        offset = tuple(draw(st.integers(1 - n, c - 1)) for n, c in zip(shape, canvas, strict=True))  # type: ignore
        offset = (0, 0) if fit else offset
    pixels = image(rng, shape, colours + (alpha != "none"), dtype, alpha, odd)
    feathering = draw(st.sampled_from(["none", "sigma", "sigma", "ksize"]))
    layer = Picture(
        pixels,
        alpha,
        invert=draw(st.booleans()),
        sigma=draw(st.sampled_from(SIGMAS)) if feathering == "sigma" else 0.0,
        ksize=draw(st.sampled_from([1, 3, 5, 7, 9, 11])) if feathering == "ksize" else None,
        opacity=draw(st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.3, 0.0])),
        offset=offset,
        fit=fit,
    )
    kind = draw(st.sampled_from(["none", "raster", "raster", "raster", "alpha"]))
    if kind == "alpha" and alpha != "none":
        layer.mask, layer.side = "alpha", "inside"
    elif kind != "none":
        layer.mask_frame = draw(st.sampled_from(["layer", "layer", "canvas"]))
        frame = canvas if layer.mask_frame == "canvas" or fit else shape
        unit = pattern(
            rng, draw(mask_shapes(frame, fit and layer.mask_frame == "layer")), draw(st.sampled_from(PATTERNS))
        )
        layer.mask, layer.values = mask_values(unit, draw(st.sampled_from(MASK_KINDS)))
        layer.side = draw(st.sampled_from(["both", "both", "inside"]))
    if stretch is not None and feathering == "sigma":
        layer.sigma = (layer.sigma, layer.sigma / stretch)
    return layer


def layer_of(picture: Picture, number: int) -> Layer:
    """The package's layer of a reference picture."""
    pixels, axes = picture.image, "yxc"
    if picture.image.shape[1] % 2:
        # Every other source has its channels first, in memory too.
        pixels, axes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), "cyx"
    source = from_array(pixels, axes=axes, name=f"image {number}", alpha=Alpha(picture.alpha))
    mask: Any = picture.mask
    if isinstance(mask, np.ndarray):
        mask = from_array(mask, axes="yx" if mask.ndim == 2 else "yxc", name=f"mask {number}", mask=True)
    if picture.bands is not None:
        feather = Feather.bands(picture.bands)
    elif picture.ksize is not None:
        feather = Feather.ksize(picture.ksize)
    elif isinstance(picture.sigma, tuple):
        # The canvas's rows are a micrometre high.
        feather = Feather.um(picture.sigma[0])
    else:
        feather = Feather.px(picture.sigma)
    return Layer(
        source,
        mask,
        mask_values=Labels(tuple(picture.values)) if isinstance(picture.values, list) else picture.values,
        mask_frame=picture.mask_frame,  # type: ignore[arg-type]
        invert=picture.invert,
        feather=feather,
        feather_side=None if picture.bands is not None else picture.side,  # type: ignore[arg-type]
        opacity=picture.opacity,
        offset=None if picture.fit else picture.offset,
        fit="canvas" if picture.fit else None,
        operator=picture.operator,  # type: ignore[arg-type]
        match=None if picture.gain is None else Tone(picture.gain, picture.tone_offset),
    )


@st.composite
def cases(draw: st.DrawFn, odd_floats: bool = False) -> Case:
    """Ragged canvases, 1 to 4 layers of every kind. odd_floats: NaN, infinities and negative zeros in float images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 100)), draw(st.integers(1, 100)))
    mode = draw(st.sampled_from(["over", "over", "average", "stack"]))
    dtype = draw(st.sampled_from(["uint8", "uint8", "uint16", "float32"]))
    has_alpha = mode != "stack" and draw(st.integers(0, 3)) == 0
    count = draw(st.sampled_from([1, 2, 2, 3, 4]))
    stretch = draw(st.sampled_from([None, None, 0.4, 3.0]))
    colours = [draw(st.sampled_from([1, 3, 3, 7]))] * count
    if mode == "stack":
        colours = [draw(st.sampled_from([1, 1, 3])) for _ in range(count)]
    stack = [
        draw(pictures(rng, shape, colours[i], dtype, has_alpha and i == 0, odd_floats, stretch)) for i in range(count)
    ]
    for picture in stack:
        if picture.mask is None:
            picture.invert = False
        if draw(st.integers(0, 3)) == 0:
            own = picture.image.shape[2] - (picture.alpha != "none")
            picture.gain = tuple(rng.uniform(0.5, 1.5, own).tolist())
            picture.tone_offset = tuple((rng.uniform(-0.2, 0.2, own) * full_scale(dtype)).tolist())
        if mode == "over":
            picture.operator = draw(st.sampled_from(OPERATORS))
            if not has_alpha and draw(st.integers(0, 3)) == 0:
                picture.bands, picture.sigma, picture.ksize, picture.side = draw(st.integers(1, 6)), 0.0, None, "both"
    channels = sum(colours) if mode == "stack" else colours[0] + has_alpha
    background: Any = 0
    if draw(st.booleans()):
        background = [float(v) for v in np.rint(rng.random(channels) * 200)]
        if has_alpha:
            background[-1] = full_scale(dtype) * draw(st.sampled_from([0.0, 0.4, 1.0]))
    composite = Composite(
        [layer_of(picture, i) for i, picture in enumerate(stack)],
        mode,
        background,
        Canvas(shape, channels, pixel_size_um=None if stretch is None else (1.0, stretch)),
    )
    chunk = draw(st.sampled_from([16, 16, 32, 64]))
    output = OutputSpec(
        chunk,
        chunk * draw(st.sampled_from([1, 2, 4])),
        ome_zarr=draw(st.sampled_from(["0.5", "0.5", "0.4"])),
    )
    return Case(stack, composite, output, has_alpha)
