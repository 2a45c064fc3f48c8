"""What every parser of outlines makes: features with a class and polygons, and rings out of points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
Polygon = list[Ring]

MAX_COORDINATE = 2.0**31
UNCLASSIFIED = "unclassified"
_SAGITTA = 0.01


@dataclass(frozen=True)
class Feature:
    """One outline. name: for messages. klass: its class. polygons: each its outer ring, then its holes."""

    name: str
    klass: str
    polygons: list[Polygon]


def ring_of(points: Any) -> Ring:
    """(n, 2) of x, y without the closing point; further dimensions are dropped.

    Raises ValueError or TypeError for what are no coordinates.

    >>> ring_of([[0, 0], [4, 0], [4, 3, 7.5], [0, 0]][:2] + [[4, 3], [0, 0]]).tolist()
    [[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]]
    """
    ring = np.array(points, np.float64)
    if ring.size == 0:
        return np.empty((0, 2))
    if ring.ndim != 2 or ring.shape[1] < 2:
        raise ValueError("a ring must be a list of [x, y]")
    ring = ring[:, :2]
    if not (np.abs(ring) < MAX_COORDINATE).all():
        raise ValueError("a coordinate is not finite, or beyond 2**31 pixels")
    closed = len(ring) > 1 and bool((ring[0] == ring[-1]).all())
    return np.ascontiguousarray(ring[:-1] if closed else ring)


def box_ring(corners: Ring) -> Ring:
    """The rectangle that spans the corners, (n, 2) of x, y.

    >>> box_ring(np.array([[4.0, 0], [0, 3]])).tolist()
    [[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [0.0, 3.0]]
    """
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse_ring(corners: Ring) -> Ring:
    """The ellipse in the rectangle that spans the corners, as a polygon that is nowhere 0.01 px inside of it."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    radius = max(float(half.max()), 1.0)
    count = min(max(64, math.ceil(math.pi / math.acos(1 - _SAGITTA / radius))), 1 << 16)
    angle = 2 * np.pi * np.arange(count) / count
    return middle + half * np.stack([np.cos(angle), np.sin(angle)], 1)
