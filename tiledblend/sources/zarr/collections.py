"""Groups of several images: the series of a bioformats2raw layout, plates and wells, and what to say of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.sources.zarr.metadata import (
    MAX_MULTISCALES,
    ZarrNode,
    inside,
    list_children,
    names_below,
    ome_attributes,
    read_node,
)

MAX_SERIES = 100_000


def series_of(node: ZarrNode) -> list[int]:
    """The image indices of a group: of a bioformats2raw layout that is no plate, or its multiscales."""
    ome = ome_attributes(node)
    if "multiscales" not in ome and _is_layout(ome) and "plate" not in ome:
        return list(range(len(_series(node, ome)[0])))
    multiscales = ome.get("multiscales")
    if not isinstance(multiscales, list):
        return []
    if len(multiscales) > MAX_MULTISCALES:
        raise BadInputError(f"{node.path}: {len(multiscales)} multiscales in one document; it is damaged")
    return list(range(len(multiscales)))


def image_below(
    node: ZarrNode, ome: Mapping[str, Any], series: int | None, called: str
) -> tuple[ZarrNode, tuple[str, ...]] | None:
    """(the image `series` of a bioformats2raw layout, documents that were read to find it); None where it is no such
    layout, or a plate of which no series was asked for.

    Raises BadInputError where there is no such series.
    """
    if not (_is_layout(ome) or "plate" in ome) or ("plate" in ome and series is None):
        return None
    paths, documents = _series(node, ome)
    index = series or 0
    if not 0 <= index < len(paths):
        raise BadInputError(f"{called}: has no series {index}; it has {len(paths)}")
    return read_node(inside(node, paths[index], called, "series path"), called=called), documents


def why_no_image(node: ZarrNode, ome: Mapping[str, Any]) -> str:
    """What a group without multiscales is, and what to give instead."""
    if "plate" in ome:
        fields = _fields(ome)
        such = f", such as its {fields[0]}" if fields else ""
        several = f", or series 0 to {len(fields) - 1} of it (image: {{path: …, series: 0}})" if len(fields) > 1 else ""
        return f"a plate (HCS), not one image; give one field of a well{such}{several}"
    if "well" in ome:
        images = _paths((ome["well"] or {}).get("images"))
        return f"a well of a plate, not one image; give one of its fields, such as its {images[0] if images else '0'}"
    if "scene" in ome:
        return f"a scene of images, not one image; give one of them, such as its {_scene_example(node)}"
    if "labels" in ome:
        labels = [str(name) for name in ome["labels"]][:8] if isinstance(ome["labels"], list) else []
        return f"a group of label images, not one image; give one of them: {', '.join(labels)}"
    children = list_children(node)
    hint = f"; give one of its members: {', '.join(children)}" if children else ""
    return f"a zarr group without OME-Zarr multiscales{hint}"


def _is_layout(ome: Mapping[str, Any]) -> bool:
    return "bioformats2raw.layout" in ome


def _series(node: ZarrNode, ome: Mapping[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """(the path of each image below a bioformats2raw layout or plate, documents that say so).

    The group OME names them; else a plate's wells do; else they are numbered.
    """
    if _is_layout(ome):
        try:
            listed = read_node(os.path.join(node.path, "OME"), called=node.path)
        except BadInputError:
            listed = None
        if listed is not None:
            series = ome_attributes(listed).get("series")
            if isinstance(series, list) and series and len(series) <= MAX_SERIES:
                return [str(path) for path in series], listed.files
    if "plate" in ome:
        return _fields(ome), ()
    numbers = sorted(int(name) for name in names_below(node.path) if name.isdecimal() and name.isascii())
    if not numbers and "://" in node.path:
        return ["0"], ()  # a web server does not list
    return [str(number) for number in numbers], ()


def _fields(ome: Mapping[str, Any]) -> list[str]:
    """The first field of each well of a plate."""
    plate = ome.get("plate")
    return [f"{path}/0" for path in _paths(plate.get("wells") if isinstance(plate, dict) else None)]


def _paths(entries: Any) -> list[str]:
    if not isinstance(entries, list):
        return []
    return [str(entry["path"]) for entry in entries[:MAX_SERIES] if isinstance(entry, dict) and "path" in entry]


def _scene_example(node: ZarrNode) -> str:
    children = list_children(node)
    return children[0] if children else "images"
