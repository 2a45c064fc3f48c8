"""XML as outlines come in it: parsed without document types and entities, handed to the program's own parser."""

from __future__ import annotations

from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.asap import parse_asap
from tiledblend.sources.outlines.features import Feature
from tiledblend.sources.outlines.halo import is_halo, parse_halo
from tiledblend.sources.outlines.imagescope import parse_imagescope


def parse_xml(data: bytes, path: str) -> tuple[str, list[Feature], list[str]]:
    """(format, features, notes) of ASAP's, ImageScope's or HALO's XML. Raises BadInputError for any other."""
    root = _root(data, path)
    if root.tag == "ASAP_Annotations":
        return "ASAP XML", *parse_asap(root, path)
    if root.tag != "Annotations":
        raise BadInputError(
            f"{path}: XML, but not ASAP's, ImageScope's or HALO's: its root is <{root.tag}>, "
            "not <ASAP_Annotations> or <Annotations>"
        )
    if is_halo(root):
        return "HALO annotations", *parse_halo(root, path)
    return "ImageScope XML", *parse_imagescope(root, path)


def _root(data: bytes, path: str) -> Any:
    from xml.etree import ElementTree

    if b"\0" in data:  # where the next line would see nothing
        raise BadInputError(f"{path}: XML in UTF-16 is not read; store it as UTF-8")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise BadInputError(f"{path}: XML with a document type or entities is not read")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # ValueError: an encoding that expat cannot use
        raise BadInputError(f"{path}: broken XML: {error}") from error
