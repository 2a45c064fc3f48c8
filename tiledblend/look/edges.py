"""The outlines of layers, drawn: a coloured line with a dark rim where a weight crosses one half."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

COLOURS = ("#00e5ff", "#ffd500", "#ff2bd6", "#7cff00")
"""Of layers with an edge, from the bottom: unlike tissue and each other."""
_RIM = np.array([0, 0, 0, 130], np.uint8)


def edge_lines(weight: NDArray[Any], colour: str, width: int = 2) -> Pixels:
    """RGBA (h, w, 4): the line between the pixels of a uint8 weight (h, w) of 128 and more and the others; else clear.

    width: of the line in pixels, its rim of a pixel on either side not counted.
    """
    inside = (weight >= 128).astype(np.uint8)
    lines = np.zeros(inside.shape, np.uint8)
    lines[:-1] |= inside[:-1] ^ inside[1:]
    lines[:, :-1] |= inside[:, :-1] ^ inside[:, 1:]
    core, rim = (cv2.dilate(lines, np.ones((side, side), np.uint8)) > 0 for side in (width, width + 2))
    out = np.zeros((*inside.shape, 4), np.uint8)
    out[rim] = _RIM
    out[core] = [*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 255]
    return out


def with_lines(picture: Pixels, lines: Pixels) -> Pixels:
    """The RGB picture (h, w, 3) with RGBA lines laid over it."""
    opacity = lines[:, :, 3:].astype(np.float32) / np.float32(255)
    mixed = picture * (1 - opacity) + lines[:, :, :3] * opacity
    return np.rint(mixed).astype(np.uint8)
