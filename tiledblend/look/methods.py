"""How a result was made, in sentences for a methods section: true of its container and its compression."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tiledblend import __version__
from tiledblend.compose.scene import Scene
from tiledblend.describe.layers import Labels
from tiledblend.describe.lengths import Feather
from tiledblend.describe.matching import tone_text
from tiledblend.geometry import Region
from tiledblend.kernels.tone import Tone
from tiledblend.sources.base import RasterSource
from tiledblend.sources.outlines.source import PolygonSource

LOOKED_AT_PX = 2048


@dataclass(frozen=True)
class Made:
    """What a run made. uri: the result. kind: for people, such as "OME-Zarr 0.5 pyramid of 7 levels, zstd:1". facts:
    of the run, as `--json` prints them. compression: of what is stored, such as "zstd:1", "jpeg:80", "keep"."""

    uri: str
    kind: str
    facts: dict[str, Any]
    compression: str = "none"


def methods_text(scene: Scene, made: Made) -> str:
    """How the result was made, in sentences to be copied."""
    composite = scene.composite
    height, width = composite.shape
    size = composite.grid.pixel_size_um
    scale = "" if size is None else f" at {_um(size)} per pixel"
    weighted = partial(_weighted, scene, _covered(scene))
    names = [file_name(layer.image) for layer in composite.layers]
    canvas = f"{height:,} × {width:,} pixels (y × x){scale}"
    sentences = [f"Images were composited with tiledblend {__version__} on a canvas of {canvas}."]
    if len(composite.layers) == 1:
        sentences.append(f"{names[0]} is the only layer{weighted(0)}.")
    elif composite.mode == "over":
        sentences.append(f"{names[0]} is the base{weighted(0)}.")
        sentences += [f"{name} was blended over it{weighted(number)}." for number, name in enumerate(names[1:], 1)]
        sentences.append("Each pixel is w · overlay + (1 − w) · what lies below, w the layer's weight.")
    elif composite.mode == "stack":
        parts = "; ".join(f"{name}{weighted(number)}" for number, name in enumerate(names))
        sentences.append(f"The channels of the layers were stacked one after another: {parts}.")
    else:
        parts = "; ".join(f"{name}{weighted(number)}" for number, name in enumerate(names))
        sentences.append(f"The layers were averaged by their weights w, Σ w · image / Σ w: {parts}.")
    sentences.append(
        "Computed in 32-bit floating point and rounded once, half to even; where one layer alone has weight the "
        f"computed pixels are its own. The result is stored as {made.kind}{_kept(made.compression)}."
    )
    return " ".join(sentences)


def _kept(compression: str) -> str:
    """What the compression leaves of the pixels."""
    name, _, quality = compression.partition(":")
    if name == "keep":
        return ": tiles that one layer decides are stored as its file has them, the others compressed as those are"
    if name in ("jpeg", "jpg", "webp"):
        of = f" of quality {quality}" if quality else ""
        return f", which loses detail: JPEG compression{of} changes stored pixels everywhere, by little"
    return ", without loss: stored pixels are the computed ones"


def _covered(scene: Scene) -> list[float | None]:
    """Share of the canvas that each layer's mask covers (from one half on), unfeathered, on a small copy."""
    level = max(0, math.ceil(math.log2(max(scene.shape) / LOOKED_AT_PX)))
    hard = tuple(replace(layer, feather=Feather()) for layer in scene.composite.layers)
    small = scene.derived(replace(scene.composite, layers=hard)).at_level(level)
    fields = small.fields(Region.of_shape(small.shape))
    return [
        float((field.cover(Region.of_shape(small.shape)) >= 0.5 * reader.layer.opacity).mean())
        if reader.has_mask and reader.layer.opacity > 0
        else None
        for reader, field in zip(small.readers, fields, strict=True)
    ]


def _mask(scene: Scene, number: int, covered: float | None) -> str:
    """Such as "by the mask a.geojson (3 outlines of class Tumor; 12.3 % of the canvas, 4.56 mm²)"."""
    layer, told = scene.composite.layers[number], []
    assert isinstance(layer.mask, RasterSource)
    if isinstance(layer.mask, PolygonSource):
        of = f" of class {' and '.join(layer.mask.spec.classes)}" if layer.mask.spec.classes else ""
        told.append(f"{layer.mask.count:,} outline{'s' * (layer.mask.count != 1)}{of}")
    if layer.threshold is not None:
        told.append(f"values from {layer.threshold:g} on")
    elif isinstance(layer.mask_values, Labels):
        told.append(f"labels {', '.join(map(str, layer.mask_values.values))}")
    elif isinstance(layer.mask_values, tuple):
        told.append("values {:g} to {:g} as 0 to 1".format(*layer.mask_values))
    if covered is not None:
        size, (height, width) = scene.composite.grid.pixel_size_um, scene.shape
        area = "" if size is None else f", {covered * height * width * size[0] * size[1] / 1e6:.3g} mm²"
        told.append(f"{100 * covered:.3g} % of the canvas{area}")
    name = f"{'inverted ' if layer.invert else ''}mask {file_name(layer.mask)}"
    return f"by the {name} ({'; '.join(told)})" if told else f"by the {name}"


def _um(size: tuple[float, float]) -> str:
    y, x = (f"{value:.4g}" for value in size)
    return f"{y} µm" if y == x else f"{y} × {x} µm (y × x)"


def _weighted(scene: Scene, covered: list[float | None], number: int) -> str:
    """Such as " by the mask m.tif (12 % of the canvas), feathered by a Gaussian of σ = 16 px (8 µm)"."""
    composite, layer = scene.composite, scene.composite.layers[number]
    parts = []
    if layer.mask == "alpha":
        parts.append("by its alpha channel")
    elif isinstance(layer.mask, RasterSource):
        parts.append(_mask(scene, number, covered[number]))
    if layer.grow is not None:
        parts.append(f"grown by {layer.grow}")
    if layer.feather.band_count is not None:
        parts.append(f"blended in {layer.feather.band_count} bands (Burt & Adelson 1983)")
    elif layer.feather.kernel_size is not None:
        parts.append(f"feathered by OpenCV's {layer.feather.kernel_size} × {layer.feather.kernel_size} Gaussian kernel")
    elif layer.feather.sigma:
        (y, x), size = composite.kernel(layer).sigmas, composite.grid.pixel_size_um
        sigma = f"{y:.4g} px" if y == x else f"{y:.4g} × {x:.4g} px (y × x)"
        length = "" if size is None else f" ({x * size[1]:.3g} µm)"
        parts.append(f"feathered by a Gaussian of σ = {sigma}{length}")
    if layer.side == "inside" and layer.feather != type(layer.feather)():
        parts.append("inwards only")
    if layer.opacity != 1:
        parts.append(f"at an opacity of {layer.opacity:g}")
    if isinstance(layer.match, Tone):
        parts.append(f"its tone matched ({tone_text(layer.match)})")
    if layer.operator != "normal":
        parts.append(f"its colours meeting those below by {layer.operator} (W3C Compositing and Blending)")
    if layer.affine is not None:
        parts.append("registered by an affine matrix")
    elif layer.offset not in (None, (0, 0)):
        parts.append(f"at offset {layer.offset} (y, x)")
    return f" {', '.join(parts)}" if parts else ""


def file_name(source: RasterSource) -> str:
    """Of the file alone, without its folder."""
    return Path(source.spec.path).name
