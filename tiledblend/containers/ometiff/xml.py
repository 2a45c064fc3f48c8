"""OME-XML of one image: size, type, pixel size, channel names and colours. Nothing else of a source goes in."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import tiledblend
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ometiff.layout import PIXEL_TYPES, TiffLayout

OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_SCHEMA = f"{OME} {OME}/ome.xsd"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


def ome_xml(image: ImageMetadata, layout: TiffLayout) -> bytes:
    """OME-XML (schema 2016-06) of an image as stored by `layout`. UTF-8.

    Level-0 pages are the IFDs 0, 1, …: SubIFDs are not counted, and those behind them are not named.
    """
    ElementTree.register_namespace("", OME)
    ElementTree.register_namespace("xsi", _INSTANCE)
    root = _element(None, "OME", Creator=f"tiledblend {tiledblend.__version__}")
    root.set(f"{{{_INSTANCE}}}schemaLocation", _SCHEMA)
    if image.magnification is not None:
        instrument = _element(root, "Instrument", ID="Instrument:0")
        _element(instrument, "Objective", ID="Objective:0:0", NominalMagnification=repr(float(image.magnification)))
    described = _element(root, "Image", ID="Image:0", Name=printable(image.name))
    if image.magnification is not None:
        _element(described, "InstrumentRef", ID="Instrument:0")
        _element(described, "ObjectiveSettings", ID="Objective:0:0")
    height, width = layout.shapes[0]
    attributes = {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": PIXEL_TYPES[layout.dtype],
        "BigEndian": "false",
        "Interleaved": "true" if layout.is_rgb else "false",
        "SizeX": width,
        "SizeY": height,
        "SizeC": layout.channels,
        "SizeZ": 1,
        "SizeT": 1,
    }
    if image.pixel_size_um is not None:
        y, x = image.pixel_size_um
        # In µm, the schema's default unit.
        attributes |= {"PhysicalSizeX": repr(float(x)), "PhysicalSizeY": repr(float(y))}
    pixels = _element(described, "Pixels", **attributes)
    for plane in range(layout.planes):
        own = _channel_attributes(image, plane) if not layout.is_rgb else {}
        _element(pixels, "Channel", ID=f"Channel:0:{plane}", SamplesPerPixel=layout.samples, **own)
    for plane in range(layout.planes):
        _element(pixels, "TiffData", IFD=plane, FirstC=plane, FirstZ=0, FirstT=0, PlaneCount=1)
    # Not as ASCII: Bio-Formats damages character references such as &#949; before it parses.
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    return b'<?xml version="1.0" encoding="UTF-8"?>' + text


def _element(parent: Any, tag: str, **attributes: Any) -> Any:
    values = {key: str(value) for key, value in attributes.items()}
    name = f"{{{OME}}}{tag}"
    return ElementTree.Element(name, values) if parent is None else ElementTree.SubElement(parent, name, values)


def _channel_attributes(image: ImageMetadata, channel: int) -> dict[str, Any]:
    names, colors = image.channel_names, image.channel_colors
    attributes: dict[str, Any] = {}
    if channel < len(names) and names[channel]:
        attributes["Name"] = printable(names[channel])
    if channel < len(colors) and (color := ome_color(colors[channel])) is not None:
        attributes["Color"] = color
    return attributes


def printable(text: str) -> str:
    """Without control characters: XML has none, and a name is no place for them."""
    return "".join(character for character in text if character.isprintable())


def ome_color(rgb: str) -> int | None:
    """ "RRGGBB" as OME's signed RGBA number, opaque; None when it is no colour.

    >>> ome_color("FF0000"), ome_color("#00FF00")
    (-16776961, 16711935)
    """
    try:
        value = int(rgb.lstrip("#")[:6], 16) << 8 | 0xFF
    except ValueError:
        return None
    return value - (1 << 32) if value >= 1 << 31 else value
