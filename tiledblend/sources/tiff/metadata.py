"""Pixel size, channel names and colours from the places where TIFF writers keep them.

Everything here takes values that were already read from tags; nothing reads a file. A pixel size is (y, x) in
micrometres or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

MAX_XML = 1 << 26

_UM = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25400.0, "inch": 25400.0,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "\\u00B5m": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip

# Resolutions that printers, scanners and screens write by default. Below 1000 per inch (25.4 µm) it is always one.
_PRINT_DPI = (1200, 2400, 4800)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a description says of one image. names: one per channel, or empty. colors: "RRGGBB" each, or empty.

    magnification: nominal, of the objective."""

    pixel_size_um: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    magnification: float | None = None


def svs_facts(description: str) -> ImageFacts:
    """Aperio: `|MPP = 0.499|` is micrometres per pixel of the baseline, both ways; AppMag the objective's power.

    >>> svs_facts("Aperio Image Library v11 |AppMag = 20|MPP = 0.4990|Left = 1").pixel_size_um
    (0.499, 0.499)
    """
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", description)
    size = _positive(found[1]) if found else None
    power = re.search(r"\|\s*AppMag\s*=\s*([0-9.]+)", description)
    return ImageFacts((size, size) if size else None, magnification=_positive(power[1]) if power else None)


def ome_facts(xml: str, image: int) -> ImageFacts:
    """OME-XML: PhysicalSizeX/Y with their units (default µm), and Channel names and colours of the image-th Pixels.

    Colours are signed 32-bit RGBA integers (OME schema 2016-06, Channel.Color).
    """
    if len(xml) > MAX_XML:
        return ImageFacts()
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return ImageFacts()
    images = [element for element in _named(root, "Image") if any(True for _ in _named(element, "Pixels"))]
    if image >= len(images):
        return ImageFacts()
    chosen = next(_named(images[image], "Pixels"))
    channels = list(_named(chosen, "Channel"))
    names = tuple(element.get("Name") or f"channel {index}" for index, element in enumerate(channels))
    colors = tuple(_ome_color(element.get("Color")) for element in channels)
    return ImageFacts(
        _size(_ome_length(chosen, "Y"), _ome_length(chosen, "X")),
        names if any(element.get("Name") for element in channels) else (),
        colors if any(element.get("Color") for element in channels) else (),
        _magnification(root, images[image]),
    )


def _named(parent: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    """Children of a name, in any of the schema's namespaces."""
    return (child for child in parent if child.tag.rpartition("}")[2] == tag)


def _magnification(root: ElementTree.Element, image: ElementTree.Element) -> float | None:
    """Of the objective that the image's ObjectiveSettings name."""
    wanted = {settings.get("ID") for settings in _named(image, "ObjectiveSettings")}
    objectives = (
        objective for instrument in _named(root, "Instrument") for objective in _named(instrument, "Objective")
    )
    found = next((objective for objective in objectives if objective.get("ID") in wanted), None)
    return None if found is None else _positive(found.get("NominalMagnification"))


def _ome_length(pixels: ElementTree.Element, axis: str) -> float | None:
    size = _positive(pixels.get(f"PhysicalSize{axis}"))
    scale = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * scale if size and scale else None


def _ome_color(text: str | None) -> str:
    try:
        value = int(text or "-1") & 0xFFFFFFFF
    except ValueError:
        value = 0xFFFFFFFF
    return f"{value >> 8:06X}"


def imagej_facts(metadata: Mapping[str, Any], x_resolution: Any, y_resolution: Any, channels: int) -> ImageFacts:
    """ImageJ: the resolution tags are pixels per `unit`; Labels name channels when there is one for each.

    >>> imagej_facts({"unit": "micron"}, (4, 1), (2, 1), 1).pixel_size_um
    (0.5, 0.25)
    """
    scale = _UM.get(str(metadata.get("unit", "")))
    x, y = _ratio(x_resolution), _ratio(y_resolution)
    size = (scale / y, scale / x) if scale and x and y else None
    labels = metadata.get("Labels")
    names = tuple(str(label) for label in labels) if isinstance(labels, list) and len(labels) == channels > 1 else ()
    return ImageFacts(size, names)


def resolution_facts(unit: Any, x_resolution: Any, y_resolution: Any, *, trusted: bool = False) -> ImageFacts:
    """The TIFF resolution tags. unit: 2 inch, 3 cm. trusted: the writer is a slide scanner (NDPI).

    72, 96 or 300 dpi are what software writes when it knows nothing: below 1000 dpi (coarser than 25.4 µm), and
    for 1200, 2400 and 4800 dpi, the result is None.

    >>> resolution_facts(3, (20000, 1), (20000, 1)).pixel_size_um
    (0.5, 0.5)
    >>> resolution_facts(2, (300, 1), (300, 1)).pixel_size_um is None
    True
    """
    um = {2: 25400.0, 3: 10000.0}.get(int(unit) if isinstance(unit, int) else 0)
    x, y = _ratio(x_resolution), _ratio(y_resolution)
    if not um or not x or not y:
        return ImageFacts()
    for value in (x, y):
        dpi = value * 25400.0 / um
        if not trusted and (dpi < 1000 or any(abs(dpi - known) < 0.5 for known in _PRINT_DPI)):
            return ImageFacts()
    return ImageFacts((um / y, um / x))


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return _positive(value[0] / value[1])
    return _positive(value) if isinstance(value, int | float) else None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e12 else None


def _size(y: float | None, x: float | None) -> tuple[float, float] | None:
    return (y, x) if y and x else None
