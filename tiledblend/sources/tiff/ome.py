"""OME-XML of a TIFF: which of its Images have planes in this file, on which pages, and what it says of each.

Nothing here reads a file: an Image whose pixels are elsewhere (MetadataOnly, BinaryOnly, another file of a set, a page
that is not there) gives neither pixels nor sizes to another. Schema: OME 2016-06, Pixels, TiffData, Channel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.etree import ElementTree

from tiledblend.sources.tiff.metadata import ImageFacts, length_um, positive

MAX_XML = 1 << 26
MAX_PLANES = 1 << 20

_ORDERS = frozenset({"XYZCT", "XYZTC", "XYCZT", "XYCTZ", "XYTCZ", "XYTZC"})


@dataclass(frozen=True, slots=True)
class OmeImage:
    """An Image with planes in this file. number: of the Image in the XML. shape: (y, x).

    axes: (axis, size) of its pages, the slowest first, without those of which this file has one place only. samples:
    per page, as the XML has it. pages: the page of each plane, in the order of `axes`; None for one not in this file.
    notes: what of a set is elsewhere.
    """

    number: int
    name: str
    shape: tuple[int, int]
    axes: tuple[tuple[str, int], ...]
    samples: int
    pages: tuple[int | None, ...]
    facts: ImageFacts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Own:
    """What tells this file among those of a set. uuid: of the root element; name: of the file, in lower case."""

    uuid: str | None
    name: str

    def has(self, data: ElementTree.Element) -> bool:
        """True if a TiffData's planes are in this file."""
        place = next(_named(data, "UUID"), None)
        if place is None:
            return True
        uuid, name = (place.text or "").strip(), os.path.basename(place.get("FileName", "")).lower()
        return uuid == self.uuid if self.uuid is not None and uuid and name != self.name else name == self.name


def parse_ome(xml: str) -> ElementTree.Element | None:
    """The root element; None for what is too long or no XML."""
    if len(xml) > MAX_XML:
        return None
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return None


class Pages(Protocol):
    """What is asked of the pages of a file."""

    number: int

    def samples(self, page: int) -> int:
        """Samples per pixel."""

    def has_size(self, page: int, shape: tuple[int, int]) -> bool:
        """False for a page known to be of another size."""


def metadata_file(root: ElementTree.Element) -> str | None:
    """The name of the file of a set that has the XML of all, where this one only says so (BinaryOnly); else None."""
    place = next(_named(root, "BinaryOnly"), None)
    return None if place is None else os.path.basename(place.get("MetadataFile", "")) or None


def ome_images(root: ElementTree.Element, file_name: str, pages: Pages, *, uuid: str | None = None) -> list[OmeImage]:
    """The Images that have planes in this file, in the XML's order. An Image that contradicts itself is left out.

    uuid: of this file, where the XML is another one's.
    """
    own = _own(root, file_name) if uuid is None else _Own(uuid, os.path.basename(file_name).lower())
    found = []
    for number, image in enumerate(_named(root, "Image")):
        pixels = next(_named(image, "Pixels"), None)
        if pixels is None:
            continue
        try:
            one = _image(root, image, pixels, number, own, pages)
        except (KeyError, ValueError):
            continue
        found += [one] if one is not None else []
    return found


def _own(root: ElementTree.Element, file_name: str) -> _Own:
    uuid, name = root.get("UUID"), os.path.basename(file_name).lower()
    if uuid is None:
        named = {
            (place.text or "").strip(): os.path.basename(place.get("FileName", "")).lower()
            for place in root.iter()
            if place.tag.rpartition("}")[2] == "UUID"
        }
        if len(named) == 1 and name not in named.values():
            uuid = next(iter(named))  # one file in all: this one, under another name
    return _Own(uuid, name)


def _image(
    root: ElementTree.Element,
    image: ElementTree.Element,
    pixels: ElementTree.Element,
    number: int,
    own: _Own,
    pages: Pages,
) -> OmeImage | None:
    order = pixels.get("DimensionOrder", "XYCZT")
    if order not in _ORDERS:
        raise ValueError(order)
    channels = list(_named(pixels, "Channel"))
    each = {int(channel.get("SamplesPerPixel", 1)) for channel in channels} or {1}
    (per_page,) = each
    data = list(_named(pixels, "TiffData"))
    if not data and not any(True for tag in ("MetadataOnly", "BinData") for _ in _named(pixels, tag)):
        data = [ElementTree.Element("TiffData")]  # all pages in their order, as Bio-Formats has it
    here = [item for item in data if own.has(item)]
    first = min((int(item.get("IFD", 0)) for item in here), default=pages.number)
    size_c = int(pixels.attrib["SizeC"])
    stored = pages.samples(first) if per_page == 1 and 0 <= first < pages.number else 1
    if size_c % stored == 0:
        per_page = max(per_page, stored)  # a Channel need not say how many samples it has
    sizes = {"c": size_c // per_page, "z": int(pixels.attrib["SizeZ"]), "t": int(pixels.attrib["SizeT"])}
    if min(sizes.values()) < 1 or math.prod(sizes.values()) > MAX_PLANES:
        raise ValueError(sizes)
    fast_first = order[2:].lower()
    shape = int(pixels.attrib["SizeY"]), int(pixels.attrib["SizeX"])
    planes = _planes(here, fast_first, sizes, per_page, pages.number)
    planes = {place: page for place, page in planes.items() if pages.has_size(page, shape)}
    if not planes:
        return None
    notes: list[str] = []
    axes, listed = _axes(planes, fast_first, sizes, len(here) < len(data), notes)
    if len(here) < len(data):
        notes.append(f"part of an OME set; its other planes are in {_others(data, own)}")
    kept = sorted({dict(zip(fast_first, place, strict=True))["c"] for place in planes})
    facts = _facts(root, image, pixels, [channels[c] for c in kept if c < len(channels)])
    return OmeImage(number, image.get("Name", ""), shape, axes, per_page, listed, facts, tuple(notes))


def _planes(
    here: Sequence[ElementTree.Element], fast_first: str, sizes: dict[str, int], per_page: int, pages: int
) -> dict[tuple[int, ...], int]:
    """Page of each plane that is in this file, by its place along `fast_first`."""
    planes: dict[tuple[int, ...], int] = {}
    for item in here:
        page = int(item.get("IFD", 0))
        count = int(item.get("PlaneCount", item.get("NumPlanes", 1 if "IFD" in item.attrib else pages)))
        at, step = 0, 1
        for axis in fast_first:
            begin = int(item.get(f"First{axis.upper()}", 0))
            if axis == "c" and begin >= sizes["c"] and begin % per_page == 0:
                begin //= per_page
            if not 0 <= begin < sizes[axis]:
                at = math.prod(sizes.values())  # ImageJ writes such when it crops
                break
            at, step = at + begin * step, step * sizes[axis]
        for plane in range(at, min(at + count, math.prod(sizes.values()), at + max(0, pages - page))):
            rest, place = plane, []
            for axis in fast_first:
                rest, index = divmod(rest, sizes[axis])
                place.append(index)
            if page >= 0:
                planes[tuple(place)] = page + plane - at
    return planes


def _axes(
    planes: dict[tuple[int, ...], int], fast_first: str, sizes: dict[str, int], is_set: bool, notes: list[str]
) -> tuple[tuple[tuple[str, int], ...], tuple[int | None, ...]]:
    """(axis, size) the slowest first, and the page of each plane. Of a set's channels those that are in this file."""
    indices: list[list[int]] = []
    for position, axis in enumerate(fast_first):
        present = sorted({place[position] for place in planes})
        is_part = len(present) < sizes[axis] and (axis == "c" or (is_set and len(present) == 1))
        if is_part:
            said = ", ".join(map(str, present[:8])) + (", …" if len(present) > 8 else "")
            notes.append(f"of {sizes[axis]} planes along {axis} only {axis}={said} is in this file")
        indices.append(present if is_part else list(range(sizes[axis])))
    axes = tuple((axis, len(along)) for axis, along in zip(reversed(fast_first), reversed(indices), strict=True))
    return axes, tuple(planes.get(place) for place in _in_order(indices))


def _in_order(indices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Every place, the last axis slowest."""
    if not indices:
        yield ()
        return
    for last in indices[-1]:
        for place in _in_order(indices[:-1]):
            yield (*place, last)


def _others(data: Sequence[ElementTree.Element], own: _Own) -> str:
    places = (place for item in data if not own.has(item) for place in _named(item, "UUID"))
    names = list(dict.fromkeys(os.path.basename(place.get("FileName", "")) or "another file" for place in places))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _facts(
    root: ElementTree.Element,
    image: ElementTree.Element,
    pixels: ElementTree.Element,
    channels: Sequence[ElementTree.Element],
) -> ImageFacts:
    """PhysicalSizeX/Y with their units (µm unless said), names and colours of channels, the objective's power."""
    y, x = (length_um(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "YX")
    names = tuple(element.get("Name") or f"channel {index}" for index, element in enumerate(channels))
    colors = tuple(_color(element.get("Color")) for element in channels)
    return ImageFacts(
        (y, x) if y and x else None,
        names if any(element.get("Name") for element in channels) else (),
        colors if any(element.get("Color") for element in channels) else (),
        _magnification(root, image),
    )


def _magnification(root: ElementTree.Element, image: ElementTree.Element) -> float | None:
    """Of the objective that the image's ObjectiveSettings name."""
    wanted = {settings.get("ID") for settings in _named(image, "ObjectiveSettings")}
    objectives = (
        objective for instrument in _named(root, "Instrument") for objective in _named(instrument, "Objective")
    )
    found = next((objective for objective in objectives if objective.get("ID") in wanted), None)
    return None if found is None else positive(found.get("NominalMagnification"))


def _color(text: str | None) -> str:
    """Of a signed 32-bit RGBA integer."""
    try:
        value = int(text or "-1") & 0xFFFFFFFF
    except ValueError:
        value = 0xFFFFFFFF
    return f"{value >> 8:06X}"


def _named(parent: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    """Children of a name, in any of the schema's namespaces."""
    return (child for child in parent if child.tag.rpartition("}")[2] == tag)
