"""What a file or folder is that is not read, and what to do about it: one line for people."""

from __future__ import annotations

import os
import re
from pathlib import Path

READS = (
    "TIFF/SVS/NDPI, OME-TIFF, slides through OpenSlide (MRXS, BIF, SCN, CZI, DICOM), zarr, OME-Zarr, .ozx, PNG, JPEG, "
    "WebP, outlines in GeoJSON, XML (ASAP, ImageScope), HALO or GeoParquet"
)
ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "abfss")

_TO_OME_TIFF = "export it as OME-TIFF (bfconvert, QuPath), or as OME-Zarr (bioformats2raw)"
_TO_TIFF = "convert it to a tiled TIFF (vips tiffsave --tile --pyramid)"
# First bytes, what they are, what to do.
_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (b"\xda\xce\xbe\x0a", "a Nikon ND2 file", _TO_OME_TIFF),
    (b"\x70\x00\x00\x00", "a Leica LIF file", _TO_OME_TIFF),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Imaris, BigDataViewer and others)", _TO_OME_TIFF),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file (Zeiss ZVI, Olympus OIB and others)", _TO_OME_TIFF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file", _TO_TIFF),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream", _TO_TIFF),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file", _TO_TIFF),
    (b"\xff\x0a", "a JPEG XL file", _TO_TIFF),
    (b"GIF8", "a GIF", "convert it to PNG"),
    (b"BM", "a BMP", "convert it to PNG"),
    (b"%PDF", "a PDF", "export the picture as TIFF"),
    (b"\x93NUMPY", "a numpy array", "give it from Python: tiledblend.from_array(numpy.load(path), axes=…)"),
    (b"SQLite format 3\0", "an SQLite database that is no Sakura slide (.svslide)", "give the slide's own file"),
)


def why_no_image(path: Path, head: bytes) -> str:
    """Why a file with these first bytes is not read."""
    if not head:
        return "the file is empty"
    if path.name in ZARR_METADATA:
        return f"is the metadata of a zarr; give its directory {path.parent}"
    for start, what, remedy in _KNOWN:
        if head.startswith(start):
            return f"is {what}, which is not read; {remedy}"
    return f"not an image that tiledblend reads (first bytes {head[:8].hex(' ')}); it reads {READS}"


def why_no_folder(path: str) -> str:
    """Why a folder is not read."""
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return f"cannot be listed: {error.strerror}"
    if "0" in names and os.path.isdir(os.path.join(path, "0")):
        return "not a complete zarr: it has data but no zarr.json; its writer has not finished (or use its --resume)"
    if "Slidedat.ini" in names:
        return f"is part of a MIRAX slide; give {path.rstrip(os.sep)}.mrxs"
    endings = (".zarr", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".bif", ".scn", ".czi", ".vms")
    inside = [name for name in names if name.lower().endswith(endings)]
    hint = f"; give one of its files, such as {os.path.join(path, inside[0])}" if inside else ""
    return f"a directory without zarr metadata (zarr.json, .zarray or .zgroup){hint}"


def why_not_the_slide(path: str) -> str | None:
    """Why a file of this name is not the slide that it belongs to, though it could be read; None for all others."""
    if Path(path).name.lower() == "slidedat.ini":
        return f"is part of a MIRAX slide; give {Path(path).parent}.mrxs"
    if Path(path).suffix.lower() != ".vsi":
        return None
    return f"is an Olympus VSI, whose slide is in .ets files in a folder beside it, which are not read; {_TO_OME_TIFF}"


def mistaken_address(path: str) -> str | None:
    """What is wrong with an address of one slash, as pathlib makes of one with two; None for other paths.

    >>> mistaken_address("https:/example.org/a.tif")
    'is an address with one slash: give https://example.org/a.tif as text (pathlib.Path takes one slash away)'
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9]*):/(?!/)(.*)", path, re.DOTALL)
    if not found or found[1].lower() not in _SCHEMES or os.path.exists(path):
        return None
    return f"is an address with one slash: give {found[1]}://{found[2]} as text (pathlib.Path takes one slash away)"
