"""What people are told of an image in a TIFF, from its tags and what its writer says: sizes, names, format, strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tifffile

from tiledblend.errors import one_line
from tiledblend.sources.tiff.images import AUXILIARY, Images
from tiledblend.sources.tiff.large import LARGE_TILE
from tiledblend.sources.tiff.layout import StoredLevel
from tiledblend.sources.tiff.metadata import ImageFacts, imagej_facts, positive, resolution_facts, scanner_facts
from tiledblend.sources.views import downsampling

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH, _NDPI_LENS = 2, 65421


def facts_of(images: Images, index: int, channels: int) -> ImageFacts:
    """Pixel size and channels from the most specific place that has them."""
    series = images.series[index]
    page = series.keyframe
    tags, description = page.tags, page.description
    x, y, unit = (tags.valueof(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT))
    facts = ImageFacts()
    if index in images.ome:
        facts = images.ome[index].facts
    elif description.startswith("ImageJ="):
        metadata = images.tiff.imagej_metadata if series.kind == "imagej" else None
        facts = imagej_facts(description, metadata or {}, unit, x, y, channels)
    elif series.name.lower() not in AUXILIARY:
        facts = scanner_facts(description)
    if facts.pixel_size_um is None and not description.startswith("ImageJ="):
        known = _INCH if unit is None else unit
        size = resolution_facts(known, x, y, trusted=series.kind == "ndpi").pixel_size_um
        facts = replace(facts, pixel_size_um=size)
    if facts.magnification is None and series.kind == "ndpi":
        facts = replace(facts, magnification=positive(tags.valueof(_NDPI_LENS)))
    names = tuple(one_line(name) for name in facts.names) if len(facts.names) == channels else ()
    colors = facts.colors if len(facts.colors) == channels else ()
    return replace(facts, names=names, colors=colors)


def level_pixel_size(
    size: tuple[float, float] | None, stored: Sequence[StoredLevel], level: int
) -> tuple[float, float] | None:
    """(y, x) of a level, of that of level 0."""
    if size is None:
        return None
    (height, width), (small_height, small_width) = stored[0].shape, stored[level].shape
    return size[0] * downsampling(height, small_height), size[1] * downsampling(width, small_width)


def compression_name(page: tifffile.TiffPage) -> str:
    """As people call it."""
    name = str(getattr(page.compression, "name", page.compression)).lower()
    return "deflate" if name == "adobe_deflate" else name


def format_name(kind: str) -> str:
    """Of tifffile's kind of series."""
    plain = {"generic": "TIFF", "uniform": "TIFF", "shaped": "TIFF", "ome": "OME-TIFF", "imagej": "ImageJ TIFF"}
    return plain.get(kind, f"{kind.upper()} (TIFF)" if kind else "TIFF")


def strip_notes(level: StoredLevel) -> list[str]:
    """What reading by regions costs where an image is not tiled."""
    if level.coding.is_tiled or level.coding.raw is not None:
        return []
    rows = min(level.coding.tile[0], level.shape[0])
    note = f"striped, {rows} rows a strip: every read decodes whole strips"
    if level.tile_bytes > LARGE_TILE:
        note += f" of {level.tile_bytes >> 20} MiB"
    return [note]
