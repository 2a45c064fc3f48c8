"""Series of pages that are put together here and not by tifffile: planes of an OME Image, levels in SubIFDs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tifffile

if TYPE_CHECKING:
    from tiledblend.sources.tiff.ome import OmeImage


def whole_page(tiff: tifffile.TiffFile, number: int) -> tifffile.TiffPage:
    """A page of the main chain, with its own tags."""
    page = tiff.pages.get(number)
    assert isinstance(page, tifffile.TiffPage)
    return page


def make_series(
    pages: Sequence[Any],
    shape: Sequence[int],
    axes: str,
    key: tifffile.TiffPage,
    kind: str,
    tiff: tifffile.TiffFile,
    name: str = "",
) -> tifffile.TiffPageSeries:
    """Pages as one image. key: one of them that has its tags; shape, axes: of the whole."""
    return tifffile.TiffPageSeries(pages, tuple(shape), key.dtype, axes, parent=tiff, name=name, kind=kind)


class PagesOf:
    """What `ome.ome_images` asks of a file's pages. looks: whether each page that is named as a plane has its size."""

    def __init__(self, tiff: tifffile.TiffFile, *, looks: bool = False) -> None:
        self._tiff, self._looks = tiff, looks
        self.number = len(tiff.pages)

    def samples(self, page: int) -> int:
        """Samples per pixel."""
        return whole_page(self._tiff, page).samplesperpixel

    def has_size(self, page: int, shape: tuple[int, int]) -> bool:
        """False for a page known to be of another size."""
        if not self._looks:
            return True
        found = whole_page(self._tiff, page)
        return (found.imagelength, found.imagewidth) == shape


def ome_series(tiff: tifffile.TiffFile, image: OmeImage, *, whole: bool) -> tifffile.TiffPageSeries | None:
    """An Image with its SubIFDs as levels; None where its pages are of another shape than it says.

    whole: every page with all of its own tags; else only where it is, and the tags of the first.
    """
    key = whole_page(tiff, next(page for page in image.pages if page is not None))
    if (key.imagelength, key.imagewidth) != image.shape or key.samplesperpixel != image.samples:
        return None
    tiff.pages.useframes = True
    tiff.pages.set_keyframe(key.index)
    pages = [
        None if number is None else tiff.pages.get(number, aspage=whole or number == key.index)
        for number in image.pages
    ]
    names = "".join(axis for axis, _ in image.axes).upper()
    sizes = tuple(size for _, size in image.axes)
    series = make_series(pages, sizes + key.shape, names + key.axes, key, "ome", tiff, image.name)
    add_levels(series, pages, sizes, names, whole=whole)
    return series


def add_levels(
    series: tifffile.TiffPageSeries, pages: Sequence[Any], sizes: tuple[int, ...], names: str, *, whole: bool = False
) -> None:
    """The SubIFDs of a series' pages as its levels. sizes, names: of the axes along which the pages are counted."""
    tiff, key = series.parent, series.keyframe
    assert tiff is not None
    for level in range(len(key.subifds or ())):
        below = _level_pages(tiff, key, pages, level, whole=whole)
        if below is None:
            break
        head, found = below
        shape, axes = sizes + head.shape, names + head.axes
        series.levels.append(make_series(found, shape, axes, head, series.kind, tiff, f"Level {level + 1}"))


def _level_pages(
    tiff: tifffile.TiffFile, key: tifffile.TiffPage, pages: Sequence[Any], level: int, *, whole: bool
) -> tuple[tifffile.TiffPage, list[Any]] | None:
    """(first page, pages) of the SubIFDs number `level` of some pages; None where the first has none."""
    head: tifffile.TiffPage | None = None
    found: list[Any] = []
    for page in pages:
        offsets = () if page is None else page.subifds or ()
        if level >= len(offsets) or offsets[level] < 8:
            found.append(None)
            continue
        tiff.filehandle.seek(offsets[level])
        place = (page.index, level + 1)
        if head is None:
            if page.index != key.index:
                return None
            head = tifffile.TiffPage(tiff, place)
            found.append(head)
        else:
            found.append(tifffile.TiffPage(tiff, place) if whole else tifffile.TiffFrame(tiff, place, keyframe=head))
    return None if head is None else (head, found)
