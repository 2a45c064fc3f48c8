"""Files that other programs open: small results as PNG, JPEG or TIFF, never over one that is there."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.new_file import refuse_existing, write_new
from tiledblend.containers.ometiff.options import is_ometiff_path
from tiledblend.errors import UsageError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_IMAGE_PIXELS = 100_000_000
_JPEG_SIDE = 65_500
PYRAMID_FROM_PX = 4096


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """True when the ending asks for one image file, not for an OME-Zarr or an OME-TIFF.

    >>> is_image_path("a.PNG"), is_image_path("a.ome.zarr"), is_image_path("a.ome.tif")
    (True, False, False)
    """
    return _ending(path) in IMAGE_ENDINGS and not is_ometiff_path(path)


def _ending(path: str | os.PathLike[str]) -> str:
    return PurePosixPath(os.fspath(path)).suffix.lower()


def check_image_output(
    path: str | os.PathLike[str], shape: tuple[int, int], channels: int, dtype: Any, *, has_alpha: bool = False
) -> None:
    """Raises UsageError when the file format cannot hold such an image, RefusedError when `path` exists.

    has_alpha: the last channel is alpha.
    """
    dtype, kind = np.dtype(dtype), _ending(path)
    stem = PurePosixPath(os.fspath(path)).stem
    if shape[0] * shape[1] > MAX_IMAGE_PIXELS:
        raise UsageError(
            f"{path}: the result is {shape[0]} x {shape[1]} pixels; one image file may have "
            f"{MAX_IMAGE_PIXELS // 1_000_000} Mpx: write -o {stem}.ome.tif or -o {stem}.ome.zarr, which have a pyramid"
        )
    if kind == ".png" and (dtype.name not in ("uint8", "uint16") or channels - has_alpha not in (1, 3)):
        # Every reader takes the last of 2 or 4 channels for alpha.
        what = f"{channels} of {dtype.name} {'with' if has_alpha else 'without'} alpha"
        raise UsageError(f"{path}: PNG holds 1 or 3 channels and alpha of uint8 or uint16, not {what}; use .tif")
    if kind in (".jpg", ".jpeg") and (dtype != np.uint8 or channels not in (1, 3)):
        raise UsageError(
            f"{path}: JPEG holds 1 or 3 channels of uint8, not {channels} of {dtype.name}; use .png or .tif"
        )
    if kind in (".jpg", ".jpeg") and max(shape) > _JPEG_SIDE:
        raise UsageError(f"{path}: JPEG holds up to {_JPEG_SIDE} pixels a side, not {max(shape)}; use .png or .tif")
    refuse_existing(path)


def without_pyramid(path: str | os.PathLike[str], shape: tuple[int, int]) -> list[str]:
    """A note on an image file that is larger than viewers like without a pyramid; none for a smaller one."""
    if max(shape) <= PYRAMID_FROM_PX:
        return []
    stem = PurePosixPath(os.fspath(path)).stem
    return [f"{path}: has one level and no pyramid, so viewers load it as a whole; {stem}.ome.tif has one"]


def write_image(
    array: NDArray[Any],
    path: str | os.PathLike[str],
    pixel_size_um: tuple[float, float] | None = None,
    *,
    has_alpha: bool = False,
    icc_profile: bytes | None = None,
) -> int:
    """Write (y, x, c) pixels as PNG, JPEG (quality 95, full colour resolution) or TIFF (deflate), by the ending.

    has_alpha: the last channel is straight alpha. icc_profile: of the colours. Returns the number of bytes. The file
    appears whole or not at all. Raises as `check_image_output`, StorageError.
    """
    height, width, channels = array.shape
    check_image_output(path, (height, width), channels, array.dtype, has_alpha=has_alpha)
    pixels = np.ascontiguousarray(array[:, :, 0] if channels == 1 else array)
    kind = _ending(path)
    if kind in (".tif", ".tiff"):
        return write_new(path, _tiff(pixels, pixel_size_um, icc_profile, has_alpha=has_alpha))
    import imagecodecs

    if kind == ".png":
        data = with_png_profile(imagecodecs.png_encode(pixels, level=6), icc_profile)
    else:
        data = with_jpeg_profile(imagecodecs.jpeg8_encode(pixels, level=95, subsampling="444"), icc_profile)
    return write_new(path, data)


def with_png_profile(png: bytes | bytearray, profile: bytes | None) -> bytes | bytearray:
    """A PNG with an iCCP chunk right after its header."""
    if profile is None:
        return png
    after = 8 + 25  # the signature and IHDR
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:after] + chunk + png[after:]


def with_jpeg_profile(jpeg: bytes | bytearray, profile: bytes | None) -> bytes | bytearray:
    """A JPEG with its profile in APP2 segments, after the one that JFIF wants first."""
    if profile is None:
        return jpeg
    most = 65535 - 2 - 14
    parts = [profile[at : at + most] for at in range(0, len(profile), most)]
    segments = b"".join(
        b"\xff\xe2" + struct.pack(">H", 16 + len(part)) + b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part
        for number, part in enumerate(parts, 1)
    )
    after = 2 + (2 + struct.unpack(">H", jpeg[4:6])[0] if jpeg[2:4] == b"\xff\xe0" else 0)
    return jpeg[:after] + segments + jpeg[after:]


def _tiff(
    pixels: NDArray[Any], pixel_size_um: tuple[float, float] | None, icc_profile: bytes | None, *, has_alpha: bool
) -> bytes:
    import tifffile

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    is_rgb = channels - has_alpha == 3 and pixels.dtype.kind == "u"
    options: dict[str, Any] = {"photometric": "rgb" if is_rgb else "minisblack"}
    if channels > 1:
        options["planarconfig"] = "contig"
        plain = channels - has_alpha - (3 if is_rgb else 1)
        options["extrasamples"] = ["unspecified"] * plain + ["unassalpha"] * has_alpha
    if icc_profile is not None:
        options["iccprofile"] = icc_profile
    if pixel_size_um is not None:
        options |= {"resolution": (1e4 / pixel_size_um[1], 1e4 / pixel_size_um[0]), "resolutionunit": "CENTIMETER"}
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, tile=(256, 256), compression="zlib", predictor=True, metadata=None, **options)
    return file.getvalue()
