"""Colour management: a source whose colours are converted from their ICC profile into another, by Little CMS.

Relative colorimetric, without black point compensation. Pixel by pixel: the same bits for every region. Images without
a profile are taken as sRGB. Alpha is untouched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import Alpha, Missed, RasterSource, Unstored

Icc = Literal["keep", "base", "srgb"]
RELATIVE_COLORIMETRIC = 1


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Little CMS's own sRGB, without the time at which it was made."""
    from PIL import ImageCms

    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[24:36] = bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
    made[84:100] = bytes(16)
    return bytes(made)


def profile_name(profile: bytes) -> str:
    """What a profile calls itself."""
    from PIL import ImageCms

    try:
        return " ".join(ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).split())
    except (OSError, ImageCms.PyCMSError, ValueError):
        return "not readable"


def converted(source: RasterSource, target: bytes) -> RasterSource:
    """The source in the colours of a profile; itself where it has them, or is no RGB image.

    Raises BadInputError for a profile that is not of RGB or not readable, and for pixels that cannot be converted.
    """
    own = source.icc_profile or srgb_profile()
    if own == target or not source.is_rgb or source.channels - (source.alpha is not Alpha.NONE) != 3:
        return source
    if source.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"{source.name}: colours of {source.dtype.name} have no ICC conversion; use --icc keep")
    if source.alpha is Alpha.PREMULTIPLIED:
        raise BadInputError(f"{source.name}: premultiplied colours have no ICC conversion; store them straight")
    for profile in (own, target):
        _require_rgb(profile, source.name)
    return ConvertedSource(source, target)


def _require_rgb(profile: bytes, name: str) -> None:
    from PIL import ImageCms

    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError, ValueError) as error:
        raise BadInputError(f"{name}: its ICC profile is not readable; use --icc keep") from error
    if space != "RGB":
        raise BadInputError(f"{name}: its ICC profile is of {space}, not RGB; use --icc keep")


class ConvertedSource(RasterSource):
    """Another source's pixels, their colours in the profile `target`. What is stored is not what is read."""

    def __init__(self, source: RasterSource, target: bytes) -> None:
        self._source, self._own = source, source.icc_profile or srgb_profile()
        self.spec, self.dtype, self.channels, self.alpha = source.spec, source.dtype, source.channels, source.alpha
        self.is_rgb, self.levels, self.icc_profile = source.is_rgb, source.levels, target
        self.pixel_size_um, self.origin_um, self.magnification = (
            source.pixel_size_um,
            source.origin_um,
            source.magnification,
        )
        self.is_opened_by_name = source.is_opened_by_name
        note = f"colours converted from {profile_name(self._own)} to {profile_name(target)}"
        self.info = dataclasses.replace(source.info, notes=(*source.info.notes, note))

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        pixels = self._source.read(region, level)
        assert self.icc_profile is not None
        colours = np.ascontiguousarray(pixels[:, :, :3])
        made = _transformed(colours, self._own, self.icc_profile)
        return made if self.channels == 3 else np.concatenate([made, pixels[:, :, 3:]], axis=2)

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """As the other source's."""
        return self._source.expect(regions, level, fetch=fetch)

    def rest(self) -> None:
        """As `RasterSource.rest`."""
        self._source.rest()

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """As the other source's."""
        return self._source.unstored(level, missed)

    def take_missed(self, *, of_all_threads: bool = False) -> list[Missed]:
        """As the other source's."""
        return self._source.take_missed(of_all_threads=of_all_threads)

    def require_unchanged(self) -> None:
        """As the other source's."""
        self._source.require_unchanged()

    def contents(self) -> Iterable[tuple[str, str]]:
        """As the other source's."""
        return self._source.contents()

    def fingerprint(self) -> dict[str, Any]:
        """The other source's, with both profiles in its structure digest."""
        identity = self._source.fingerprint()
        assert self.icc_profile is not None
        digests = [hashlib.sha256(profile).hexdigest() for profile in (self._own, self.icc_profile)]
        text = f"{identity['structure']} icc {digests} intent {RELATIVE_COLORIMETRIC}"
        return {**identity, "structure": hashlib.sha256(text.encode()).hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvertedSource, (self._source, self.icc_profile)


def _transformed(colours: NDArray[Any], own: bytes, target: bytes) -> NDArray[Any]:
    """(y, x, 3) of uint8 or uint16 in another profile."""
    if colours.dtype == np.uint16:
        import imagecodecs

        wide: NDArray[Any] = imagecodecs.cms_transform(
            colours, own, target, colorspace="rgb", outcolorspace="rgb", intent=RELATIVE_COLORIMETRIC
        )
        return wide
    from PIL import Image, ImageCms

    return np.asarray(ImageCms.applyTransform(Image.fromarray(colours), _transform(own, target)))


@lru_cache(maxsize=16)
def _transform(own: bytes, target: bytes) -> Any:
    from PIL import ImageCms

    first, second = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (own, target))
    return ImageCms.buildTransform(first, second, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
