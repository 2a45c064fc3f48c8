"""Documents of layers of regions, some of them negative: the form that ImageScope and HALO share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.features import Feature, Ring, ring_of
from tiledblend.sources.outlines.negative import without


@dataclass(frozen=True)
class Dialect:
    """How one program writes it. vertex: the element of a corner. class_of: a layer's class. ring: a region's outline
    of its type and corners, None where it has no area (rulers, arrows, pins)."""

    vertex: str
    class_of: Callable[[Any], str]
    ring: Callable[[str, Ring], Ring | None]


def parse_layers(root: Any, path: str, dialect: Dialect) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes): in each layer (<Annotation>) its regions without its negative regions.

    Raises BadInputError for coordinates that are no numbers.
    """
    features: list[Feature] = []
    left_out = count = 0
    for layer in root.findall("Annotation"):
        klass, drawn, negative = dialect.class_of(layer), [], []
        for region in layer.findall("Regions/Region"):
            count += 1
            name = (
                f"region {count} ({klass}, id {region.get('Id')})" if region.get("Id") else f"region {count} ({klass})"
            )
            ring = _ring(region, f"{path}: {name}", dialect)
            if ring is None or not len(ring):
                left_out += 1
            elif region.get("NegativeROA", "0").strip().lower() in ("1", "true"):
                negative.append(ring)
            else:
                drawn.append(Feature(name, klass, [[ring]]))
        features += without(drawn, negative, path)
    notes = [f"{left_out} regions without an area (rulers, arrows, pins) are left out"] if left_out else []
    return features, notes


def _ring(region: Any, where: str, dialect: Dialect) -> Ring | None:
    try:
        corners = ring_of(
            [(float(v.get("X")), float(v.get("Y"))) for v in region.findall(f"Vertices/{dialect.vertex}")]
        )
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{where}: its coordinates cannot be read: {error}") from error
    return dialect.ring(region.get("Type", "").strip(), corners)
