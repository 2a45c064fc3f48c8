"""The images of a TIFF file, as series of pages: by what its writer says of them, or, where that does not fit, as the
pages are.

OME-XML (`ome`) and Aperio's pages are laid out here; the other descriptions (ImageJ, Leica, NDPI, …) by tifffile.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tifffile

from tiledblend.bytes.ranges import ByteReader, SeekableBytes, open_bytes
from tiledblend.errors import BadInputError, TiledblendError, one_line
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.slides.vendors import TAGS, on_disks_only, vendor_by_tags
from tiledblend.sources.tiff.series import images_of
from tiledblend.sources.tiff.stacks import PagesOf, add_levels, make_series, ome_series, whole_page
from tiledblend.sources.tiff.structure import Structure, first_tags, walk

if TYPE_CHECKING:
    from tiledblend.sources.tiff.ome import OmeImage

AUXILIARY = frozenset({"thumbnail", "label", "macro", "map"})
_PLAIN = frozenset({"generic", "uniform"})
# In the order in which tifffile asks a file, with what people call its description.
_DESCRIBED = {
    "shaped": "tifffile's", "lsm": "Zeiss' LSM", "mmstack": "Micro-Manager's", "ome": "OME-XML", "imagej": "ImageJ's",
    "ndtiff": "NDTiff's", "fluoview": "FluoView's", "stk": "MetaMorph's", "sis": "Olympus'", "svs": "Aperio's",
    "scn": "Leica's", "qpi": "PerkinElmer's", "ndpi": "Hamamatsu's", "bif": "Ventana's", "avs": "Argos'",
    "eer": "EER's", "philips": "Philips'", "scanimage": "ScanImage's", "nih": "NIH Image's",
    "mdgel": "Molecular Dynamics'",
}  # fmt: skip
_SAID = 120
_DESCRIPTION = 270


@dataclass(frozen=True, slots=True)
class Images:
    """The images of an open file. ome: what OME-XML says of each, by index; notes: what holds for all of them."""

    tiff: tifffile.TiffFile
    structure: Structure
    series: Sequence[tifffile.TiffPageSeries]
    ome: dict[int, OmeImage] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def choose(self, spec: SourceSpec) -> int:
        """Which one is read: the one asked for; else the first that is no thumbnail, label, macro or map; of pages
        without a description, and of Leica's, whose macro picture comes first, the largest."""
        number = len(self.series)
        if spec.series is not None:
            if not 0 <= spec.series < number:
                raise BadInputError(f"{spec}: has no series {spec.series}; it has {number}")
            return spec.series
        images = [i for i in range(number) if self.series[i].name.lower() not in AUXILIARY] or list(range(number))
        if not images:
            raise BadInputError(f"{spec}: no image in this TIFF file")
        if self.series[images[0]].kind in (*_PLAIN, "scn"):
            # max takes the first of equals
            return max(images, key=lambda i: self.series[i].keyframe.imagelength * self.series[i].keyframe.imagewidth)
        return images[0]

    def levels(self, index: int) -> list[tifffile.TiffPageSeries]:
        """Candidates for the coarser levels of an image, finest first: its own, and later ones that are marked as
        reduced and are a whole factor smaller both ways."""
        base = self.series[index]
        return [*base.levels[1:], *self._reduced(index)]

    def _reduced(self, index: int) -> list[tifffile.TiffPageSeries]:
        base = self.series[index]
        found: list[tifffile.TiffPageSeries] = []
        page = base.keyframe
        if page.is_reduced or base.kind == "svs":
            return found
        smallest = base.levels[-1].keyframe
        for series in self._unclaimed() if base.kind == "ome" else self.series[index + 1 :]:
            other = series.keyframe
            if not other.is_reduced:
                break
            fits = other.is_tiled == page.is_tiled and series.name.lower() not in AUXILIARY
            if fits and other.imagelength < smallest.imagelength and is_factor(page, other):
                found += series.levels
                smallest = series.levels[-1].keyframe
        return found

    def _unclaimed(self) -> list[tifffile.TiffPageSeries]:
        """Each page of the main chain that no Image of the OME-XML has: libvips keeps its pyramids there."""
        claimed = {page for image in self.ome.values() for page in image.pages}
        if len(self.series) != 1 or len(claimed) != 1:
            return []
        pages = [whole_page(self.tiff, number) for number in range(len(self.tiff.pages)) if number not in claimed]
        return [make_series([page], page.shape, page.axes, page, "generic", self.tiff) for page in pages]


@contextmanager
def open_images(reader: ByteReader) -> Iterator[Images]:
    """The images of a TIFF file. Whatever goes wrong inside is one BadInputError naming the file."""
    structure = walk(reader)
    flags: dict[str, Any] = {"is_ndpi": True} if structure.is_ndpi else {}
    notes: list[str] = []
    try:
        while True:
            # A multi-file OME-TIFF would make tifffile open other paths, named by the file.
            with tifffile.TiffFile(SeekableBytes(reader), _multifile=False, **flags) as tiff:  # type: ignore[arg-type]
                if tiff.is_ome and "<!DOCTYPE" in tiff.pages.first.description:
                    # No OME-XML has one, and what its entities stand for is a parser's to expand.
                    raise BadInputError(f"{reader.uri}: its OME-XML declares a document type; remove it from the file")
                if reader.has_latency:
                    _require_own(tiff, reader.uri)
                kind = next((kind for kind in _DESCRIBED if getattr(tiff, f"is_{kind}", False)), None)
                if kind == "mmstack" and tiff.is_ome:
                    kind = "ome"  # Micro-Manager's own index is of the whole set of files
                try:
                    images = _images(tiff, structure, reader.uri, kind, notes)
                except (TiledblendError, MemoryError):
                    raise
                except Exception as error:
                    if kind is None:
                        raise
                    flags[f"is_{kind}"] = False
                    reason = one_line(str(error))[:_SAID] or type(error).__name__
                    notes.append(
                        f"{_DESCRIBED[kind]} description does not fit its pages ({reason}): they are read as they are"
                    )
                    continue
                yield images
                return
    except TiledblendError:
        raise
    except MemoryError as error:
        raise BadInputError(f"{reader.uri}: cannot be opened: its metadata does not fit into memory") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{reader.uri}: cannot be opened as TIFF: {reason}") from error


def _require_own(tiff: tifffile.TiffFile, uri: str) -> None:
    """Raise BadInputError for a file behind a network whose tiles only OpenSlide lays out right."""
    values = {code: tiff.pages.first.tags.valueof(code, b"") for code in TAGS}
    tags = {code: value if isinstance(value, bytes) else str(value).encode() for code, value in values.items()}
    vendor = vendor_by_tags(tags)
    if vendor is not None:
        raise on_disks_only(uri, vendor)


def _images(tiff: tifffile.TiffFile, structure: Structure, uri: str, kind: str | None, notes: Sequence[str]) -> Images:
    """As the file's description of this kind has them. Raises ValueError and others where it does not fit."""
    if kind == "ome":
        return _by_ome_xml(tiff, structure, uri, notes)
    if kind == "svs":
        return Images(tiff, structure, _aperio(tiff), notes=tuple(notes))
    series = images_of(tiff, structure)
    for one in series:
        if one.kind == "imagej" and not _has_its_planes(one):
            raise ValueError(f"it speaks of {_planes(one)} planes, the file has {len(tiff.pages)}")
        if one.kind == "shaped" and not all(_has_its_shape(level) for level in one.levels):
            raise ValueError("its pages are of another size")
        if one.kind == "imagej" and len(one._pages) == _planes(one):
            key = one.keyframe
            planes = tuple(one.shape[: len(one.shape) - len(key.shape)])
            add_levels(one, one._pages, planes, one.axes[: len(planes)])
    return Images(tiff, structure, series, notes=tuple(notes))


def _planes(series: tifffile.TiffPageSeries) -> int:
    planes = 1
    for axis, size in zip(series.axes, series.shape, strict=True):
        planes *= 1 if axis in "YXS" else size
    return planes


def _has_its_planes(series: tifffile.TiffPageSeries) -> bool:
    """True if every plane that ImageJ's comment speaks of has a page of its size, or lies behind the first one."""
    pages, key = series._pages, series.keyframe
    whole = [page for page in pages if isinstance(page, tifffile.TiffPage)]
    if any((page.imagelength, page.imagewidth) != (key.imagelength, key.imagewidth) for page in whole):
        return False
    return len(pages) >= _planes(series) or (len(pages) == 1 and series.dataoffset is not None)


def _has_its_shape(series: tifffile.TiffPageSeries) -> bool:
    """True unless tifffile's own comment, as copied by another program, gives another number of samples."""
    try:
        said = json.loads(series.keyframe.shaped_description or "")["shape"]
        return math.prod(said) == math.prod(series.shape)
    except (ValueError, TypeError, KeyError):
        return True


def _by_ome_xml(tiff: tifffile.TiffFile, structure: Structure, uri: str, notes: Sequence[str]) -> Images:
    from tiledblend.sources.tiff.ome import metadata_file, ome_images, parse_ome

    root = parse_ome(tiff.ome_metadata or "")
    if root is None:
        raise ValueError("it is no XML")
    name, uuid, elsewhere = os.path.basename(uri), None, metadata_file(root)
    if elsewhere is not None:
        uuid = root.get("UUID")
        root = parse_ome(_xml_beside(uri, elsewhere))
        if root is None:
            raise ValueError(f"that of its set, {elsewhere}, is no XML")
        notes = (*notes, f"its OME metadata is in {elsewhere}")
    try:
        seen = ome_images(root, name, PagesOf(tiff), uuid=uuid)
        listed = [(ome_series(tiff, image, whole=False), image) for image in seen]
    except RuntimeError:  # pages that are unlike, in how they are stored or in size: each is looked at
        seen = ome_images(root, name, PagesOf(tiff, looks=True), uuid=uuid)
        listed = [(ome_series(tiff, image, whole=True), image) for image in seen]
    found = [(series, image) for series, image in listed if series is not None]
    if not found:
        raise ValueError("none of its Images is in this file as it says")
    images = {index: image for index, (_, image) in enumerate(found)}
    return Images(tiff, structure, [series for series, _ in found], images, tuple(notes))


def _xml_beside(uri: str, name: str) -> str:
    """The OME-XML in a file of this name in the same folder: a companion (.ome), or the first TIFF of a set."""
    from tiledblend.sources.tiff.ome import MAX_XML

    try:
        reader = open_bytes(os.path.join(os.path.dirname(uri), name))
        start = reader.pread(0, min(4, reader.size))
        found = first_tags(reader, (_DESCRIPTION,)).get(_DESCRIPTION, b"") if start[:2] in (b"II", b"MM") else b""
        text = found or reader.pread(0, min(reader.size, MAX_XML))
        reader.close()
    except BadInputError:
        raise ValueError(f"that of its set is in {name}, which is not beside it") from None
    if b"<!DOCTYPE" in text:
        raise ValueError(f"that of its set, in {name}, declares a document type")
    return text.rstrip(b"\0").decode("utf-8", "replace")


def _aperio(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """Aperio's pages: tiled ones are the pyramid, whatever their NewSubfileType says, and whether or not a thumbnail is
    the second page; focal planes have one shape. Others are the thumbnail, the label and the macro picture."""
    tiff.pages.useframes = False
    base, *others = (whole_page(tiff, number) for number in range(len(tiff.pages)))
    if not base.is_tiled:
        raise ValueError("its first page is not tiled")
    levels: dict[tuple[int, ...], list[tifffile.TiffPage]] = {base.shape: [base]}
    beside = []
    for page in others:
        is_doubtful = page.is_reduced or page.index == 1
        fits = page.is_tiled and page.shape[2:] == base.shape[2:]
        if fits and (not is_doubtful or page.shape == base.shape or is_factor(base, page)):
            levels.setdefault(page.shape, []).append(page)
        else:
            beside.append(page)
    planes = len(levels[base.shape])
    if any(len(level) != planes for level in levels.values()):
        planes = 1
    finest_first = sorted(levels.values(), key=lambda level: -level[0].imagelength * level[0].imagewidth)
    main, *coarser = (
        make_series(level[:planes], (planes, *level[0].shape), "Z" + base.axes, level[0], "svs", tiff, "Resolution")
        for level in finest_first
    )
    main.name = "Baseline"
    main.levels.extend(coarser)
    return [main, *(make_series([page], page.shape, page.axes, page, "svs", tiff, _beside(page)) for page in beside)]


def _beside(page: tifffile.TiffPage) -> str:
    """What a picture beside the slide's pyramid is: by its second line, its NewSubfileType or its place."""
    words = page.description.lower()
    if page.subfiletype == 9 or "\nmacro" in words or "\rmacro" in words:
        return "Macro"
    if page.index == 1 and not page.is_reduced:
        return "Thumbnail"
    return "Label"


def is_factor(page: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """True if the other page is smaller by one whole factor both ways, its sides rounded."""
    factor = round(page.imagelength / max(1, other.imagelength))
    pairs = ((page.imagelength, other.imagelength), (page.imagewidth, other.imagewidth))
    return factor > 1 and all(abs(factor * small - large) < factor for large, small in pairs)
