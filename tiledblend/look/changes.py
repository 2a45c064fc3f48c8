"""Where two results differ, for eyes: as outlines that QuPath shows, and drawn over a picture."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.new_file import write_new
from tiledblend.look.outline import COLORS
from tiledblend.run.changes import Difference, TileChange

CHANGED_COLOUR = "#ff8c00"


def write_changed(found: Difference, path: str | os.PathLike[str]) -> int:
    """Write the outlines of what differs as a new GeoJSON FeatureCollection, a feature for each reason and connected
    area, in pixels of level 0; returns its bytes. Raises RefusedError when `path` exists, StorageError."""
    features = ",\n".join(json.dumps(feature) for feature in _features(found))
    return write_new(path, [b'{"type":"FeatureCollection","features":[\n', features.encode(), b"\n]}\n"])


def changed_mask(found: Difference, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """255 where a picture of `shape` (y, x) of the whole canvas shows a tile that differs, else 0."""
    out = np.zeros(shape, np.uint8)
    scale_y, scale_x = (shown / whole for shown, whole in zip(shape, found.shape, strict=True))
    for change in found.changed:
        at = change.region
        rows = slice(int(at.y0 * scale_y), max(int(np.ceil(at.y1 * scale_y)), 1))
        out[rows, int(at.x0 * scale_x) : max(int(np.ceil(at.x1 * scale_x)), 1)] = 255
    return out


def _features(found: Difference) -> list[dict[str, Any]]:
    from shapely import box, unary_union
    from shapely.geometry import mapping

    by_reason: dict[tuple[str, ...], list[TileChange]] = {}
    for change in found.changed:
        by_reason.setdefault(change.why, []).append(change)
    features = []
    for number, (why, changes) in enumerate(sorted(by_reason.items())):
        regions = (change.region for change in changes)
        area = unary_union([box(at.x0, at.y0, at.x1, at.y1) for at in regions])
        name = f"changed: {', '.join(why) or 'unknown'}"
        klass = {"name": name, "color": list(COLORS[number % len(COLORS)])}
        properties = {"objectType": "annotation", "name": name, "classification": klass}
        features += [
            {"type": "Feature", "geometry": mapping(polygon), "properties": properties}
            for polygon in getattr(area, "geoms", [area])
        ]
    return features
