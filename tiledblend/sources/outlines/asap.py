"""ASAP's XML: annotations with coordinates, their group as class."""

from __future__ import annotations

from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.features import UNCLASSIFIED, Feature, ring_of


def parse_asap(root: Any, path: str) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes) of the document's <ASAP_Annotations>.

    Raises BadInputError for coordinates that are no numbers.
    """
    features, left_out, splines = [], 0, 0
    for number, annotation in enumerate(root.iter("Annotation"), 1):
        kind = annotation.get("Type", "Polygon")
        splines += kind == "Spline"
        if kind not in ("Polygon", "Rectangle", "Spline"):
            left_out += 1
            continue
        features.append(_annotation(annotation, number, path))
    notes = [f"{left_out} annotations without an area (dots, points, measurements) are left out"] if left_out else []
    notes += [f"{splines} splines are taken as the polygon of their points"] if splines else []
    return [feature for feature in features if feature.polygons], notes


def _annotation(annotation: Any, number: int, path: str) -> Feature:
    group = annotation.get("PartOfGroup") or "None"
    klass = UNCLASSIFIED if group == "None" else group
    name = f"annotation {number} ({klass}, {annotation.get('Name', 'no name')})"
    try:
        found = enumerate(annotation.findall("Coordinates/Coordinate"))
        points = [(int(p.get("Order", i)), float(p.get("X")), float(p.get("Y"))) for i, p in found]
        ring = ring_of([point[1:] for point in sorted(points, key=lambda point: point[0])])
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{path}: {name}: its coordinates cannot be read: {error}") from error
    return Feature(name, klass, [[ring]] if len(ring) else [])
