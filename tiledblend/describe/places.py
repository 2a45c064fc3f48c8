"""Where images say that they lie, in micrometres of one space: what an OME-Zarr's translation places."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tiledblend.describe.lengths import Length
from tiledblend.errors import UsageError
from tiledblend.geometry import Affine

if TYPE_CHECKING:
    from tiledblend.describe.canvas import Canvas
    from tiledblend.describe.layers import Layer

Pair = tuple[float, float]
DECIMALS = 9
"""Of a place in pixels: what is left after micrometres were divided."""


def canvas_origin(base: Layer, canvas: Canvas) -> Pair | None:
    """(y, x) micrometres of the centre of the canvas's first pixel, by the bottom layer's; None where it says nothing.

    canvas: as given, its shape and pixel size.
    """
    own, size, pixel = base.image.origin_um, canvas.pixel_size_um, base.known_pixel_size_um
    is_elsewhere = base.affine is not None or (base.fit == "canvas" and base.image.shape != canvas.shape)
    if own is None or size is None or pixel is None or is_elsewhere:
        return None
    shift = tuple(Length.parse(value) for value in base.offset or (0, 0))
    if size == pixel and not any(length.value for length in shift):
        return own
    by = [
        length.value if length.unit == "um" else length.value * side for length, side in zip(shift, size, strict=True)
    ]
    y, x = (o - p / 2 - s + side / 2 for o, p, s, side in zip(own, pixel, by, size, strict=True))
    return y, x


def coarser_origin(origin: Pair | None, fine: Pair, coarse: Pair) -> Pair | None:
    """The same corner's first pixel centre, of larger pixels.

    >>> coarser_origin((10.0, 20.0), (0.5, 0.5), (1.0, 1.0))
    (10.25, 20.25)
    """
    if origin is None:
        return None
    return origin[0] + (coarse[0] - fine[0]) / 2, origin[1] + (coarse[1] - fine[1]) / 2


def stated_corner(layer: Layer, canvas: Canvas) -> Pair | None:
    """(y, x) of the layer's corner in pixels of the canvas, by where both say that they lie.

    None where one of them says nothing, or both that they begin at 0, as most images do that were never placed.
    """
    own, origin, pixel, size = layer.image.origin_um, canvas.origin_um, layer.known_pixel_size_um, canvas.pixel_size_um
    if own is None or origin is None or pixel is None or size is None or (not any(own) and not any(origin)):
        return None
    corners = ((o - p / 2) - (c - s / 2) for o, p, c, s in zip(own, pixel, origin, size, strict=True))
    y, x = (round(corner / s, DECIMALS) + 0.0 for corner, s in zip(corners, size, strict=True))
    return y, x


def by_scene(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers, those of fit "scene" with the affine that their store's scene says. Raises BadInputError, UsageError.

    The bottom layer is what the others are placed on; it may have an offset of whole pixels.
    """
    if not any(layer.fit == "scene" for layer in layers):
        return layers
    from tiledblend.sources.zarr.scene import layer_to_base

    base = layers[0]
    shift = [Length.parse(value) for value in base.offset or (0, 0)]
    if base.fit is not None or base.affine is not None or any(length.unit != "px" for length in shift):
        raise UsageError(
            f"layer {base.image.name}: the bottom layer of a scene lies as it is, or at an offset in pixels"
        )
    on_canvas = Affine.shifting(shift[1].value, shift[0].value)
    return tuple(
        replace(layer, fit=None, offset=None, affine=on_canvas.after(layer_to_base(layer.image, base.image)))
        if layer.fit == "scene"
        else layer
        for layer in layers
    )
