"""Which files are a vendor's slide that OpenSlide reads: told by first bytes, names and TIFF tags, cheaply.

The signs are those that OpenSlide's own formats ask for (openslide.org/formats).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tiledblend.bytes.ranges import ByteReader
from tiledblend.errors import BadInputError
from tiledblend.sources.tiff.structure import first_tags

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

HEAD_BYTES = 132
"""Bytes of a file that `vendor_of` wants to see: DICOM's mark ends there."""
NAMES = {
    "argos": "Argos (TIFF)",
    "dicom": "DICOM WSI",
    "hamamatsu": "Hamamatsu VMS",
    "huron": "Huron (TIFF)",
    "leica": "Leica SCN",
    "mirax": "MIRAX (MRXS)",
    "philips": "Philips TIFF",
    "sakura": "Sakura SVSLIDE",
    "trestle": "Trestle (TIFF)",
    "ventana": "Ventana BIF",
    "zeiss": "Zeiss CZI",
}
"""What people call each vendor's slides."""
TIFF_VENDORS = frozenset({"argos", "huron", "leica", "philips", "trestle", "ventana"})

TAGS = _DESCRIPTION, _MAKE, _SOFTWARE, _XMP, _ARGOS = 270, 271, 305, 700, 65000
"""Those of a TIFF's first directory that tell its vendor."""
_LEICA = b"http://www.leica-microsystems.com/scn/"
_MOST_LISTED, _MOST_LOOKED_AT = 4096, 256


def vendor_of(path: str, head: bytes) -> str | None:
    """The vendor (a key of `NAMES`) of a local file whose first `HEAD_BYTES` are `head`, no TIFF; else None.

    Raises BadInputError for a .mrxs file without its folder: what is in the file is a thumbnail.
    """
    vendor = by_first_bytes(path, head)
    if vendor == "mirax" and not path.endswith(".mrxs"):
        raise BadInputError(f"{path}: OpenSlide knows a MIRAX slide by the ending .mrxs in small letters; rename it")
    folder = os.path.splitext(path)[0]
    if vendor == "mirax" and not os.path.isfile(os.path.join(folder, "Slidedat.ini")):
        raise BadInputError(
            f"{path}: a MIRAX slide is this file and the folder {folder} with Slidedat.ini; copy the folder, too"
        )
    return vendor


def by_first_bytes(path: str, head: bytes) -> str | None:
    """As `vendor_of`, of any path; nothing beside it is looked at."""
    suffix = Path(path).suffix.lower()
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"ZISRAWFILE"):
        return "zeiss"
    if head.startswith(b"SQLite format 3\0") and suffix == ".svslide":
        return "sakura"
    if suffix in (".vms", ".vmu") or b"Virtual Microscope Specimen]" in head:
        return "hamamatsu"
    return "mirax" if suffix == ".mrxs" else None


def on_disks_only(path: str, vendor: str) -> BadInputError:
    """The error of a slide behind a network that only OpenSlide reads."""
    return BadInputError(
        f"{path}: {NAMES[vendor]}: OpenSlide reads it, from this machine's disks only; copy it first, with the files "
        "beside it"
    )


def tiff_vendor(reader: ByteReader) -> str | None:
    """The vendor of a TIFF whose tiles only OpenSlide lays out right, by the tags of its first directory; else None."""
    return vendor_by_tags(first_tags(reader, TAGS))


def vendor_by_tags(tags: Mapping[int, bytes]) -> str | None:
    """As `tiff_vendor`, by the values of `TAGS`.

    Leica's fluorescence slides are not among them: OpenSlide does not read those.
    """
    description, software = tags.get(_DESCRIPTION, b""), tags.get(_SOFTWARE, b"")
    if b"iScan" in tags.get(_XMP, b""):
        return "ventana"
    if _LEICA in description and b"brightfield" in description and _has_brightfield_scan(description):
        return "leica"
    if software.startswith(b"Philips") and b"DPUfsImport" in description:
        return "philips"
    if software.startswith(b"MedScan") and description:
        return "trestle"
    if tags.get(_MAKE, b"").startswith(b"Huron"):
        return "huron"
    if b"Argos.Scan.Metadata" in tags.get(_ARGOS, b""):
        return "argos"
    return None


def _has_brightfield_scan(description: bytes) -> bool:
    """True if one of the images of Leica's XML is a scan by transmitted light.

    The macro picture, which often is, covers the whole glass.
    """
    from xml.etree import ElementTree

    if b"<!DOCTYPE" in description:
        return False
    try:
        root = ElementTree.fromstring(description.rstrip(b"\0"))
    except ElementTree.ParseError:
        return False
    for collection in _named(root, "collection"):
        whole = collection.get("sizeX"), collection.get("sizeY"), "0", "0"
        for image in _named(collection, "image"):
            view = next(_named(image, "view"), image)
            place = tuple(view.get(name) for name in ("sizeX", "sizeY", "offsetX", "offsetY"))
            lights = {found.text for found in image.iter() if found.tag.endswith("}illuminationSource")}
            if place != whole and "brightfield" in lights:
                return True
    return False


def _named(parent: Element, tag: str) -> Iterator[Element]:
    return (child for child in parent if child.tag.rpartition("}")[2] == tag)


def has_dicom(folder: str) -> bool:
    """True if one of a folder's first files is a DICOM file."""
    return any(_is_dicom(path) for path in _files(folder)[:_MOST_LOOKED_AT])


def dicom_files(folder: str) -> list[str]:
    """The DICOM files directly in a folder, in the order of their names; none if it cannot be listed."""
    return [path for path in _files(folder)[:_MOST_LISTED] if _is_dicom(path)]


def _files(folder: str) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names]


def _is_dicom(path: str) -> bool:
    return _first(path, HEAD_BYTES)[128:] == b"DICM"


def series_of(path: str) -> tuple[bytes, bool]:
    """(Series Instance UID, whether it is a level of a slide) of a DICOM file; empty, False if not found.

    The files of one slide share the first (0020,000E); a level has VOLUME in its Image Type (0008,0008), and not LABEL
    or OVERVIEW.
    """
    head = _first(path, 1 << 16)
    uid = _element(head, 0x0020, 0x000E, b"UI").rstrip(b"\0 ")
    return uid, b"VOLUME" in _element(head, 0x0008, 0x0008, b"CS").split(b"\\")


def _element(head: bytes, group: int, element: int, kind: bytes) -> bytes:
    """The value of the first such element of a DICOM file that writes kinds (explicit VR), in either byte order."""
    for order in "<>":
        at = head.find(struct.pack(f"{order}HH", group, element) + kind, HEAD_BYTES)
        if 0 <= at <= len(head) - 8:
            (length,) = struct.unpack_from(f"{order}H", head, at + 6)
            return head[at + 8 : at + 8 + length]
    return b""


def _first(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""
