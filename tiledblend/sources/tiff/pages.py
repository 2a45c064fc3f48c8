"""Which pages of a parsed TIFF are the channels of one 2-D image, and each page with its own tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tifffile

from tiledblend.errors import BadInputError
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.tiff.samples import RGB
from tiledblend.sources.tiff.segments import JPEG
from tiledblend.sources.tiff.structure import Structure


def dimensions(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    """(axis in lower case, size) of a series, without axes of one element other than y and x."""
    return _squeezed(series.axes, series.shape)


def _squeezed(axes: str, shape: Sequence[int]) -> list[tuple[str, int]]:
    pairs = zip(axes.lower(), shape, strict=True)
    return [(axis, int(size)) for axis, size in pairs if axis in "yx" or size != 1]


def leading(series: tifffile.TiffPageSeries, name: str) -> list[tuple[str, int]]:
    """(axis, size) of the axes along which the pages of a series are counted. Raises BadInputError when unclear."""
    page = series.keyframe
    if page.imagedepth > 1:
        raise BadInputError(f"{name}: volumetric TIFF (ImageDepth {page.imagedepth}) is not read; store z as pages")
    whole, tail = dimensions(series), _squeezed(page.axes, page.shape)
    if [size for _, size in whole[len(whole) - len(tail) :]] != [size for _, size in tail]:
        raise BadInputError(f"{name}: axes {_sizes(whole)} do not match its pages of {_sizes(tail)}; rewrite the file")
    lead = whole[: len(whole) - len(tail)]
    names = [axis for axis, _ in lead]
    return [
        (f"{axis}{names[:i].count(axis) + 1}" if axis in names[:i] else axis, n) for i, (axis, n) in enumerate(lead)
    ]


def page_numbers(series: tifffile.TiffPageSeries, spec: SourceSpec) -> list[int]:
    """Index within the series of each page that is a channel of the selected plane, in channel order.

    Raises BadInputError naming the axes when the plane is not one 2-D image.
    """
    lead = leading(series, spec.path)
    sizes = _sizes(dimensions(series))
    wanted = dict(spec.plane)
    numbers = [0]
    for axis, size in lead:
        if axis == "c":
            numbers = [number * size + index for number in numbers for index in range(size)]
            continue
        if axis not in wanted:
            raise BadInputError(
                f"{spec}: axes {sizes}: more than one 2-D image; select one along {axis} with plane {{{axis}: 0}}"
            )
        index = wanted.pop(axis)
        if not 0 <= index < size:
            raise BadInputError(f"{spec}: axes {sizes}: plane {axis}={index} is not from 0 to {size - 1}")
        numbers = [number * size + index for number in numbers]
    for axis, index in wanted.items():
        if index != 0 or axis in "cyxs":
            raise BadInputError(f"{spec}: axes {sizes}: no axis {axis} to select a plane of")
    return numbers


def _sizes(pairs: list[tuple[str, int]]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in pairs)


@dataclass(frozen=True, slots=True)
class FoundPage:
    """One page of an image. tags: its own directory, or one of the same series that says the same of how it is stored.

    offsets, counts, jpegtables: its own. label: how messages call it.
    """

    tags: tifffile.TiffPage
    offsets: Sequence[int]
    counts: Sequence[int]
    jpegtables: bytes | None
    label: str


def find_pages(
    series: tifffile.TiffPageSeries, numbers: Sequence[int], name: str, structure: Structure
) -> list[FoundPage]:
    """The pages `numbers` of a series, each with its own tags. Raises BadInputError for one that is not there.

    tifffile reads the tags of a series' first page only, and takes them for all.
    """
    key = series.keyframe
    is_listed = len(series._pages) == math.prod(size for _, size in leading(series, name))
    found = []
    for number in numbers:
        if not is_listed and series.dataoffset is not None:
            # ImageJ and others describe a whole stack in its first page: the planes follow one another in the file.
            own = _in_chain(series, number, structure)
            found.append(own if own is not None else _following(key, number))
            continue
        page = series[number] if number < len(series) else None
        if page is None or page.keyframe is None:
            raise BadInputError(
                f"{name}: plane {number} is not in this file (it is missing, or kept in a companion file)"
            )
        found.append(_with_own_tags(page, key, structure))
    return found


def _with_own_tags(page: Any, key: tifffile.TiffPage, structure: Structure) -> FoundPage:
    if isinstance(page, tifffile.TiffPage):
        tags = page
    elif page.is_virtual or (structure.alike(key.offset, page.offset) and _jpegs_alike(page, key, structure)):
        return FoundPage(key, page.dataoffsets, page.databytecounts, page.jpegtables, _label(page))
    else:
        tags = page.aspage()
    return FoundPage(tags, tags.dataoffsets, tags.databytecounts, tags.jpegtables, _label(page))


def _jpegs_alike(page: Any, key: tifffile.TiffPage, structure: Structure) -> bool:
    """True unless two pages' JPEGs, by what their streams begin with, hold other colours."""
    if int(key.compression) not in JPEG:
        return True
    if page.jpegtables != key.jpegtables:
        return False
    is_jfif = bool(page.dataoffsets) and structure.bytes_at(int(page.dataoffsets[0]) + 6, 4) == b"JFIF"
    return int(key.photometric) != RGB or is_jfif == key.is_jfif


def _in_chain(series: tifffile.TiffPageSeries, number: int, structure: Structure) -> FoundPage | None:
    """The directory of a plane that the first page's description lets tifffile skip, where the file has one each."""
    key = series.keyframe
    planes = math.prod(series.shape) // max(1, key.size)
    if series.kind not in _SKIPPED or series.parent is None or len(structure.chain) < key.index + planes:
        return None
    if structure.chain[key.index] != key.offset:
        return None
    page = series.parent.pages.get(key.index + number, aspage=True)
    assert isinstance(page, tifffile.TiffPage)
    if (page.imagelength, page.imagewidth) != (key.imagelength, key.imagewidth) or not page.dataoffsets:
        return None
    return FoundPage(page, page.dataoffsets, page.databytecounts, page.jpegtables, _label(page))


def _following(key: tifffile.TiffPage, number: int) -> FoundPage:
    offsets = [offset + number * key.nbytes for offset in key.dataoffsets]
    return FoundPage(key, offsets, key.databytecounts, None, f"page {key.index + number}")


def _label(page: Any) -> str:
    first, *below = page.treeindex
    return f"page {first}" + "".join(f", SubIFD {index}" for index in below)


_SKIPPED = frozenset({"shaped", "imagej"})
"""Kinds whose planes tifffile takes to follow one another, without a look at their directories."""

_COMPARED = (
    ("ImageLength", "imagelength"),
    ("ImageWidth", "imagewidth"),
    ("BitsPerSample", "bitspersample"),
    ("SampleFormat", "sampleformat"),
    ("SamplesPerPixel", "samplesperpixel"),
    ("PhotometricInterpretation", "photometric"),
    ("ExtraSamples", "extrasamples"),
)


def unlike(first: FoundPage, other: FoundPage, name: str) -> BadInputError:
    """The error of two pages of one image whose sizes or samples differ, naming the tag."""
    for tag, attribute in _COMPARED:
        one, two = getattr(first.tags, attribute), getattr(other.tags, attribute)
        if one != two:
            said = f"{tag} {_value(two)} where {first.label} has {_value(one)}"
            break
    else:
        said = f"samples of another kind than {first.label}"
    return BadInputError(f"{name}: {other.label} has {said}: not one image; select one of them")


def _value(value: Any) -> str:
    return str(getattr(value, "name", value))
