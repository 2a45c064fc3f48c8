"""Mask units to weights, and weights so near to 0 or 1 that they are: plateaus are exact."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.mirror import Units

SNAP = np.float32(2.0**-12)
ONE_MINUS_SNAP = np.float32(1 - 2.0**-12)
_BELOW_SNAP = np.nextafter(SNAP, np.float32(0))
_BELOW_SNAP = np.nextafter(SNAP, np.float32(0))
SNAP_STRIP = 32_768


def snap(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place, weights in [0, 1]: below 2**-12 becomes 0, above 1 - 2**-12 becomes 1, so that plateaus are exact."""
    if weight.ndim != 2 or not weight.size or weight.strides[1] != weight.itemsize:
        weight[weight < SNAP] = 0
        weight[weight > ONE_MINUS_SNAP] = 1
        return weight
    snap_into(weight, weight)
    return weight


def snap_into(weight: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """`snap`, written to `out`, which may be `weight`.

    Whole passes of OpenCV over strips in the cache: their speed does not depend on how much is snapped.
    """
    rows = max(1, SNAP_STRIP // weight.shape[1])
    for y in range(0, weight.shape[0], rows):
        strip = out[y : y + rows]
        cv2.threshold(weight[y : y + rows], float(_BELOW_SNAP), 0, cv2.THRESH_TOZERO, dst=strip)
        ones = cv2.threshold(strip, float(ONE_MINUS_SNAP), 1, cv2.THRESH_BINARY)[1]
        cv2.max(strip, ones, dst=strip)
        cv2.threshold(strip, 1, 1, cv2.THRESH_TRUNC, dst=strip)


def units_to_weight(units: Units) -> NDArray[np.float32]:
    """uint8 or uint16 units as float32 weights in [0, 1], snapped; float32 weights are only snapped."""
    if units.dtype == np.float32:
        return snap(units.copy())
    return snap(units.astype(np.float32) / np.float32(np.iinfo(units.dtype).max))


def inside_only(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place: the one-sided feather max(0, 2 G - 1), snapped: nothing outside the mask gets weight."""
    weight *= np.float32(2)
    weight -= np.float32(1)
    np.maximum(weight, np.float32(0), out=weight)
    return snap(weight)
