"""Pixels of a vendor's slide, through OpenSlide: what was scanned (its bounds), on the slide's background colour.

OpenSlide gives premultiplied colours that are transparent where nothing was scanned, and places tiles at parts of a
pixel where their overlaps say so. So every pixel here comes from one block of a fixed grid: how a read is cut does not
change it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import identity_of, open_bytes
from tiledblend.errors import BadInputError, one_line
from tiledblend.geometry import Region
from tiledblend.guard.crash import decoding
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec
from tiledblend.sources.slides.files import files_of
from tiledblend.sources.slides.vendors import NAMES, TIFF_VENDORS
from tiledblend.sources.tiff.kept import CACHE_BYTES, PartlyUsed
from tiledblend.sources.tiff.structure import walk

if TYPE_CHECKING:
    import openslide

BLOCK = 1024
TILE_CACHE_BYTES = 64 << 20
MOST_TILE_PIXELS = 64 << 20
_BYTES_PER_PIXEL = 16
"""Besides its pixels: OpenSlide's own buffer, Pillow's, and one of them again while it is copied."""
_WHITE = "FFFFFF"


def open_slide(spec: SourceSpec, vendor: str) -> SlideSource:
    """Open a slide (a file, or a folder of DICOM files) by its metadata only. vendor: of `vendors.vendor_of`.

    Raises BadInputError in one line for what OpenSlide refuses, and where it is not installed.
    """
    if spec.series not in (None, 0):
        raise BadInputError(f"{spec}: OpenSlide reads one image of a slide; it has no series {spec.series}")
    if spec.plane:
        raise BadInputError(f"{spec}: OpenSlide reads one plane of a slide; it has no axis {spec.plane[0][0]}")
    return SlideSource(spec, vendor)


class SlideSource(RasterSource):
    """One slide as OpenSlide has it: RGB of uint8; regions that were not scanned are the background colour."""

    def __init__(self, spec: SourceSpec, vendor: str) -> None:
        self.spec = spec
        self.dtype = np.dtype(np.uint8)
        self.channels = 3
        self.is_rgb = True
        self._vendor = vendor
        self._files = files_of(spec.path, vendor)
        self._state = self._files.state()
        self._lock = threading.Lock()
        self._cache = PartlyUsed(CACHE_BYTES)
        with decoding(self, Region(0, 0, 0, 0), 0):
            self._slide = self._open()
            self.icc_profile = _profile(self._slide)
        properties = dict(self._slide.properties)
        self._x, self._y, width, height = _bounds(properties, self._slide.dimensions)
        self._downsamples = tuple(self._slide.level_downsamples)
        shapes = [
            _level_shape((height, width), size, factor, (self._y, self._x))
            for size, factor in zip(self._slide.level_dimensions, self._downsamples, strict=True)
        ]
        self.levels = tuple(Level(shape, (BLOCK, BLOCK), _BYTES_PER_PIXEL * BLOCK * BLOCK) for shape in shapes)
        self.pixel_size_um = _pixel_size(properties)
        self.magnification = _number(properties.get("openslide.objective-power"))
        self._background = np.frombuffer(bytes.fromhex(_background(properties)), np.uint8)
        self._quickhash = properties.get("openslide.quickhash-1", "")
        self.info = self._described(properties, (width, height))

    def _described(self, properties: dict[str, str], size: tuple[int, int]) -> SourceInfo:
        background, (across, down) = _background(properties), self._slide.dimensions
        note = f"what was not scanned is the background colour #{background}"
        if size != (across, down):
            note += f"; the image is what was scanned, from y {self._y}, x {self._x} of {down} x {across} px"
        return SourceInfo(
            NAMES[self._vendor],
            "YXS",
            "compression not told",
            asides=(note,),
            metadata={
                "reader": f"OpenSlide {_openslide(self.spec.path).__library_version__}",
                "vendor": properties.get("openslide.vendor", self._vendor),
                "bounds": [self._y, self._x, self._y + size[1], self._x + size[0]],
                "background": f"#{background}",
                "files": 1 + len(self._files.others),
            },
        )

    def _open(self) -> openslide.OpenSlide:
        library = _openslide(self.spec.path)
        if self._vendor in TIFF_VENDORS:
            _require_plausible(self._files.main)
        try:
            slide = library.OpenSlide(self._files.main)
        except library.OpenSlideUnsupportedFormatError:
            known = f"{self.name}: looks like {NAMES[self._vendor]}, but OpenSlide {library.__library_version__}"
            raise BadInputError(f"{known} does not read it{_HINTS.get(self._vendor, '')}") from None
        except library.OpenSlideError as error:
            refused = f"{self.name}: {NAMES[self._vendor]}: OpenSlide refuses it: {_said(error)}"
            remedy = "if the file is sound, export it as OME-TIFF (QuPath, bfconvert)"
            raise BadInputError(f"{refused}; {remedy}") from error
        slide.set_cache(_tile_cache())
        return slide

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        rows = range(region.y0 // BLOCK, -(-region.y1 // BLOCK))
        columns = range(region.x0 // BLOCK, -(-region.x1 // BLOCK))
        out = np.empty((*region.shape, 3), np.uint8)
        image = Region.of_shape(self.levels[level].shape)
        for row in rows:
            for column in columns:
                block = Region(row * BLOCK, column * BLOCK, (row + 1) * BLOCK, (column + 1) * BLOCK) & image
                part = block & region
                key = level, row, column
                pixels = self._cache.take(key, part.size)
                if pixels is None:
                    pixels = self._render(block, level)
                    self._cache.put(key, pixels, block.size - part.size)
                out[part.shift(-region.y0, -region.x0).slices] = pixels[part.shift(-block.y0, -block.x0).slices]
        return out

    def _render(self, block: Region, level: int) -> NDArray[np.uint8]:
        """A block's pixels. An error of OpenSlide stays with its handle, which other threads use: it is asked once more
        through a new one."""
        slide = self._slide
        library = _openslide(self.spec.path)
        try:
            return self._rendered(slide, block, level)
        except library.OpenSlideError:
            with self._lock:
                if self._slide is slide:
                    self._slide = self._open()
        try:
            return self._rendered(self._open(), block, level)
        except library.OpenSlideError as error:
            raise BadInputError(
                f"{self.name}: level {level}, region {block}: cannot be decoded: {_said(error)}; restore the file"
            ) from error

    def _rendered(self, slide: openslide.OpenSlide, block: Region, level: int) -> NDArray[np.uint8]:
        factor = self._downsamples[level]
        # OpenSlide divides by the factor: for Leica's levels it cuts what is left, for others it interpolates.
        whole = math.ceil if self._vendor == "leica" else round
        place = self._x + whole(block.x0 * factor), self._y + whole(block.y0 * factor)
        height, width = block.shape
        rgba = np.array(slide.read_region(place, level, (width, height)))
        if not _is_whole(factor):
            # Interpolated: at the level's own edges some is taken from beyond them, where nothing is.
            rgba[:, :, 3] = np.where(rgba[:, :, 3] > 0, 255, 0)
        return over_background(rgba, self._background)

    def require_unchanged(self) -> None:
        """By size and time of every file of the slide."""
        if self._files.state() != self._state:
            raise self.changed()

    def contents(self) -> Iterable[tuple[str, str]]:
        """Every file of the slide."""
        return self._files.named()

    def fingerprint(self) -> dict[str, Any]:
        """Of the files as they are now, with a digest of the levels, the bounds, and OpenSlide's hash and version."""
        library = _openslide(self.spec.path)
        files = [(name, size) for (name, _), (_, size, _) in zip(self._files.named(), self._state, strict=False)]
        facts = (
            library.__library_version__, self._vendor, self.levels, self._downsamples, (self._y, self._x),
            self._background.tolist(), self._quickhash, files,
        )  # fmt: skip
        times = [time for _, _, time in self._files.state()]
        structure = hashlib.sha256(repr(facts).encode()).hexdigest()
        return {**identity_of(self._files.main), "files": times, "structure": structure}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, False)


_HINTS = {
    "dicom": ": it is no whole-slide image (VL Whole Slide Microscopy), or one of a kind that it does not know",
    "zeiss": ": it is no brightfield slide, or compressed in a way that it does not know; export an OME-TIFF",
    "mirax": "; copy the whole folder again",
}


def _openslide(path: str) -> Any:
    """The library, imported when the first slide is opened."""
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise BadInputError(
            f"{path}: OpenSlide reads this slide, and cannot be imported here ({one_line(str(error))}); "
            "pip install openslide-python openslide-bin"
        ) from error
    return openslide


@cache
def _tile_cache() -> Any:
    """Decoded tiles of all slides of this process: OpenSlide would keep as many for each."""
    import openslide

    return openslide.OpenSlideCache(TILE_CACHE_BYTES)


def _require_plausible(path: str) -> None:
    """Raise BadInputError for a TIFF beyond the limits of our own reading: OpenSlide aborts where it gets no memory."""
    reader = open_bytes(path)
    try:
        for height, width in walk(reader).tile_sides():
            if height * width > MOST_TILE_PIXELS:
                raise BadInputError(
                    f"{path}: tiles of {height} x {width} pixels, more than the limit of {MOST_TILE_PIXELS >> 20} Mpx; "
                    "the file is damaged"
                )
    finally:
        reader.close()


def _said(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


def _bounds(properties: dict[str, str], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """x, y, width, height of what was scanned, in pixels of level 0; the whole plane where that is not told."""
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    try:
        x, y, width, height = (int(properties[f"openslide.{name}"]) for name in names)
    except (KeyError, ValueError):
        return 0, 0, *size
    inside = 0 <= x < size[0] and 0 <= y < size[1] and width > 0 and height > 0
    return (x, y, min(width, size[0] - x), min(height, size[1] - y)) if inside else (0, 0, *size)


def _is_whole(factor: float) -> bool:
    return abs(factor - round(factor)) < 1e-6


def _level_shape(
    shape: tuple[int, int], plane: tuple[int, int], factor: float, origin: tuple[int, int]
) -> tuple[int, int]:
    """(y, x) of the scanned part of a level whose plane is (x, y) `plane`: at least one pixel.

    A whole factor leaves out a last pixel that is there in part only. Any other is a mean of two ratios of sides: the
    number of pixels is the nearest.
    """
    sides = []
    for side, whole, start in zip(shape, plane[::-1], origin, strict=True):
        pixels = math.floor(side / factor + 1e-6) if _is_whole(factor) else round(side / factor)
        is_cut = start > 0 or side < round((whole - 1) * factor)
        sides.append(max(1, min(pixels, whole - int(start / factor)) if is_cut else whole))
    return sides[0], sides[1]


def _pixel_size(properties: dict[str, str]) -> tuple[float, float] | None:
    y, x = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
    return (y, x) if y and x else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None


def _background(properties: dict[str, str]) -> str:
    """RRGGBB: white where the slide does not say."""
    stated = properties.get("openslide.background-color", _WHITE)
    try:
        return stated.upper() if len(bytes.fromhex(stated)) == 3 else _WHITE
    except ValueError:
        return _WHITE


def _profile(slide: openslide.OpenSlide) -> bytes | None:
    """The ICC profile as stored: the library's own reading of it could change bytes, or refuse it."""
    from openslide import lowlevel

    handle = slide._osr
    return lowlevel.read_icc_profile(handle) if lowlevel.get_icc_profile_size(handle) else None


def over_background(rgba: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Straight-alpha (y, x, 4) over an opaque colour (3,): (y, x, 3), rounded half up; opaque pixels as they are.

    >>> over_background(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8), np.array([255, 254, 253], np.uint8))
    array([[[ 10,  20,  30],
            [255, 254, 253]]], dtype=uint8)
    """
    alpha = rgba[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    weight = alpha.astype(np.uint16)
    mixed = (rgba[:, :, :3] * weight + background * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)
