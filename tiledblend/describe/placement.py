"""Where a layer lies on the canvas that is rendered: its frame, the way back into its own pixels, its sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tiledblend.geometry import Affine, Region
from tiledblend.kernels.border import Side

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Placement:
    """frame: the canvas pixels that the layer may touch; it may reach beyond the canvas.

    to_layer: canvas points to points of the layer's level 0; None: the frame's pixels are the layer's own, or the layer
    fills the frame. warped: to_layer is the user's map, which is followed point by point, even where it only scales.
    sides: of the layer, where they lie on the canvas (only with to_layer).
    """

    frame: Region
    to_layer: Affine | None = None
    warped: bool = False
    sides: tuple[Side, ...] = ()


def place(to_layer: Affine, layer: tuple[int, int], canvas: tuple[float, float], *, warped: bool = False) -> Placement:
    """The placement of a layer of shape (y, x) on a canvas of (y, x) pixels, which may end within a pixel.

    A side of the layer that does not pass through the canvas's inside neither fades nor cuts.
    """
    height, width = layer
    back = to_layer.inverse()
    corners = [back.of(0, 0), back.of(width, 0), back.of(width, height), back.of(0, height)]
    frame = Region(
        math.floor(min(y for _, y in corners) + _TOLERANCE),
        math.floor(min(x for x, _ in corners) + _TOLERANCE),
        math.ceil(max(y for _, y in corners) - _TOLERANCE),
        math.ceil(max(x for x, _ in corners) - _TOLERANCE),
    )
    # Distances from the layer's own coordinates, which also decide where it is read: inside is 0 <= u < width.
    u, v = math.hypot(to_layer.a, to_layer.b), math.hypot(to_layer.d, to_layer.e)
    top = Side(to_layer.d / v, to_layer.e / v, to_layer.f / v, True)
    bottom = Side(-to_layer.d / v, -to_layer.e / v, (height - to_layer.f) / v, False)
    left = Side(to_layer.a / u, to_layer.b / u, to_layer.c / u, True)
    right = Side(-to_layer.a / u, -to_layer.b / u, (width - to_layer.c) / u, False)
    ends = zip((top, right, bottom, left), corners, [*corners[1:], corners[0]], strict=True)
    sides = tuple(side for side, start, stop in ends if _crosses(start, stop, canvas))
    return Placement(frame, to_layer, warped, sides)


def _crosses(start: tuple[float, float], stop: tuple[float, float], canvas: tuple[float, float]) -> bool:
    """True when a segment passes through the inside of the canvas (Liang and Barsky 1984)."""
    first, last = 0.0, 1.0
    for at, to, size in zip(start, stop, (canvas[1], canvas[0]), strict=True):
        low, high, step = _TOLERANCE - at, size - _TOLERANCE - at, to - at
        if abs(step) < _TOLERANCE:
            if low > 0 or high < 0:
                return False
            continue
        near, far = sorted((low / step, high / step))
        first, last = max(first, near), min(last, far)
    return first < last


def overlaps(placement: Placement, layer: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """True when part of the layer lies on the canvas."""
    if (placement.frame & Region.of_shape(canvas)).is_empty:
        return False
    if placement.to_layer is None or placement.to_layer.keeps_axes:
        return True
    import shapely

    back, (height, width) = placement.to_layer.inverse(), layer
    shape = shapely.Polygon([back.of(0, 0), back.of(width, 0), back.of(width, height), back.of(0, height)])
    area: float = shape.intersection(shapely.box(0, 0, canvas[1], canvas[0])).area
    return area > 0
