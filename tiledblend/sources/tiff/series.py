"""The images of a parsed TIFF: tifffile's, and those that it cannot read because their pages are stored unlike.

tifffile reads the tags of an image's first page and takes them for all. Where it notices that they cannot be (the
numbers of strips differ) it gives up; where it groups plain pages by their tags, a stack falls apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tifffile

from tiledblend.sources.tiff.structure import Structure

_FALSE_KEYFRAME = ("incompatible keyframe", "page hash mismatch")


def images_of(tiff: tifffile.TiffFile, structure: Structure) -> list[tifffile.TiffPageSeries]:
    """Every image with its levels, in tifffile's order. Raises whatever tifffile does."""
    try:
        return _whole_stacks(tiff, list(tiff.series))
    except RuntimeError as error:
        if str(error) not in _FALSE_KEYFRAME:
            raise
    _read_every_page(tiff, structure)
    try:
        return _whole_stacks(tiff, list(tiff.series))
    except RuntimeError as error:
        if str(error) not in _FALSE_KEYFRAME:
            raise
    # The unlike ones are SubIFDs, for which tifffile has no other way: the levels are put together here.
    below = [_take_subifds(page) for page in tiff.pages]
    found = list(tiff.series)
    for image in found:
        _add_levels(tiff, image, below)
    return _whole_stacks(tiff, found)


class _WholePages(tifffile.TiffPages):  # type: ignore[misc]  # final for users of its API, not for its own pages
    """Pages that all have their own tags."""

    @property
    def useframes(self) -> bool:
        """False: a frame has its first page's tags."""
        return False

    @useframes.setter
    def useframes(self, value: bool) -> None:
        pass


def _read_every_page(tiff: tifffile.TiffFile, structure: Structure) -> None:
    """Make tifffile read all directories of the main chain whole, and begin again."""
    tiff.filehandle.seek(8 if structure.is_bigtiff else 4)
    tiff.pages = _WholePages(tiff)
    tiff.pages.cache = True
    tiff.is_uniform = False


def _take_subifds(page: Any) -> tuple[int, ...]:
    below, page.subifds = page.subifds or (), None
    return tuple(int(offset) for offset in below)


def _add_levels(tiff: tifffile.TiffFile, image: tifffile.TiffPageSeries, below: Sequence[tuple[int, ...]]) -> None:
    """The levels of an image whose pages list them as SubIFDs, each page of each with its own tags."""
    pages = [page for page in image if page is not None]
    number = min((len(below[page.index]) for page in pages), default=0) if len(pages) == len(image) else 0
    axes, shape = image.axes, image.shape
    for level in range(number):
        found = []
        for page in pages:
            tiff.filehandle.seek(below[page.index][level])
            found.append(tifffile.TiffPage(tiff, (page.index, level + 1)))
        key = found[0]
        sides = {"Y": key.imagelength, "X": key.imagewidth}
        smaller = tuple(sides.get(axis, size) for axis, size in zip(axes, shape, strict=True))
        image.levels.append(
            tifffile.TiffPageSeries(found, smaller, key.dtype, axes, parent=tiff, name=image.name, kind=image.kind)
        )


def _whole_stacks(tiff: tifffile.TiffFile, found: list[tifffile.TiffPageSeries]) -> list[tifffile.TiffPageSeries]:
    """A stack of plain pages that was grouped by their tags as one image again: plane n is its nth page."""
    stacks = [image for image in found if len(image) > 1 and image.kind == "generic" and len(image.levels) == 1]
    for stack in stacks:
        parts = [image for image in found if image is stack or _is_beside(image, stack)]
        if len(parts) < 2 or stack not in found:
            continue
        listed = [page for part in parts for page in part if page is not None]
        pages = sorted(listed, key=lambda page: page.treeindex)
        key = stack.keyframe
        shape, axes = (len(pages), *key.shape), "I" + key.axes
        whole = tifffile.TiffPageSeries(pages, shape, key.dtype, axes, parent=tiff, kind="generic")
        at = min(found.index(part) for part in parts)
        found = [image for image in found if image not in parts]
        found.insert(at, whole)
    return found


def _is_beside(image: tifffile.TiffPageSeries, stack: tifffile.TiffPageSeries) -> bool:
    one, two = image.keyframe, stack.keyframe
    sides = (one.imagelength, one.imagewidth, one.subfiletype) == (two.imagelength, two.imagewidth, two.subfiletype)
    return sides and image.kind == "generic" and len(image.levels) == 1 and one.is_subifd == two.is_subifd
