"""Outlines from files: QuPath's GeoJSON and ASAP's XML, as flat arrays of edges. Coordinates are level-0 pixels."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import read_whole
from tiledblend.errors import BadInputError
from tiledblend.kernels.scanline import edges_of_rings

Ring = NDArray[np.float64]
Polygon = list[Ring]
Invalid = Literal["repair", "refuse"]

MAX_FILE_BYTES = 4 << 30
MAX_COORDINATE = 2.0**31
UNCLASSIFIED = "unclassified"
_NAMED = 3
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Outlines:
    """Every polygon feature of a file.

    edges: (m, 4) float64, as `edges_of_rings`, feature after feature. starts: (features + 1,) int64, where each
    feature's edges begin. bounds: (features, 4) float64 of x0, y0, x1, y1. classes: a name per feature, such as
    "Tumor: Positive", or "unclassified". format: for people. notes: what was repaired or left out. digest: of the file.
    """

    edges: NDArray[np.float64]
    starts: NDArray[np.int64]
    bounds: NDArray[np.float64]
    classes: tuple[str, ...]
    format: str
    notes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class _Feature:
    """name: for messages. polygons: each its outer ring, then its holes."""

    name: str
    klass: str
    polygons: list[Polygon]


def read_outlines(path: str, invalid: Invalid = "repair") -> Outlines:
    """The polygons of a GeoJSON (FeatureCollection, bare array of features, Feature or geometry) or ASAP XML file.

    Each feature that is no valid polygon (an outline that crosses itself, a ring of two points) is named, and repaired
    or refused: a repaired one keeps what lies inside by the even-odd rule; overlapping parts of one feature are united.
    Points and lines have no inside and are left out, with a note.

    Raises BadInputError when the file is neither of the two, or a feature's coordinates are no numbers.
    """
    with _no_collection():
        kind, digest, features, notes = _parsed_file(path)
        features, repaired = _repaired(features, path, invalid)
        return _flat(features, kind, (*notes, *repaired), digest)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new objects and no cycle among them: looking for cycles takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parsed_file(path: str) -> tuple[str, str, list[_Feature], list[str]]:
    """(format, digest, features, notes)."""
    data = read_whole(path, MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return "ASAP XML", digest, *_asap(data, path)
    try:
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise BadInputError(f"{path}: not GeoJSON: {' '.join(str(error).split())}") from error
    del data  # as large as all that is made of it
    return "GeoJSON", digest, *_geojson(text, path)


def _flat(features: list[_Feature], kind: str, notes: tuple[str, ...], digest: str) -> Outlines:
    rings = [[ring for polygon in feature.polygons for ring in polygon] for feature in features]
    every = [ring for part in rings for ring in part]
    feature_of_ring = np.repeat(np.arange(len(features)), [len(part) for part in rings])
    edges, ring_of_edge = edges_of_rings(every)
    starts = np.searchsorted(feature_of_ring[ring_of_edge], np.arange(len(features) + 1)).astype(np.int64)
    bounds = np.empty((0, 4))
    if features:
        first = np.cumsum([0, *(sum(map(len, part)) for part in rings[:-1])])
        points = np.concatenate(every)
        bounds = np.hstack([np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)])
    return Outlines(edges, starts, bounds, tuple(f.klass for f in features), kind, notes, digest)


# --- validity


def _repaired(features: list[_Feature], path: str, invalid: Invalid) -> tuple[list[_Feature], list[str]]:
    """Features with valid polygons only, and a note that names the repaired ones."""
    import shapely

    broken = {i: "has a ring of fewer than three points" for i, f in enumerate(features) if _has_short_ring(f)}
    whole = [i for i in range(len(features)) if i not in broken]
    for start in range(0, len(whole), _AT_ONCE):
        part = whole[start : start + _AT_ONCE]
        geometries = _geometries([features[i].polygons for i in part])
        for i in np.flatnonzero(~shapely.is_valid(geometries)):
            broken[part[i]] = str(shapely.is_valid_reason(geometries[i]))
    if not broken:
        return features, []
    named = "; ".join(f"{features[i].name}: {broken[i]}" for i in sorted(broken)[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    if invalid == "refuse":
        outlines = "outline" if len(broken) == 1 else "outlines"
        remedy = "mend them, or have them repaired (invalid: repair)"
        raise BadInputError(f"{path}: {len(broken)} invalid {outlines} ({named}{more}); {remedy}")
    kept = [part for i, f in enumerate(features) for part in (_repair(f) if i in broken else (f,))]
    were = "was" if len(broken) == 1 else "were"
    note = f"{len(broken)} of {len(features)} outlines {were} invalid and repaired ({named}{more})"
    return kept, [note]


def _has_short_ring(feature: _Feature) -> bool:
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


def _repair(feature: _Feature) -> Iterator[_Feature]:
    """Each polygon of a feature by itself, without rings that have no area.

    They are filled even-odd, each by itself, and united: cutting an outline where it crosses itself would change no
    pixel, and takes minutes for 300 corners that were set at random.
    """
    for polygon in feature.polygons:
        if len(polygon[0]) >= 3:
            yield _Feature(feature.name, feature.klass, [[ring for ring in polygon if len(ring) >= 3]])


# --- GeoJSON


@dataclass(frozen=True)
class _Geometry:
    """A parsed geometry. problem: why its coordinates cannot be used."""

    kind: str
    polygons: list[Polygon]
    problem: str | None = None


def _geojson(text: str, path: str) -> tuple[list[_Feature], list[str]]:
    try:
        # Coordinates become arrays as soon as their object ends: 200,000 cells as lists of lists would need gigabytes.
        document = json.loads(text, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadInputError(f"{path}: not GeoJSON: {reason}") from error
    features, left_out = [], 0
    for number, item in enumerate(_items(document, path), 1):
        feature = _feature(item, number, path)
        if feature is None or not feature.polygons:
            left_out += 1
        else:
            features.append(feature)
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


def _feature(item: Any, number: int, path: str) -> _Feature | None:
    if isinstance(item, _Geometry):
        item = {"type": "Feature", "geometry": item}
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise BadInputError(f"{path}: item {number} of the array is no GeoJSON Feature")
    klass = _class_name(item.get("properties"))
    identity = item.get("id")
    name = f"feature {number} ({klass}{f', id {identity}' if identity else ''})"
    geometry = item.get("geometry")
    if geometry is None:
        return None
    if not isinstance(geometry, _Geometry):
        raise BadInputError(f"{path}: {name}: its geometry is none that GeoJSON has")
    if geometry.problem:
        raise BadInputError(f"{path}: {name}: {geometry.problem}")
    return _Feature(name, klass, geometry.polygons)


def _class_name(properties: Any) -> str:
    """QuPath's class, "Tumor" or "Tumor: Positive"; other programs put the name alone."""
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    return found if isinstance(found, str) and found else UNCLASSIFIED


_EMPTY_KINDS = ("Point", "MultiPoint", "LineString", "MultiLineString")


def _compact(item: dict[str, Any]) -> Any:
    """What is kept of an object as soon as it ends: coordinates as arrays, of a feature its class and id."""
    kind = item.get("type")
    if kind == "Feature":
        properties, kept = item.get("properties"), {}
        if isinstance(properties, dict) and "classification" in properties:
            kept = {"classification": properties["classification"]}  # and not dozens of measurements a cell
        return {"type": kind, "geometry": item.get("geometry"), "properties": kept, "id": item.get("id")}
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


def _parsed(kind: str, polygons: Any) -> _Geometry:
    try:
        rings = [[_ring(ring) for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError, IndexError) as error:
        return _Geometry(kind, [], f"its coordinates cannot be read: {' '.join(str(error).split())[:120]}")
    return _Geometry(kind, [polygon for polygon in rings if polygon and len(polygon[0])])


def _ring(points: Any) -> Ring:
    """(n, 2) of x, y without the closing point; further dimensions are dropped."""
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


# --- ASAP XML


def _asap(data: bytes, path: str) -> tuple[list[_Feature], list[str]]:
    from xml.etree import ElementTree

    if b"\0" in data:  # where the next line would see nothing
        raise BadInputError(f"{path}: XML in UTF-16 is not read; store it as UTF-8")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise BadInputError(f"{path}: XML with a document type or entities is not read")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BadInputError(f"{path}: broken XML: {error}") from error
    if root.tag != "ASAP_Annotations":
        raise BadInputError(f"{path}: XML, but not ASAP's: its root is <{root.tag}>, not <ASAP_Annotations>")
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


def _annotation(annotation: Any, number: int, path: str) -> _Feature:
    group = annotation.get("PartOfGroup") or "None"
    klass = UNCLASSIFIED if group == "None" else group
    name = f"annotation {number} ({klass}, {annotation.get('Name', 'no name')})"
    try:
        points = [(int(p.get("Order", i)), float(p.get("X")), float(p.get("Y"))) for i, p in _points(annotation)]
        ring = _ring([point[1:] for point in sorted(points, key=lambda point: point[0])])
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{path}: {name}: its coordinates cannot be read: {error}") from error
    return _Feature(name, klass, [[ring]] if len(ring) else [])


def _points(annotation: Any) -> Iterator[tuple[int, Any]]:
    return enumerate(annotation.iter("Coordinate"))
