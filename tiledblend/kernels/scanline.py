"""Polygons to pixels by the pixel-centre rule: the same bits however the plane is cut into regions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.geometry import Region

BAND_PIXELS = 1 << 22
"""Most pixels that are counted at once: int32 counters of 16 MB."""
BAND_CROSSINGS = 1 << 20
"""Most crossings of edges with rows at once, where more than a row is looked at: some 100 MB."""


def edges_of_rings(rings: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges of closed rings, each (n, 2) of x, y without the closing point.

    Returns (edges, ring): edges (m, 4) float64 of x0, y0, x1, y1 with y0 < y1, ring after ring, and the index of each
    one's ring. Horizontal edges never cross a row of centres and are left out; lower ends come first, so that two
    polygons that share an edge cut a row at the same place.
    """
    lengths = np.array([len(ring) for ring in rings], np.int64)
    if not lengths.sum():
        return np.empty((0, 4)), np.empty(0, np.int64)
    points = np.concatenate(rings)
    following = np.arange(1, len(points) + 1)
    ends = np.cumsum(lengths)
    real = lengths > 0
    following[ends[real] - 1] = (ends - lengths)[real]
    edges = np.concatenate([points, points[following]], axis=1)
    downward = edges[:, 1] > edges[:, 3]
    edges[downward] = edges[downward][:, [2, 3, 0, 1]]
    slanted = edges[:, 1] != edges[:, 3]
    return edges[slanted], np.repeat(np.arange(len(rings)), lengths)[slanted]


def fill_polygons(edges: NDArray[np.float64], polygon: NDArray[Any], region: Region) -> NDArray[np.bool_]:
    """Union of polygons over a region: True where a pixel's centre lies inside at least one of them.

    edges: as `edges_of_rings`, of all rings of all polygons that may touch the region. polygon: (m,) non-negative
    integers, the polygon that each edge belongs to; its rings count even-odd, so holes need no marking.

    The pixel (y, x) has its centre at (x + 0.5, y + 0.5); a centre exactly on a left or upper edge is inside, on a
    right or lower one outside. Where an edge crosses a row is computed from the edge and the row alone, and decided by
    an exact sign for coordinates that are multiples of 1/16 up to 2**20: no region's bounds enter it.

    >>> edges, ring = edges_of_rings([np.array([[1.0, 1], [3, 1], [3, 2], [1, 2]])])
    >>> fill_polygons(edges, ring, Region(0, 0, 3, 4)).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    out = np.zeros(region.shape, np.bool_)
    if region.is_empty or not len(edges):
        return out
    rows = max(1, BAND_PIXELS // region.shape[1])
    for y0 in range(region.y0, region.y1, rows):
        band = Region(y0, region.x0, min(y0 + rows, region.y1), region.x1)
        _fill_band(edges, polygon, band, out[y0 - region.y0 : band.y1 - region.y0])
    return out


def _fill_band(edges: NDArray[np.float64], polygon: NDArray[Any], band: Region, out: NDArray[np.bool_]) -> None:
    first = np.ceil(np.clip(edges[:, 1] - 0.5, band.y0, band.y1)).astype(np.int64)
    last = np.ceil(np.clip(edges[:, 3] - 0.5, band.y0, band.y1)).astype(np.int64)
    touching = np.flatnonzero(last > first)
    if not len(touching):
        return
    first, count = first[touching], (last - first)[touching]
    if count.sum() > BAND_CROSSINGS and band.shape[0] > 1:
        middle = band.shape[0] // 2
        upper = Region(band.y0, band.x0, band.y0 + middle, band.x1)
        lower = Region(upper.y1, band.x0, band.y1, band.x1)
        _fill_band(edges[touching], polygon[touching], upper, out[:middle])
        _fill_band(edges[touching], polygon[touching], lower, out[middle:])
        return
    edge = np.repeat(touching, count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    column = np.clip(_crossings(edges[edge], row), band.x0, band.x1) - band.x0
    height, width = band.shape
    # Sorted by polygon, row and column, crossings pair up into runs of pixels: closed rings cross a row evenly often.
    plane = height * (width + 1)
    key = np.sort(polygon[edge].astype(np.int64) * plane + (row - band.y0) * (width + 1) + column) % plane
    count_at = np.zeros(plane, np.int32)
    np.add.at(count_at, key[0::2], np.int32(1))
    np.subtract.at(count_at, key[1::2], np.int32(1))
    counted = count_at.reshape(height, width + 1)[:, :width]
    np.greater(np.cumsum(counted, axis=1, dtype=np.int32, out=counted), 0, out=out)


def _crossings(edges: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.int64]:
    """First column whose pixel's centre is not left of the edge, on the row's centre line."""
    x0, y0, x1, y1 = edges.T
    along, dx, dy = (row + 0.5) - y0, x1 - x0, y1 - y0
    column = np.ceil(x0 + along * (dx / dy) - 0.5).astype(np.int64)

    def not_left(candidate: NDArray[np.int64]) -> NDArray[np.bool_]:
        decided: NDArray[np.bool_] = ((candidate + 0.5) - x0) * dy >= along * dx
        return decided

    # The division rounds; the products do not (see `fill_polygons`), so they have the last word.
    earlier, later = not_left(column - 1), ~not_left(column)
    return column - earlier + later
