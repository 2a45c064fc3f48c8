"""From the luminance and chrominance that some codecs leave as they are to red, green and blue."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 256  # converted at once: the float32 planes stay small


def ycbcr_to_rgb(pixels: NDArray[Any], bits: int = 0) -> NDArray[Any]:
    """Full-range BT.601 YCbCr to RGB, as JFIF defines it; further samples stay. Unsigned integers, (y, x, sample).

    bits: of a sample, 0 for all that the dtype has.
    """
    result = pixels.copy()
    bits = bits or 8 * pixels.dtype.itemsize
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    for row in range(0, len(pixels), _ROWS):
        rows = slice(row, row + _ROWS)
        y, cb, cr = (pixels[rows, :, i].astype(np.float32) for i in range(3))
        cb -= half
        cr -= half
        for channel, values in enumerate((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)):
            result[rows, :, channel] = np.clip(np.rint(values), 0, top)
    return result
