"""What the blending modes mean, in float64 on whole arrays: bands, operators, tone. Shares no code with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
TAPS = np.array([1, 4, 6, 4, 1]) / 16


def reduced(values: Array, odd: tuple[int, int] = (0, 0)) -> Array:
    """The pixels of even place, smoothed. odd: (y, x) 1 where the first pixel's place is odd. A single one stays."""
    for axis in (0, 1):
        if values.shape[axis] > 1:
            smooth = ndimage.correlate1d(values, TAPS, axis, mode="mirror")
            values = smooth[odd[0] :: 2] if axis == 0 else smooth[:, odd[1] :: 2]
    return values


def expanded(values: Array, shape: tuple[int, int], odd: tuple[int, int] = (0, 0)) -> Array:
    for axis in (0, 1):
        if shape[axis] > 1:
            between = np.zeros((*values.shape[:axis], shape[axis], *values.shape[axis + 1 :]))
            (between if axis == 0 else np.swapaxes(between, 0, 1))[odd[axis] :: 2] = (
                values if axis == 0 else np.swapaxes(values, 0, 1)
            )
            values = ndimage.correlate1d(between, 2 * TAPS, axis, mode="mirror")
    return values


def bands(below: Array, layer: Array, weight: Array, count: int, origin: tuple[int, int] = (0, 0)) -> Array:
    """below, layer: (y, x, c). weight: (y, x). origin: the place of the first pixel on the layer's own grid."""
    place = origin
    gauss, weights, places = [layer.astype(float) - below], [weight.astype(float)], [place]
    for _ in range(count - 1):
        odd = place[0] % 2, place[1] % 2
        gauss.append(reduced(gauss[-1], odd))
        weights.append(reduced(weights[-1], odd))
        place = (place[0] + 1) // 2, (place[1] + 1) // 2
        places.append(place)
    total = weights[-1][..., None] * gauss[-1]
    for k in range(count - 2, -1, -1):
        odd, shape = (places[k][0] % 2, places[k][1] % 2), gauss[k].shape[:2]
        detail = gauss[k] - expanded(gauss[k + 1], shape, odd)
        total = weights[k][..., None] * detail + expanded(total, shape, odd)
    return below + total


def operator(name: str, below: Array, layer: Array, full: float) -> Array:
    """B(Cb, Cs) of W3C Compositing and Blending Level 1, section 10.1, by its own words: colours from 0 to 1."""
    cb, cs = below / full, layer / full
    return (
        full
        * {
            "normal": lambda: cs + 0 * cb,
            "multiply": lambda: cb * cs,
            "screen": lambda: 1 - (1 - cb) * (1 - cs),
            "darken": lambda: np.where(cb < cs, cb, cs),
            "lighten": lambda: np.where(cb > cs, cb, cs),
            "difference": lambda: abs(cb - cs),
        }[name]()
    )


def tone(layer: Array, gain: Any = 1, offset: Any = 0, od: Any = None, white: float = 255) -> Array:
    """gain · layer + offset per channel; with od the Beer-Lambert law: absorbances multiplied."""
    if od is not None:
        absorbance = -np.log10(np.maximum(layer / white, 1e-300))
        return white * 10 ** (-absorbance * od)
    return layer * gain + offset
