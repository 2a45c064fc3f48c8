"""GDAL's internal masks: pages that say which pixels of another page are valid, as that image's alpha.

A mask page has NewSubfileType's bit 2 (TIFF 6.0, transparency mask) and the sides of the page that it is for; COGs have
one beside the image and one beside each overview, whose pixels are averages of the valid ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.sources.base import Alpha
from tiledblend.sources.tiff.layout import StoredLevel, store_level
from tiledblend.sources.tiff.structure import Structure

_PLAIN = frozenset({"generic", "uniform"})
_READ = ("bool", "uint8")


def is_mask_page(page: tifffile.TiffPage) -> bool:
    """True for a page that is only there for another one's sake."""
    return page.is_mask and int(page.samplesperpixel) == 1


def mask_levels(
    all_series: Sequence[tifffile.TiffPageSeries],
    image: tifffile.TiffPageSeries,
    stored: Sequence[StoredLevel],
    name: str,
    structure: Structure,
) -> tuple[list[StoredLevel], str]:
    """The mask page of each level of an image, as far as there is one, and a note; ([], "") without masks.

    Raises BadInputError for a mask that cannot be read.
    """
    if image.kind not in _PLAIN or is_mask_page(image.keyframe) or len(stored[0].pages) != 1:
        return [], ""
    beside: dict[tuple[int, int], tifffile.TiffPageSeries] = {}
    for series in all_series:
        for level in series.levels if series.kind in _PLAIN else ():
            if len(level) == 1 and is_mask_page(level.keyframe):
                page = level.keyframe
                beside.setdefault((int(page.imagelength), int(page.imagewidth)), level)
    if stored[0].shape not in beside:
        return [], ""
    if stored[0].samples.alpha is not Alpha.NONE:
        return [], "a mask page is not used: the image has an alpha channel of its own"
    found = []
    for stored_level in stored:
        mask = beside.get(stored_level.shape)
        if mask is None:
            break
        found.append(store_level(mask, [0], f"{name}, its mask page", structure, mask=True))
        if str(found[-1].samples.dtype) not in _READ:
            raise BadInputError(f"{name}: its mask page has samples of {found[-1].samples.dtype}; store bits or bytes")
    label = found[0].pages[0].label
    return found, f"{label} is the mask of its pixels: it is the alpha channel, at every level"


def alpha_of(mask: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """(y, x, 1) of an image's dtype: full where a mask (y, x, 1) is set; 8 bits beside 8 bits as they are."""
    if mask.dtype == dtype:
        return mask
    full = np.iinfo(dtype).max if dtype.kind == "u" else 1
    scaled: NDArray[Any] = np.where(mask != 0, np.array(full, dtype), np.array(0, dtype))
    return scaled
