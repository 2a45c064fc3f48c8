"""One pyramid step: the mean of 2 x 2 pixels, missing neighbours at the far edges replicated."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""uint8, uint16 or float32 of shape (y, x, c); interleaved or planar memory."""

_ALPHA_WEIGHTED = "alpha-weighted mean"


def halving_rule(*, has_alpha: bool) -> str:
    """The name of what `halve_tile` does, with a revision: pyramids that carry the same one were made alike."""
    return f"{_ALPHA_WEIGHTED} of 2 x 2, revision 1" if has_alpha else "mean of 2 x 2, revision 1"


def names_alpha(rule: str | None) -> bool:
    """True when a pyramid with this `halving_rule`, of any revision, has straight alpha as its last channel."""
    return rule is not None and rule.startswith(_ALPHA_WEIGHTED)


def halve_tile(pixels: Pixels, *, has_alpha: bool = False) -> Pixels:
    """Pixels of the next level: shape (ceil(y / 2), ceil(x / 2), c), same dtype and memory order.

    Integers: (a + b + c + d + 2) >> 2. Floats: ((a + b) + (c + d)) / 4, a and b in one row. With `has_alpha` the last
    channel is straight
    alpha and colours are weighted by it.

    >>> halve_tile(np.array([[[1], [2], [9]]], np.uint8)).ravel().tolist()
    [2, 9]
    """
    height, width, _ = pixels.shape
    if height % 2 or width % 2:
        pixels = _pad_to_even(pixels)
    if has_alpha:
        return _halve_alpha(pixels)
    if pixels.dtype.kind == "f":
        return _halve_float(pixels)
    if is_planar(pixels):
        planes = np.moveaxis(pixels, 2, 0)
        out = np.empty((planes.shape[0], planes.shape[1] // 2, planes.shape[2] // 2), pixels.dtype)
        for plane, half in zip(planes, out, strict=True):
            _halve_into(np.ascontiguousarray(plane), half)
        return np.moveaxis(out, 0, 2)
    if pixels.shape[2] in (1, 3, 4):
        out = np.empty((pixels.shape[0] // 2, pixels.shape[1] // 2, pixels.shape[2]), pixels.dtype)
        _halve_into(np.ascontiguousarray(pixels), out)
        return out
    return np.stack([halve_tile(pixels[:, :, c : c + 1])[:, :, 0] for c in range(pixels.shape[2])], axis=2)


def is_planar(pixels: Pixels) -> bool:
    """True when each channel is one block of memory (a moved axis over (c, y, x))."""
    return pixels.shape[2] > 1 and pixels.strides[2] > pixels.strides[1]


def _pad_to_even(pixels: Pixels) -> Pixels:
    height, width, channels = pixels.shape
    if is_planar(pixels):
        padded = np.moveaxis(np.empty((channels, height + height % 2, width + width % 2), pixels.dtype), 0, 2)
    else:
        padded = np.empty((height + height % 2, width + width % 2, channels), pixels.dtype)
    padded[:height, :width] = pixels
    padded[height:, :width] = pixels[-1:]
    padded[:, width:] = padded[:, width - 1 : width]
    return padded


def _halve_into(pixels: Pixels, out: Pixels) -> None:
    # For even sides and 1, 3 or 4 channels OpenCV's area average is (a + b + c + d + 2) >> 2 (tests/test_halve.py).
    cv2.resize(pixels, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_AREA)


def _halve_float(pixels: Pixels) -> Pixels:
    with np.errstate(invalid="ignore", over="ignore"):
        top = pixels[0::2, 0::2] + pixels[0::2, 1::2]
        top += pixels[1::2, 0::2] + pixels[1::2, 1::2]
    top *= pixels.dtype.type(0.25)
    return top


def _quads(values: Pixels) -> list[Pixels]:
    return [values[0::2, 0::2], values[0::2, 1::2], values[1::2, 0::2], values[1::2, 1::2]]


def _halve_alpha(pixels: Pixels) -> Pixels:
    is_float = pixels.dtype.kind == "f"
    wide = pixels.astype(np.float64 if is_float else np.uint64)
    alphas = _quads(wide[:, :, -1:])
    colours = _quads(wide[:, :, :-1])
    total = (alphas[0] + alphas[1]) + (alphas[2] + alphas[3])
    # A hidden colour may be infinite or NaN: it must not come back as 0 x NaN.
    with np.errstate(invalid="ignore"):
        weighted = [np.where(a == 0, 0, a * c) for a, c in zip(alphas, colours, strict=True)]
        summed = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3])
    safe = np.where(total == 0, 1, total)
    out = np.empty((*total.shape[:2], pixels.shape[2]), pixels.dtype)
    out[:, :, :-1] = np.where(total == 0, 0, summed / safe if is_float else (summed + total // 2) // safe)
    out[:, :, -1:] = total / 4 if is_float else (total + 2) >> 2
    return out
