"""The colour of empty glass near a mask: what `color: auto` of a layer is settled to, once, before anything is made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.scene import Scene, decide
from tiledblend.describe.job import build
from tiledblend.describe.lengths import Feather
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.morphology import Growth, grown

log = logging.getLogger("tiledblend")

LOOKED_AT_PX = 1024
RING_PX, GAP_PX = 48, 2
"""On the small copy: how far around the mask is looked, and what next to it may still be ink."""
GLASS_RANGE = 0.05
"""Of full scale: how far from the most frequent light value glass lies."""
ENOUGH = 64


def with_colours_settled(mapping: Mapping[str, Any], *, where: str = "job") -> dict[str, Any]:
    """The job's mapping with every `color: auto` as numbers: the median of the glass near the layer's mask.

    Glass is what is about as light as the most frequent light value, by the darkest of the three channels, within a
    ring around the mask on a small copy of the base; on all of the base where the ring has none. It is said.

    Raises UsageError for images that are not RGB and for a layer without a mask, and where there is no glass.
    """
    wanted = [number for number, layer in enumerate(mapping["layers"]) if layer.get("color") == "auto"]
    if not wanted:
        return dict(mapping)
    plain = [layer | {"color": 0} if layer.get("color") == "auto" else dict(layer) for layer in mapping["layers"]]
    scene = decide(build({**mapping, "layers": plain}, where=where).composite)
    for number in wanted:
        plain[number]["color"] = _colour(scene, number)
    return {**mapping, "layers": plain}


def _colour(scene: Scene, number: int) -> list[float]:
    layer, base = scene.composite.layers[number], scene.composite.layers[0]
    if layer.mask is None:
        raise UsageError("color auto is what the glass near a mask has: give the layer a mask, or a colour of numbers")
    if not base.image.is_rgb:
        raise UsageError(f"color auto is for RGB slides, and {base.image.name} is none; give the colour in numbers")
    small = scene.derived(replace(scene.composite, layers=_unfeathered(scene)))
    small = small.at_level(max(0, (max(scene.shape) // LOOKED_AT_PX).bit_length() - 1))
    whole = Region.of_shape(small.shape)
    inside = small.fields(whole)[number].cover(whole) > 0
    visible = small.readers[0].visible
    pixels, alpha = small.readers[0].read(visible)
    shown = np.zeros(small.shape, np.bool_)
    shown[visible.slices] = True if alpha is None else alpha == 1
    colours = np.zeros((*small.shape, 3), np.float32)
    colours[visible.slices] = pixels
    found, count, near = _glass(
        colours, shown & ~inside, grown(inside, Growth(RING_PX)) & ~grown(inside, Growth(GAP_PX))
    )
    if base.image.dtype.kind == "u":
        found = [float(round(value)) for value in found]
    place = "near the mask" if near else "of the slide: there is none near the mask"
    log.info("fill %s: the median of %s pixels of glass %s", ", ".join(f"{v:g}" for v in found), f"{count:,}", place)
    return found


def _unfeathered(scene: Scene) -> tuple[Any, ...]:
    return tuple(replace(layer, feather=Feather(), opacity=1.0) for layer in scene.composite.layers)


def _glass(colours: NDArray[np.float32], usable: NDArray[Any], ring: NDArray[Any]) -> tuple[list[float], int, bool]:
    """(colour, from how many pixels, whether they are of the ring)."""
    darkest = colours.min(axis=2)
    values = darkest[usable]
    if not values.size:
        raise UsageError("color auto finds no pixels outside of the mask; give the colour in numbers")
    low, high = float(values.min()), float(values.max())
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    least = low + level * (high - low) / 255
    for where, near in ((usable & ring, True), (usable, False)):
        light = darkest[where & (darkest >= least)]
        if light.size < (ENOUGH if near else 1):
            continue
        counts, edges = np.histogram(light, bins=64, range=(least, max(high, least + 1e-9)))
        peak = float(edges[int(counts.argmax())] + edges[int(counts.argmax()) + 1]) / 2
        reach = GLASS_RANGE * (255 if high > 1 else 1) * (257 if high > 255 else 1)
        glass = where & (np.abs(darkest - peak) <= reach)
        return [float(value) for value in np.median(colours[glass], axis=0)], int(glass.sum()), near
    raise UsageError("color auto finds no glass; give the colour in numbers")
