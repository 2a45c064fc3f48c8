"""A composite at a lower resolution, from the levels that its sources have: the canvas of one of the result's levels.

Every length scales with the canvas: a pixel of the smaller canvas covers `reduction` x `reduction` of the full one,
feathers in pixels are divided by it, layers keep their exact places (to a fraction of a pixel). Each source is read at
its coarsest level that is not coarser than the canvas; what is left is averaged by area (labels: the pixel under the
centre). So it is close to the same level of the full result, not the same bits: there blending comes first.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tiledblend.describe.composite import Composite
from tiledblend.describe.lengths import checked_pixel_size
from tiledblend.errors import UsageError


def at_level(composite: Composite, level: int) -> Composite:
    """The composite on the canvas of its result's level `level`: 2**level times smaller, sides rounded up.

    Raises UsageError for a level at which less than a pixel would be left, or that is no whole number.

    >>> import numpy as np, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> at_level(tb.Composite([tb.Layer(image)]), 2).shape
    (75, 100)
    """
    if not isinstance(composite, Composite):
        raise UsageError(f"{composite!r} must be a Composite")
    if not isinstance(level, int):
        raise UsageError(f"level {level!r} must be a whole number")
    height, width = composite.shape
    if level < 0 or (level and level > (max(height, width) - 1).bit_length()):
        coarsest = max(height, width).bit_length()
        raise UsageError(f"level {level} must be from 0 to {coarsest} for a canvas of {height} x {width} pixels")
    return reduced(composite, 2.0**level)


def at_pixel_size(composite: Composite, mpp: float) -> Composite:
    """The composite with pixels of `mpp` micrometres.

    Raises UsageError when the canvas's pixel size is not known or not the same along both axes, or would be finer than
    the canvas's.
    """
    checked_pixel_size(mpp, "the result")
    size = composite.grid.pixel_size_um
    if size is None:
        raise UsageError(f"{mpp:g} um per pixel: the canvas has no pixel size; state it, or choose a level")
    if abs(size[0] - size[1]) > 0.01 * max(size):
        raise UsageError(
            f"{mpp:g} um per pixel: the canvas's pixels of {size[0]:g} x {size[1]:g} um are not square; choose a level"
        )
    own = math.sqrt(size[0] * size[1])
    if mpp < own * 0.999:
        raise UsageError(
            f"{mpp:g} um per pixel is finer than the canvas's {own:g}; if that is wrong, state the right one with "
            "pixel_size_um"
        )
    factor = mpp / own
    return reduced(composite, float(round(factor)) if abs(factor - round(factor)) < 1e-3 * factor else factor)


def reduced(composite: Composite, factor: float) -> Composite:
    """The composite on a canvas `factor` times smaller than its own."""
    if factor == 1:
        return composite
    return replace(composite, reduction=composite.reduction * factor)
