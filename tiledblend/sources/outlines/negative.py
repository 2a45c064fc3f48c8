"""Negative regions, as ImageScope and HALO draw them: what they leave of the outlines of their layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.features import Feature, Polygon, Ring

MOST_CROSSINGS = 10_000
_AT_ONCE = 256


def without(features: Sequence[Feature], holes: Sequence[Ring], path: str) -> list[Feature]:
    """The features with the area of every hole taken out of each. What a hole covers altogether is gone.

    A hole that lies inside of an outline and touches nothing becomes one of its rings, its corners as they are. Rings
    that cross themselves count even-odd. Raises BadInputError for one that crosses itself too often to be cut.
    """
    import shapely

    holes = [ring for ring in holes if len(ring) >= 3]
    if not holes:
        return list(features)
    cuts = np.array([_area_of([[ring]], f"{path}: a negative region") for ring in holes], object)
    tree, left = shapely.STRtree(cuts), []
    for feature in features:
        area = _area_of(feature.polygons, f"{path}: {feature.name}")
        near = tree.query(area, predicate="intersects")
        if len(near):
            rings = [holes[i] for i in near]
            inside = _with_rings(feature, area, cuts[near], rings)
            remaining = inside or _polygons(shapely.difference(area, shapely.union_all(cuts[near])))
            feature = replace(feature, polygons=remaining)
        if feature.polygons:
            left.append(feature)
    return left


def _with_rings(feature: Feature, area: Any, cuts: NDArray[Any], rings: list[Ring]) -> list[Polygon] | None:
    """The feature's polygons with the holes among their rings; None where they are not apart and well inside."""
    import shapely

    is_simple = len(feature.polygons) == 1 and shapely.Polygon(feature.polygons[0][0]).is_valid
    if not is_simple or not shapely.contains_properly(area, cuts).all():
        return None
    first, second = shapely.STRtree(cuts).query(cuts, predicate="intersects")
    if (first != second).any():
        return None
    return [[*feature.polygons[0], *rings]]


def _polygons(geometry: Any) -> list[Polygon]:
    """The rings of every polygon of a geometry, without closing points; lines and points are dropped."""
    import shapely

    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and not part.is_empty]
    return [[shapely.get_coordinates(ring)[:-1] for ring in (part.exterior, *part.interiors)] for part in parts]


def _area_of(polygons: list[Polygon], where: str) -> Any:
    """The area that the polygons cover, each even-odd, as a valid geometry."""
    import shapely

    areas = []
    for polygon in polygons:
        rings = [ring for ring in polygon if len(ring) >= 3]
        if not rings:
            continue
        plain = shapely.Polygon(rings[0], rings[1:])
        areas.append(plain if plain.is_valid else _even_odd(rings, where))
    return shapely.union_all(areas) if len(areas) != 1 else areas[0]


def _even_odd(rings: list[Ring], where: str) -> Any:
    """Cut at every crossing into faces; those inside by the even-odd rule, united."""
    import shapely

    _require_few_crossings(rings, where)
    noded = shapely.union_all([shapely.LinearRing(ring) for ring in rings])
    faces = shapely.get_parts(shapely.polygonize([noded]))
    inside = [face for face in faces if _is_inside(shapely.point_on_surface(face), rings)]
    return shapely.union_all(inside) if inside else shapely.Polygon()


def _is_inside(point: Any, rings: list[Ring]) -> bool:
    crossings = 0
    for ring in rings:
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
        spans = (y0 <= point.y) != (y1 <= point.y)
        at = x0[spans] + (point.y - y0[spans]) / (y1[spans] - y0[spans]) * (x1[spans] - x0[spans])
        crossings += int((at < point.x).sum())
    return crossings % 2 == 1


def _require_few_crossings(rings: list[Ring], where: str) -> None:
    import shapely

    ends = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], 1) for ring in rings])
    lines = shapely.linestrings(ends)
    tree, found = shapely.STRtree(lines), 0
    for start in range(0, len(lines), _AT_ONCE):
        found += tree.query(lines[start : start + _AT_ONCE], predicate="crosses").shape[1]
        if found > 2 * MOST_CROSSINGS:
            raise BadInputError(
                f"{where} crosses itself more than {MOST_CROSSINGS:,} times: what a negative region leaves cannot be "
                "told; draw it again, or leave the negative regions of its layer out"
            )
