"""PNG, JPEG and WebP files and objects: decoded whole, once per process, on the first read.

Their formats have no tiles, so a large one belongs in a tiled TIFF: above `MAX_PIXELS` opening refuses.
A density of 72, 96 or 300 dpi is a print size, not a pixel size: `pixel_size_um` is always None.
"""

from __future__ import annotations

import hashlib
import io
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import identity_of, read_whole
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec
from tiledblend.sources.pictures.header import ImageHeader, read_header
from tiledblend.sources.pictures.jpeg import decode_jpeg
from tiledblend.sources.pictures.png import check_png

MAX_PIXELS = 250_000_000
MAX_FILE_BYTES = 4 << 30


def open_image(spec: SourceSpec, *, mask: bool = False) -> ImageSource:
    """The image in a PNG, JPEG or WebP file, by its header only.

    mask: a PNG with a palette of colours is a label image, its pixels are the numbers in the palette.
    Raises BadInputError: malformed, CMYK, animated, or of more than `MAX_PIXELS` pixels.
    """
    if spec.plane:
        raise BadInputError(f"{spec}: a PNG, JPEG or WebP is one plane; it has no axis {spec.plane[0][0]}")
    if spec.series not in (None, 0):
        raise BadInputError(f"{spec}: a PNG, JPEG or WebP is one image; it has no series {spec.series}")
    header = read_header(spec.path)
    if mask and header.coloured:
        header = header.of_indices()
    height, width = header.stored
    if min(height, width) < 1:
        raise BadInputError(f"{spec.path}: an image of {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise BadInputError(
            f"{spec.path}: {height} x {width} = {height * width / 1e6:,.0f} megapixels; a {header.format} is decoded "
            f"whole, which is limited to {MAX_PIXELS // 1_000_000} megapixels; convert it to a tiled TIFF"
        )
    return ImageSource(spec, header, mask=mask)


class ImageSource(RasterSource):
    """One PNG, JPEG or WebP; its pixels are shared by every source of the same file and freed with the last."""

    def __init__(self, spec: SourceSpec, header: ImageHeader, *, mask: bool = False) -> None:
        self.spec = spec
        self.dtype = np.dtype(np.uint16 if header.bits == 16 else np.uint8)
        self.channels = header.channels
        self.alpha = Alpha.STRAIGHT if header.alpha else Alpha.NONE
        self.is_rgb = header.channels - header.alpha == 3
        # One decode yields everything: the whole image is the stored block.
        self.levels = (Level(header.shape, header.shape),)
        self.pixel_size_um = None
        self.icc_profile = header.icc_profile
        notes = header.notes
        if header.orientation != 1:
            notes += (f"EXIF orientation {header.orientation} applied",)
        self.info = SourceInfo(
            header.format,
            "yx" if header.channels == 1 else "yxc",
            compression={"PNG": "deflate", "JPEG": "jpeg", "WebP": "webp"}[header.format],
            notes=notes,
            metadata={"pixels": header.kind},
        )
        self._header = header
        self._mask = mask
        self._state = _stored(spec.path)
        self._pixels: NDArray[Any] | None = None

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        if self._pixels is None:
            self._pixels = _decoded(self._header, self.spec.path, self._state)
        return self._pixels[region.slices]

    def fingerprint(self) -> dict[str, Any]:
        """Of the file or object as it is now, with a digest of the header's facts."""
        structure = hashlib.sha256(repr(self._header).encode()).hexdigest()
        return {**identity_of(self.spec.path), "structure": structure}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, self._mask)


_Stored = tuple[tuple[str, Any], ...]
_Decoded = tuple[_Stored, bool]
"""What a file is, and whether its pixels are numbers in a palette."""
_LOCK = threading.Lock()
_DECODING: dict[_Decoded, threading.Lock] = {}
_PIXELS: weakref.WeakValueDictionary[_Decoded, NDArray[Any]] = weakref.WeakValueDictionary()


def _stored(path: str) -> _Stored:
    """What changes when the file or object does."""
    return tuple(identity_of(path).items())


def _decoded(header: ImageHeader, path: str, state: _Stored) -> NDArray[Any]:
    """The whole image, (y, x, channels), upright and read-only; decoded by the first who asks."""
    if _stored(path) != state:
        raise BadInputError(f"{path}: has changed since it was opened")
    key = state, header.indices
    with _LOCK:
        decoding = _DECODING.setdefault(key, threading.Lock())
    with decoding:
        known = _PIXELS.get(key)
        if known is not None:
            return known
        data = read_whole(path, MAX_FILE_BYTES)
        if _stored(path) != state:
            raise BadInputError(f"{path}: has changed since it was opened")
        pixels = decode(data, header)
        pixels.flags.writeable = False
        _PIXELS[key] = pixels
    with _LOCK:
        _DECODING.pop(key, None)
    return pixels


def decode(data: bytes, header: ImageHeader) -> NDArray[Any]:
    """The pixels of a file's bytes, upright: (y, x, channels) of uint8 or uint16.

    Raises ValueError when the bytes are cut short or do not hold what the header says.
    """
    if header.format == "PNG":
        check_png(data)
        stored = _decode_png(data, header)
    elif header.format == "JPEG":
        stored = decode_jpeg(data, header.channels)
    else:
        stored = _decode_webp(data, header)
    if stored.ndim == 2:
        stored = stored[:, :, np.newaxis]
    if stored.shape != (*header.stored, header.channels):
        raise ValueError(f"decoded to shape {stored.shape}, its header says {(*header.stored, header.channels)}")
    return np.ascontiguousarray(upright(stored, header.orientation))


def _decode_png(data: bytes, header: ImageHeader) -> NDArray[Any]:
    if header.expand:
        pixels = _expand_png(data, header)
    else:
        import imagecodecs

        pixels = imagecodecs.png_decode(data)
    return pixels if header.transparent is None else _with_key_alpha(pixels, header.transparent)


def _expand_png(data: bytes, header: ImageHeader) -> NDArray[Any]:
    from PIL.PngImagePlugin import PngImageFile

    # Not Image.open: its own pixel limit warns through a process-wide setting; the limit here is open_image's.
    with PngImageFile(io.BytesIO(data)) as image:
        image.load()
        if header.indices:
            return np.asarray(image)
        if header.transparent is not None:
            image.info.pop("transparency", None)
        channels = header.channels - (header.transparent is not None)
        wanted = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        return np.asarray(image if image.mode == wanted else image.convert(wanted))


def _with_key_alpha(pixels: NDArray[Any], key: tuple[int, ...]) -> NDArray[Any]:
    """`pixels` with an alpha channel: 0 where the colour equals `key`, else the dtype's maximum."""
    colours = pixels.reshape(*pixels.shape[:2], -1)[:, :, : len(key)]
    opaque = (colours != np.asarray(key, pixels.dtype)).any(axis=2, keepdims=True)
    alpha = np.where(opaque, pixels.dtype.type(np.iinfo(pixels.dtype).max), pixels.dtype.type(0))
    return np.concatenate([colours, alpha], axis=2)


def _decode_webp(data: bytes, header: ImageHeader) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.webp_decode(data, hasalpha=header.alpha))


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """`pixels` (y, x, ...) turned as EXIF orientation 1..8 asks; a view.

    >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    swapped = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    flip_y, flip_x = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return swapped[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
