"""Aperio ImageScope's XML: layers by name, regions by number of type, negative regions cut out."""

from __future__ import annotations

from typing import Any

from tiledblend.sources.outlines.features import UNCLASSIFIED, Feature, Ring, box_ring, ellipse_ring
from tiledblend.sources.outlines.layers import Dialect, parse_layers

_BOX, _ELLIPSE, _LINES = "1", "2", ("3", "4", "5")


def parse_imagescope(root: Any, path: str) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes) of the document's <Annotations>, as `parse_layers`."""
    return parse_layers(root, path, Dialect("Vertex", _class_of, _ring))


def _class_of(layer: Any) -> str:
    """The layer's name, or the description that ImageScope shows in its place."""
    name = (layer.get("Name") or "").strip()
    if name:
        return name
    for attribute in layer.findall("Attributes/Attribute"):
        if attribute.get("Name") == "Description" and (attribute.get("Value") or "").strip():
            return str(attribute.get("Value")).strip()
    return UNCLASSIFIED


def _ring(kind: str, corners: Ring) -> Ring | None:
    """Types: 0 drawn by hand, 1 rectangle, 2 ellipse (by the corners of its box), 3 to 5 arrows, rulers and points."""
    if kind in _LINES or len(corners) < 2:
        return None
    if kind == _ELLIPSE and len(corners) <= 4:
        return ellipse_ring(corners)
    if len(corners) == 2:
        return box_ring(corners) if kind == _BOX else None
    return corners
