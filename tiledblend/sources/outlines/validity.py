"""Outlines that are no valid polygons: found, named, and repaired or refused; areas of the valid ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.features import Feature, Polygon

Invalid = Literal["repair", "refuse"]

_NAMED = 3
_AT_ONCE = 10_000


def checked(
    features: list[Feature], path: str, invalid: Invalid
) -> tuple[list[Feature], NDArray[np.float64], list[str]]:
    """(features that can be filled, the area of each in square pixels, notes that name the repaired ones).

    An area is NaN for a repaired feature. Raises BadInputError for invalid ones where they are to be refused.
    """
    import shapely

    areas = np.full(len(features), np.nan)
    broken = {i: "has a ring of fewer than three points" for i, f in enumerate(features) if _has_short_ring(f)}
    whole = [i for i in range(len(features)) if i not in broken]
    for start in range(0, len(whole), _AT_ONCE):
        part = np.array(whole[start : start + _AT_ONCE])
        geometries = _geometries([features[i].polygons for i in part])
        valid = shapely.is_valid(geometries)
        areas[part[valid]] = shapely.area(geometries[valid])
        for i in np.flatnonzero(~valid):
            broken[int(part[i])] = str(shapely.is_valid_reason(geometries[i]))
    if not broken:
        return features, areas, []
    named = "; ".join(f"{features[i].name}: {broken[i]}" for i in sorted(broken)[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    if invalid == "refuse":
        outlines = "outline" if len(broken) == 1 else "outlines"
        remedy = "mend them, or have them repaired (invalid: repair)"
        raise BadInputError(f"{path}: {len(broken)} invalid {outlines} ({named}{more}); {remedy}")
    kept = [(part, areas[i]) for i, f in enumerate(features) for part in (_repair(f) if i in broken else (f,))]
    were = "was" if len(broken) == 1 else "were"
    note = f"{len(broken)} of {len(features)} outlines {were} invalid and repaired ({named}{more})"
    return [part for part, _ in kept], np.array([area for _, area in kept], float), [note]


def _has_short_ring(feature: Feature) -> bool:
    return any(len(ring) < 3 for polygon in feature.polygons for ring in polygon)


def _geometries(features: Sequence[list[Polygon]]) -> Any:
    """A shapely multipolygon per feature, made all at once."""
    import shapely

    rings = [ring for polygons in features for polygon in polygons for ring in polygon]
    if not rings:
        return np.empty(0, object)
    points = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    linear = shapely.linearrings(np.concatenate(rings), indices=points)
    parts = [polygon for polygons in features for polygon in polygons]
    polygon_of = np.repeat(np.arange(len(parts)), [len(polygon) for polygon in parts])
    made = shapely.polygons(linear, indices=polygon_of)
    return shapely.multipolygons(made, indices=np.repeat(np.arange(len(features)), [len(f) for f in features]))


def _repair(feature: Feature) -> Iterator[Feature]:
    """Each polygon of a feature by itself, without rings that have no area.

    They are filled even-odd, each by itself, and united: cutting an outline where it crosses itself would change no
    pixel, and takes minutes for 300 corners that were set at random.
    """
    for polygon in feature.polygons:
        if len(polygon[0]) >= 3:
            yield Feature(feature.name, feature.klass, [[ring for ring in polygon if len(ring) >= 3]])
