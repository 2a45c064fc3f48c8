"""HALO's `.annotations`: layers by name, regions by name of type, negative regions cut out."""

from __future__ import annotations

from typing import Any

from tiledblend.sources.outlines.features import UNCLASSIFIED, Feature, Ring, box_ring, ellipse_ring
from tiledblend.sources.outlines.layers import Dialect, parse_layers


def is_halo(root: Any) -> bool:
    """True when the document's <Annotations> is HALO's, and not ImageScope's, whose vertices have a longer name."""
    return root.find(".//V") is not None


def parse_halo(root: Any, path: str) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes) of the document's <Annotations>, as `parse_layers`."""
    return parse_layers(
        root, path, Dialect("V", lambda layer: (layer.get("Name") or "").strip() or UNCLASSIFIED, _ring)
    )


def _ring(kind: str, corners: Ring) -> Ring | None:
    """Rectangles and ellipses are stored by two corners of their box."""
    if kind == "Ellipse" and len(corners) >= 2:
        return ellipse_ring(corners[:2])
    if kind == "Rectangle" and len(corners) == 2:
        return box_ring(corners)
    return corners if kind in ("Polygon", "Rectangle", "") and len(corners) else None
