"""Pixel size, channel names and the objective from the places where TIFF writers keep them, OME-XML (`ome`) apart.

Everything here takes values that were already read from tags; nothing reads a file. A pixel size is (y, x) in
micrometres or None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_UM = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25400.0, "inch": 25400.0,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "\\u00B5m": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
_INCH, _CENTIMETRE = 2, 3
_UNIT_CODES = {"inch": _INCH, "in": _INCH, "inches": _INCH, "cm": _CENTIMETRE, "centimeter": _CENTIMETRE}

# Resolutions that printers, scanners and screens write by default. Below 1000 per inch (25.4 µm) it is always one.
_PRINT_DPI = (1200, 2400, 4800)
# As most languages write a number below a thousand: a point, a comma, an Arabic comma.
_NUMBER = r"([0-9]+(?:[.,\u066b][0-9]*)?(?:[eE][+-]?[0-9]+)?|[.,][0-9]+)(?![0-9.,])"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a description says of one image. names: one per channel, or empty. colors: "RRGGBB" each, or empty.

    magnification: nominal, of the objective. notes: what was not believed."""

    pixel_size_um: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    magnification: float | None = None
    notes: tuple[str, ...] = ()


def scanner_facts(description: str) -> ImageFacts:
    """`|MPP = 0.499|` of Aperio, Motic and others: µm per pixel of the baseline; AppMag: the objective's power.

    Decimal commas are those of the scanner's language.

    >>> scanner_facts("Aperio Image Library v11 |AppMag = 20|MPP = 0.4990|Left = 1").pixel_size_um
    (0.499, 0.499)
    >>> scanner_facts("Aperio Image Library v11 |AppMag = 20|MPP = 0,4990|Left = 1").pixel_size_um
    (0.499, 0.499)
    """
    size, power = (_stated(key, description) for key in ("MPP", "AppMag"))
    return ImageFacts((size, size) if size else None, magnification=power)


def _stated(key: str, description: str) -> float | None:
    found = re.search(rf"\|\s*{key}\s*[=:]\s*{_NUMBER}", description)
    return positive(found[1].replace(",", ".").replace("\u066b", ".")) if found else None


def imagej_facts(
    description: str, metadata: Mapping[str, Any], unit: Any, x_resolution: Any, y_resolution: Any, channels: int
) -> ImageFacts:
    """ImageJ: the resolution tags are pixels per the comment's `unit`; Labels name channels when there is one for each.

    unit: the TIFF's own ResolutionUnit, None where it has none. If that is inch or centimetre, it is what the numbers
    count (libvips and Bio-Formats write them so, and keep a comment that says micron); ImageJ itself writes it only for
    those two.

    >>> imagej_facts("ImageJ=1.54f\\nunit=micron\\n", {}, 1, (4, 1), (2, 1), 1).pixel_size_um
    (0.5, 0.25)
    >>> imagej_facts("ImageJ=\\nunit=micron\\n", {}, 3, (20000, 1), (20000, 1), 1).pixel_size_um
    (0.5, 0.5)
    """
    found = re.search(r"^unit=(.*)$", description, re.MULTILINE)
    stated = found[1].strip() if found else ""
    code = _UNIT_CODES.get(stated.lower(), unit)
    if code in (_INCH, _CENTIMETRE):
        size = resolution_facts(code, x_resolution, y_resolution).pixel_size_um
    else:
        y, x = (_per_pixel(value, stated) for value in (y_resolution, x_resolution))
        size = (y, x) if y and x else None
    notes: tuple[str, ...] = ()
    if size is None and stated in _UM and _ratio(x_resolution) and _UNIT_CODES.get(stated.lower()) is None:
        notes = (f"ImageJ's comment counts in {stated}, the resolution tags do not: the pixel size is not known",)
    labels = metadata.get("Labels")
    names = tuple(str(label) for label in labels) if isinstance(labels, list) and len(labels) == channels > 1 else ()
    return ImageFacts(size, names, notes=notes)


def _per_pixel(resolution: Any, unit: str) -> float | None:
    """Micrometres a pixel, of a resolution in pixels per `unit`."""
    scale, value = _UM.get(unit), _ratio(resolution)
    return scale / value if scale and value else None


def resolution_facts(unit: Any, x_resolution: Any, y_resolution: Any, *, trusted: bool = False) -> ImageFacts:
    """The TIFF resolution tags. unit: 2 inch, 3 cm. trusted: the writer is a slide scanner (NDPI).

    72, 96 or 300 dpi are what software writes when it knows nothing: below 1000 dpi (coarser than 25.4 µm), and
    for 1200, 2400 and 4800 dpi, the result is None.

    >>> resolution_facts(3, (20000, 1), (20000, 1)).pixel_size_um
    (0.5, 0.5)
    >>> resolution_facts(2, (300, 1), (300, 1)).pixel_size_um is None
    True
    """
    um = {_INCH: 25400.0, _CENTIMETRE: 10000.0}.get(int(unit) if isinstance(unit, int) else 0)
    x, y = _ratio(x_resolution), _ratio(y_resolution)
    if not um or not x or not y:
        return ImageFacts()
    for value in (x, y):
        dpi = value * 25400.0 / um
        if not trusted and (dpi < 1000 or any(abs(dpi - known) < 0.5 for known in _PRINT_DPI)):
            return ImageFacts()
    return ImageFacts((um / y, um / x))


def length_um(value: Any, unit: str) -> float | None:
    """A length in micrometres; None for what is no positive number, and for units that are no length."""
    number, scale = positive(value), _UM.get(unit)
    return number * scale if number and scale else None


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return positive(value[0] / value[1])
    return positive(value) if isinstance(value, int | float) else None


def positive(value: Any) -> float | None:
    """A number between 0 and 10¹², or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e12 else None
