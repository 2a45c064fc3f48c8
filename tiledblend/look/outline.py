"""A mask as outlines that QuPath opens: exact pixel edges, so that rasterising them gives the same mask again."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.new_file import refuse_existing, write_new
from tiledblend.compose.masks import MaskRule, apply_mask_rule, decide_mask_rule, one_channel
from tiledblend.describe.layers import Labels, MaskValues
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import RasterSource
from tiledblend.sources.opening import open_source

BAND_PIXELS = 1 << 24
"""Most pixels of the mask that are held at once."""
COLORS = ((200, 0, 0), (0, 150, 60), (30, 90, 220), (230, 160, 0), (150, 0, 190), (0, 170, 190))
RIGHT, DOWN, LEFT, UP = range(4)

Ring = NDArray[np.int64]


@dataclass(frozen=True)
class OutlineReport:
    """What was traced. outlines: polygons. classes: their number by class. scale: (y, x) level-0 pixels per pixel."""

    path: str
    outlines: int
    classes: dict[str, int]
    scale: tuple[float, float]
    bytes_written: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {**asdict(self), "scale": list(self.scale)}


def outline(
    mask: str | os.PathLike[str] | RasterSource,
    path: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | RasterSource | None = None,
    mask_values: MaskValues = "auto",
    name: str | None = None,
) -> OutlineReport:
    """Write the outlines of a mask as a GeoJSON FeatureCollection, one feature per connected area, at the new `path`.

    like: the slide that the mask belongs to; coordinates are its level-0 pixels (without it, the mask's own).
    mask_values: as for a layer; inside is half of full scale or more; labels make a class for each label. name: the
    class of the outlines (labels: its start, "name 2").

    Areas are connected by pixel sides, not corners. Raises RefusedError when `path` exists, BadInputError.
    """
    started = time.perf_counter()
    refuse_existing(path)
    source = mask if isinstance(mask, RasterSource) else open_source(mask, mask=True)
    frame = _Frame(source.shape, source.shape, (1.0, 1.0)) if like is None else _frame(source, like)
    features: list[bytes] = []
    counts: dict[str, int] = {}
    for klass, rule in _classes(source, mask_values, name):
        polygons = trace(_bands(source, rule), source.shape)
        color = COLORS[len(counts) % len(COLORS)]
        features += [_feature(polygon, frame, klass, color) for polygon in polygons]
        counts[klass or "unclassified"] = len(polygons)
    parts = [b'{"type":"FeatureCollection","features":[\n', b",\n".join(features), b"\n]}\n"]
    size = write_new(path, parts)
    return OutlineReport(os.fspath(path), len(features), counts, frame.scale, size, time.perf_counter() - started)


@dataclass(frozen=True)
class _Frame:
    """How a mask lies on its slide, both (y, x) in their own pixels: a corner times scale, the mask's last row and
    column to the slide's end, as they do in a blend."""

    mask: tuple[int, int]
    slide: tuple[int, int]
    scale: tuple[float, float]


def _frame(mask: RasterSource, like: str | os.PathLike[str] | RasterSource) -> _Frame:
    """Slide pixels per mask pixel: a power of two where one fits, as a mask lies on its layer, else the ratio."""
    slide = like if isinstance(like, RasterSource) else open_source(like, mask=True)
    for f in (1 << power for power in range(31)):
        if all(abs(f * m - n) < f for m, n in zip(mask.shape, slide.shape, strict=True)):
            return _Frame(mask.shape, slide.shape, (float(f), float(f)))
    y, x = slide.shape[0] / mask.shape[0], slide.shape[1] / mask.shape[1]
    if abs(mask.shape[0] - slide.shape[0] / x) > 1 and abs(mask.shape[1] - slide.shape[1] / y) > 1:
        raise BadInputError(
            f"mask {mask.name} is {mask.shape[0]} x {mask.shape[1]} pixels (y x x), which does not match "
            f"{slide.name} of {slide.shape[0]} x {slide.shape[1]} at any scale"
        )
    return _Frame(mask.shape, slide.shape, (y, x))


def _classes(source: RasterSource, values: MaskValues, name: str | None) -> Iterator[tuple[str | None, MaskRule]]:
    if isinstance(values, Labels):
        for label in values.values:
            yield f"{name or 'label'} {label}", MaskRule("labels", labels=(label,))
    else:
        yield name, decide_mask_rule(source, values)


def _bands(source: RasterSource, rule: MaskRule) -> Iterator[NDArray[np.bool_]]:
    """The mask from top to bottom as rows of True and False."""
    height, width = source.shape
    rows = max(1, min(4096, BAND_PIXELS // width))
    for y in range(0, height, rows):
        region = Region(y, 0, min(y + rows, height), width)
        values = one_channel(source, source.read(region))
        where = f"mask {source.name}: level 0, region {region}"
        units = apply_mask_rule(rule, values, keep_float=False, where=where)
        yield units > np.iinfo(units.dtype).max // 2


# --- tracing


def trace(bands: Iterator[NDArray[np.bool_]] | Sequence[NDArray[np.bool_]], shape: tuple[int, int]) -> list[list[Ring]]:
    """Polygons of a mask given as bands of rows from its top: each its outer ring, then its holes.

    A ring is (n, 2) int64 corners (x, y) of pixels, without the closing point; True lies on the right of its way as
    seen on a screen. Rings do not cross or visit a point twice; a hole may touch its outer ring at single points. Only
    the edges are kept, never the mask. Every polygon is connected by pixel sides.

    >>> [ring.tolist() for ring in trace([np.array([[True, True]])], (1, 2))[0]]
    [[[0, 0], [2, 0], [2, 1], [0, 1]]]
    """
    edges = list(_edges(bands, shape))
    if not edges:
        return []
    start, end, way = (np.concatenate(column) for column in zip(*edges, strict=True))
    rings = [ring for loop in _loops(start, end, way, shape[1] + 1) for ring in _simple(loop)]
    areas = np.array([_doubled_area(ring) for ring in rings])
    return _with_holes([rings[i] for i in np.flatnonzero(areas > 0)], [rings[i] for i in np.flatnonzero(areas < 0)])


Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]


def _edges(bands: Iterator[NDArray[np.bool_]] | Sequence[NDArray[np.bool_]], shape: tuple[int, int]) -> Iterator[Edges]:
    """(start, end, way) of every straight run of pixel sides; a point (y, x) is the number y * (width + 1) + x."""
    above = np.zeros((1, shape[1]), np.int8)
    y0 = 0
    for band in bands:
        rows = np.concatenate([above, band.astype(np.int8)])
        yield _horizontal(np.diff(rows, axis=0), y0, shape[1])
        yield _vertical(rows[1:], y0, shape[1])
        above = rows[-1:]
        y0 += len(band)
    yield _horizontal(-above, y0, shape[1])


def _runs(step: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """(line, first, last + 1, value) of the runs of equal, non-zero values along each line."""
    lines, length = step.shape
    edge = np.zeros((lines, length + 1), np.bool_)
    edge[:, 0], edge[:, -1] = step[:, 0] != 0, step[:, -1] != 0
    edge[:, 1:-1] = step[:, 1:] != step[:, :-1]
    line, position = np.nonzero(edge)
    value = step[line, np.minimum(position, length - 1)]
    value[position == length] = 0
    begins = np.flatnonzero(value)
    return line[begins], position[begins], position[begins + 1], value[begins]


def _horizontal(step: NDArray[np.int8], y0: int, width: int) -> Edges:
    """step: 1 where True begins below the line, -1 where it ends."""
    line, first, last, value = _runs(step)
    base = (line + y0) * (width + 1)
    right = value > 0
    way = np.where(right, RIGHT, LEFT).astype(np.int8)
    return base + np.where(right, first, last), base + np.where(right, last, first), way


def _vertical(rows: NDArray[np.int8], y0: int, width: int) -> Edges:
    step = np.diff(rows, axis=1, prepend=np.int8(0), append=np.int8(0))
    column, first, last, value = _runs(np.ascontiguousarray(step.T))
    up = value > 0
    top, bottom = (first + y0) * (width + 1) + column, (last + y0) * (width + 1) + column
    return np.where(up, bottom, top), np.where(up, top, bottom), np.where(up, UP, DOWN).astype(np.int8)


def _loops(
    start: NDArray[np.int64], end: NDArray[np.int64], way: NDArray[np.int8], points_a_row: int
) -> Iterator[list[tuple[int, int]]]:
    """Closed ways along edges, as corners (x, y). Where two ways meet in a point, each turns right: it stays with its
    own pixel, and areas that touch only at a corner come apart."""
    order = np.lexsort((way, start))
    key = start[order] * 4 + way[order]
    wanted = end * 4 + (way + 1) % 4
    found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    only = np.searchsorted(key, end * 4)
    following = order[np.where(key[found] == wanted, found, only)].tolist()
    points, ways = start.tolist(), way.tolist()
    seen = bytearray(len(points))
    for first in range(len(points)):
        if seen[first]:
            continue
        loop, edge, before = [], first, -1
        while not seen[edge]:
            seen[edge] = 1
            if ways[edge] != before:
                loop.append((points[edge] % points_a_row, points[edge] // points_a_row))
            before = ways[edge]
            edge = following[edge]
        if ways[first] == before:
            del loop[0]  # the walk began in the middle of a side that two bands share
        yield loop


def _simple(loop: list[tuple[int, int]]) -> Iterator[Ring]:
    """A loop cut where it visits a point twice: rings that touch there."""
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for point in loop:
        if point in place:
            cut = place[point]
            yield np.array(path[cut:], np.int64)
            for dropped in path[cut + 1 :]:
                del place[dropped]
            del path[cut + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    yield np.array(path, np.int64)


def _doubled_area(ring: Ring) -> int:
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _with_holes(outer: list[Ring], holes: list[Ring]) -> list[list[Ring]]:
    """Each hole with the smallest outer ring around it."""
    polygons = [[ring] for ring in outer]
    if not holes:
        return polygons
    import shapely

    areas = shapely.polygons([shapely.linearrings(ring) for ring in outer])
    shapely.prepare(areas)
    # A point inside of True, half a pixel beside the hole's first side: its right-hand side, as everywhere.
    inside = shapely.points([_beside(ring) for ring in holes])
    hole, around = shapely.STRtree(areas).query(inside)
    within = shapely.contains(areas[around], inside[hole])
    hole, around = hole[within], around[within]
    size = shapely.area(areas)
    smallest = np.lexsort((size[around], hole))
    hole, around = hole[smallest], around[smallest]
    first = np.flatnonzero(np.diff(hole, prepend=-1))
    for h, a in zip(hole[first].tolist(), around[first].tolist(), strict=True):
        polygons[a].append(holes[h])
    return polygons


def _beside(ring: Ring) -> tuple[float, float]:
    (x0, y0), (x1, y1) = ring[0], ring[1]
    dx, dy = int(np.sign(x1 - x0)), int(np.sign(y1 - y0))
    return x0 + 0.5 * dx - 0.5 * dy, y0 + 0.5 * dy + 0.5 * dx


# --- GeoJSON


def _feature(polygon: list[Ring], frame: _Frame, klass: str | None, color: tuple[int, int, int]) -> bytes:
    """A QuPath annotation. Its id follows from its shape: the same mask gives the same file."""
    rings = [_coordinates(ring, frame) for ring in polygon]
    properties: dict[str, Any] = {"objectType": "annotation"}
    if klass:
        properties["classification"] = {"name": klass, "color": list(color)}
    geometry = {"type": "Polygon", "coordinates": rings}
    text = json.dumps(geometry, separators=(",", ":"))
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{klass} {text}"))
    head = json.dumps({"type": "Feature", "id": identity, "properties": properties}, separators=(",", ":"))
    return f'{head[:-1]},"geometry":{text}}}'.encode()


def _coordinates(ring: Ring, frame: _Frame) -> list[list[float]]:
    closed = np.concatenate([ring, ring[:1]])
    whole = all(scale.is_integer() for scale in frame.scale)
    placed = closed * np.array(frame.scale[::-1], np.int64 if whole else np.float64)
    for column, axis in enumerate((1, 0)):
        placed[closed[:, column] == frame.mask[axis], column] = frame.slide[axis]
    points: list[list[float]] = placed.tolist()
    return points
