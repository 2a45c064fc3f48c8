"""What the samples of a TIFF page mean: colours, alpha, a mask's values, and how stored ones become those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.sources.base import MASK_DTYPES, SUPPORTED_DTYPES, Alpha
from tiledblend.sources.tiff.colours import ycbcr_to_rgb
from tiledblend.sources.tiff.jpeg2000 import JPEG_2000
from tiledblend.sources.tiff.segments import JPEG, JPEG_XL, JPEG_XR, WEBP

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, TRANSPARENCY_MASK, YCBCR = 0, 1, 2, 3, 4, 6
_APERIO_YCBCR, _APERIO_RGB = 33003, 33005
_COLOR_MAP, _EXTRA_SAMPLES = 320, 338

Pixels = NDArray[Any]
Convert = Callable[[Pixels], Pixels]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a page's samples mean. dtype, count, alpha: after `convert`; count is of the whole pixel.

    is_rgb: the first three are red, green and blue.
    convert: from decoded (height, width, samples) to what `read` returns, None when they are the same.
    """

    dtype: np.dtype[Any]
    count: int
    alpha: Alpha = Alpha.NONE
    is_rgb: bool = False
    convert: Convert | None = None
    notes: tuple[str, ...] = ()

    @property
    def meaning(self) -> tuple[np.dtype[Any], int, Alpha, bool]:
        """What pages and levels of one image have in common."""
        return self.dtype, self.count, self.alpha, self.is_rgb


def interpret(page: tifffile.TiffPage, name: str, *, mask: bool) -> Samples:
    """What the samples of a page mean as an image or a mask. Raises BadInputError naming what is not read.

    Min-is-white is inverted to min-is-black, but not bool masks that tifffile wrote: True stays True. Palette images
    become RGB (uint8, the high bytes of the colour map); as a mask they keep their indices, which are labels. YCbCr
    becomes RGB in the codec, or here where it lies in separate planes. One extra sample of RGB without the ExtraSamples
    tag is taken as straight alpha, as OpenCV and many others write it; what the tag calls unspecified (0), such as
    near infrared, is a channel.
    """
    if page.dtype is None:
        raise BadInputError(f"{name}: samples of {page.bitspersample} bits (format {page.sampleformat}) are not read")
    photometric = int(page.photometric)
    samples = _colour_samples(page, photometric, name, mask=mask)
    accepted = MASK_DTYPES if mask else SUPPORTED_DTYPES
    if str(samples.dtype) not in accepted:
        what = "a mask" if mask else "an image"
        raise BadInputError(f"{name}: dtype {samples.dtype} is not read as {what}; convert it to {', '.join(accepted)}")
    return samples


def _colour_samples(page: tifffile.TiffPage, photometric: int, name: str, *, mask: bool) -> Samples:
    dtype = np.dtype(page.dtype)
    count = int(page.samplesperpixel)
    if photometric == PALETTE and not mask:
        return _palette(page, name)
    if photometric == PALETTE:
        return Samples(dtype, count, notes=("palette indices are kept as labels",))
    if photometric in (RGB, YCBCR) and count >= 3:
        return _rgb(page, photometric, name)
    if photometric in (MIN_IS_BLACK, MIN_IS_WHITE, TRANSPARENCY_MASK) or (photometric == RGB and count < 3):
        # tifffile labels every bool array min-is-white, and True is 1 all the same.
        by_tifffile = dtype.kind == "b" and page.software.startswith("tifffile.py")
        convert = _inversion(page, name) if photometric == MIN_IS_WHITE and not by_tifffile else None
        notes = ("min-is-white: inverted",) if convert else ()
        extra = _extra_samples(page, 1)
        alpha = _stated_alpha(extra)
        if alpha is not Alpha.NONE and convert is not None:
            raise BadInputError(f"{name}: min-is-white with an alpha channel is not read; convert it to min-is-black")
        return Samples(dtype, count, alpha, False, convert, notes + _bits_note(page))
    kind = getattr(page.photometric, "name", str(page.photometric))
    raise BadInputError(f"{name}: colour space {kind} is not read; convert it to RGB first")


def _rgb(page: tifffile.TiffPage, photometric: int, name: str) -> Samples:
    compression = int(page.compression)
    if photometric == YCBCR and compression not in JPEG | JPEG_2000 | WEBP | JPEG_XR | JPEG_XL:
        raise BadInputError(f"{name}: YCbCr samples with this compression are not read; convert it to RGB first")
    if photometric == YCBCR and compression in JPEG and page.planarconfig == 1 and page.samplesperpixel > 3:
        raise BadInputError(f"{name}: YCbCr JPEG with extra samples is not read; convert it to RGB first")
    convert = ycbcr_to_rgb if _is_planar_ycbcr(page, photometric, name) else None
    dtype, count = np.dtype(page.dtype), int(page.samplesperpixel)
    notes = _bits_note(page)
    extra = _extra_samples(page, 3)
    if extra == (0,) and page.tags.get(_EXTRA_SAMPLES) is None:
        note = "extra sample of unstated meaning taken as straight alpha; channels 0,1,2 leave it out"
        return Samples(dtype, count, Alpha.STRAIGHT, True, convert, (*notes, note))
    alpha = _stated_alpha(extra)
    plain = [str(3 + i) for i in range(len(extra) - (alpha is not Alpha.NONE))]
    if plain and page.tags.get(_EXTRA_SAMPLES) is not None:
        said = f"sample {plain[0]} is" if len(plain) == 1 else f"samples {', '.join(plain)} are"
        notes += (f"{said} no alpha by the file's ExtraSamples: plain channels beside red, green and blue",)
    return Samples(dtype, count, alpha, True, convert, notes)


def _is_planar_ycbcr(page: tifffile.TiffPage, photometric: int, name: str) -> bool:
    """True when luminance and chrominance lie in planes of their own, which no decoder sees together."""
    compression = int(page.compression)
    if page.planarconfig == 1 or (photometric != YCBCR and compression != _APERIO_YCBCR) or compression == _APERIO_RGB:
        return False
    if compression not in JPEG | JPEG_2000 or np.dtype(page.dtype).kind != "u":
        raise BadInputError(f"{name}: YCbCr in separate planes with this compression is not read; convert it to RGB")
    return True


def _extra_samples(page: tifffile.TiffPage, colours: int) -> tuple[int, ...]:
    """Meaning of each sample after the colours; 0 where the tag does not say."""
    number = max(0, int(page.samplesperpixel) - colours)
    stated = tuple(int(value) for value in page.extrasamples)[:number]
    return stated + (0,) * (number - len(stated))


def _stated_alpha(extra: tuple[int, ...]) -> Alpha:
    # TIFF 6.0, ExtraSamples: 1 associated (premultiplied), 2 unassociated. Only a last sample can be our alpha.
    return {1: Alpha.PREMULTIPLIED, 2: Alpha.STRAIGHT}.get(extra[-1] if extra else 0, Alpha.NONE)


def _bits_note(page: tifffile.TiffPage) -> tuple[str, ...]:
    bits, dtype = page.bitspersample, np.dtype(page.dtype)
    if isinstance(bits, int) and dtype.kind == "u" and bits != 8 * dtype.itemsize:
        return (f"{bits}-bit samples, values as stored in {dtype}",)
    return ()


def _inversion(page: tifffile.TiffPage, name: str) -> Convert:
    dtype = np.dtype(page.dtype)
    if dtype.kind == "b":
        return np.logical_not
    if dtype.kind != "u" or not isinstance(page.bitspersample, int):
        raise BadInputError(f"{name}: min-is-white samples of dtype {dtype} are not read; convert it to min-is-black")
    top = dtype.type((1 << page.bitspersample) - 1)

    def invert(pixels: Pixels) -> Pixels:
        return np.subtract(top, pixels, dtype=dtype)

    return invert


def _palette(page: tifffile.TiffPage, name: str) -> Samples:
    bits, dtype = page.bitspersample, np.dtype(page.dtype)
    table = page.tags.valueof(_COLOR_MAP)  # absent in some damaged files
    colours = np.asarray(table, np.uint16) if table is not None else np.zeros((0, 0), np.uint16)
    if not isinstance(bits, int) or bits > 16 or page.samplesperpixel != 1 or colours.size != 3 << bits:
        raise BadInputError(f"{name}: palette image whose colour map does not fit its samples; convert it to RGB")
    colours = colours.reshape(3, -1)
    # Old writers put 8-bit values into the 16-bit map (as libtiff's checkcmap has it).
    lookup = np.ascontiguousarray((colours >> 8 if colours.max() > 255 else colours).astype(np.uint8).T)
    is_bool = dtype.kind == "b"

    def expand(pixels: Pixels) -> Pixels:
        index = pixels[:, :, 0]
        expanded: Pixels = lookup[index.view(np.uint8) if is_bool else index]
        return expanded

    return Samples(np.dtype(np.uint8), 3, Alpha.NONE, True, expand, ("palette: expanded to RGB",))
