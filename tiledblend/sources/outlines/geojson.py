"""GeoJSON: a FeatureCollection, a bare array of features, one Feature or geometry; QuPath's nested objects too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.features import UNCLASSIFIED, Feature, Polygon, ring_of


@dataclass(frozen=True)
class _Geometry:
    """A parsed geometry. problem: why its coordinates cannot be used."""

    kind: str
    polygons: list[Polygon]
    problem: str | None = None


def parse_geojson(text: str, path: str) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes). QuPath's child objects count like their parents, whatever their depth.

    Raises BadInputError for other JSON and for coordinates that are no numbers.
    """
    try:
        # Coordinates become arrays as soon as their object ends: 200,000 cells as lists of lists would need gigabytes.
        document = json.loads(text, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadInputError(f"{path}: not GeoJSON: {reason}") from error
    features, left_out = [], 0
    for name, item in _walked(_items(document, path), path):
        feature = _feature(item, name, path)
        if feature is not None and feature.polygons:
            features.append(feature)
        elif not _is_root(item):
            left_out += 1
    notes = [f"{left_out} features without an area (points, lines, empty) are left out"] if left_out else []
    return features, notes


def _items(document: Any, path: str) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, _Geometry) or (isinstance(document, dict) and document.get("type") == "Feature"):
        return [document]
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        features = document.get("features")
        if isinstance(features, list):
            return features
    raise BadInputError(
        f"{path}: JSON, but no GeoJSON: a FeatureCollection, an array of features or one Feature is needed"
    )


def _walked(items: list[Any], path: str) -> Iterator[tuple[str, Any]]:
    """("feature 2", item), each followed by ("feature 2.1", …), its child objects, in the order of the file."""
    stack = [(f"feature {number}", item) for number, item in reversed(list(enumerate(items, 1)))]
    while stack:
        name, item = stack.pop()
        if not isinstance(item, _Geometry) and not (isinstance(item, dict) and item.get("type") == "Feature"):
            number = name.removeprefix("feature ")
            raise BadInputError(f"{path}: item {number} of the array is no GeoJSON Feature")
        yield name, item
        children = item.get("children") if isinstance(item, dict) else None
        if children is not None and not isinstance(children, list):
            raise BadInputError(f"{path}: {name}: its childObjects are no array of features")
        stack += [(f"{name}.{number}", child) for number, child in reversed(list(enumerate(children or (), 1)))]


def _feature(item: Any, name: str, path: str) -> Feature | None:
    if isinstance(item, _Geometry):
        item = {"type": "Feature", "geometry": item}
    klass = _class_name(item.get("properties"))
    identity = item.get("id")
    name = f"{name} ({klass}{f', id {identity}' if identity else ''})"
    geometry = item.get("geometry")
    if geometry is None or geometry == {}:
        return None  # QuPath writes {} for its root object, which is the whole image
    if not isinstance(geometry, _Geometry):
        raise BadInputError(f"{path}: {name}: its geometry is none that GeoJSON has")
    if geometry.problem:
        raise BadInputError(f"{path}: {name}: {geometry.problem}")
    return Feature(name, klass, geometry.polygons)


def _is_root(item: Any) -> bool:
    return isinstance(item, dict) and item.get("is_root", False)


def _class_name(properties: Any) -> str:
    """QuPath's class, "Tumor" or "Tumor: Positive"; other programs put the name alone."""
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    return found if isinstance(found, str) and found else UNCLASSIFIED


_EMPTY_KINDS = ("Point", "MultiPoint", "LineString", "MultiLineString")


def _compact(item: dict[str, Any]) -> Any:
    """What is kept of an object as soon as it ends: coordinates as arrays, of a feature its class, id and children."""
    kind = item.get("type")
    if kind == "Feature":
        return _compact_feature(item)
    if kind == "Polygon" and "coordinates" in item:
        return _parsed(kind, [item["coordinates"]])
    if kind == "MultiPolygon" and "coordinates" in item:
        return _parsed(kind, item["coordinates"])
    if kind == "GeometryCollection" and isinstance(item.get("geometries"), list):
        parts = [part for part in item["geometries"] if isinstance(part, _Geometry)]
        problem = next((part.problem for part in parts if part.problem), None)
        return _Geometry(kind, [polygon for part in parts for polygon in part.polygons], problem)
    if kind in _EMPTY_KINDS and "coordinates" in item:
        return _Geometry(kind, [])
    return item


def _compact_feature(item: dict[str, Any]) -> dict[str, Any]:
    kept = {"type": "Feature", "geometry": item.get("geometry"), "id": item.get("id")}
    properties = item.get("properties")
    if isinstance(properties, dict):  # and not dozens of measurements a cell
        if "classification" in properties:
            kept["properties"] = {"classification": properties["classification"]}
        if properties.get("childObjects") is not None:
            kept["children"] = properties["childObjects"]
        if properties.get("objectType") == "root":
            kept["is_root"] = True
    return kept


def _parsed(kind: str, polygons: Any) -> _Geometry:
    try:
        rings = [[ring_of(ring) for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError, IndexError) as error:
        return _Geometry(kind, [], f"its coordinates cannot be read: {' '.join(str(error).split())[:120]}")
    return _Geometry(kind, [polygon for polygon in rings if polygon and len(polygon[0])])
