"""What a file of outlines holds, for people: classes with their number and area, and how far they reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.scanline import fill_polygons
from tiledblend.sources.outlines.files import Outlines

_GRID = 1024


def summary(outlines: Outlines) -> dict[str, Any]:
    """{"outlines": number, "by_class": {name: {"outlines", "area_px"}}, "bounds": [y0, x0, y1, x1] or None}.

    Areas are square pixels of level 0, outline by outline: what two of one class share counts twice. Those of
    repaired outlines are counted on a grid of 1,024 cells a side, to about a thousandth.
    """
    by_class: dict[str, dict[str, Any]] = {}
    for name, area in sorted(zip(outlines.classes, _areas(outlines), strict=True), key=lambda pair: pair[0]):
        entry = by_class.setdefault(name, {"outlines": 0, "area_px": 0.0})
        entry["outlines"] += 1
        entry["area_px"] += float(area)
    bounds = None
    if len(outlines):
        (x0, y0), (x1, y1) = outlines.bounds[:, :2].min(axis=0), outlines.bounds[:, 2:].max(axis=0)
        bounds = [float(y0), float(x0), float(y1), float(x1)]
    return {"outlines": len(outlines), "by_class": by_class, "bounds": bounds}


def _areas(outlines: Outlines) -> NDArray[np.float64]:
    areas = outlines.areas.copy()
    for i in np.flatnonzero(np.isnan(areas)):
        areas[i] = _counted(outlines.edges[outlines.starts[i] : outlines.starts[i + 1]], outlines.bounds[i])
    return areas


def _counted(edges: NDArray[np.float64], bounds: NDArray[np.float64]) -> float:
    """Area of one repaired outline by the even-odd rule, from a grid over its box."""
    size = bounds[2:] - bounds[:2]
    if not len(edges) or not (size > 0).all():
        return 0.0
    scaled = (edges - np.tile(bounds[:2], 2)) * (_GRID / np.tile(size, 2))
    inside = fill_polygons(scaled, np.zeros(len(edges), np.int64), Region(0, 0, _GRID, _GRID))
    return float(inside.mean() * size[0] * size[1])
