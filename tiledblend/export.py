"""Files that other programs open: small results as PNG, JPEG or TIFF. Never over a file that is there."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import RefusedError, StorageError, UsageError
from tiledblend.store.objects import DirectoryStore

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_IMAGE_PIXELS = 100_000_000
_JPEG_SIDE = 65_500


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """True when the ending asks for one image file and not for an OME-Zarr.

    >>> is_image_path("a.PNG"), is_image_path("a.ome.zarr")
    (True, False)
    """
    return Path(path).suffix.lower() in IMAGE_ENDINGS


def check_image_output(path: str | os.PathLike[str], shape: tuple[int, int], channels: int, dtype: Any) -> None:
    """Raises UsageError when the file format cannot hold such an image, RefusedError when `path` exists."""
    path, dtype = Path(path), np.dtype(dtype)
    kind = path.suffix.lower()
    if shape[0] * shape[1] > MAX_IMAGE_PIXELS:
        raise UsageError(
            f"{path}: the result is {shape[0]} x {shape[1]} pixels; one image file may have "
            f"{MAX_IMAGE_PIXELS // 1_000_000} Mpx: write -o {path.with_suffix('.ome.zarr').name}"
        )
    if kind == ".png" and (dtype.name not in ("uint8", "uint16") or channels > 4):
        raise UsageError(
            f"{path}: PNG holds 1 to 4 channels of uint8 or uint16, not {channels} of {dtype.name}; use .tif"
        )
    if kind in (".jpg", ".jpeg") and (dtype != np.uint8 or channels not in (1, 3)):
        raise UsageError(
            f"{path}: JPEG holds 1 or 3 channels of uint8, not {channels} of {dtype.name}; use .png or .tif"
        )
    if kind in (".jpg", ".jpeg") and max(shape) > _JPEG_SIDE:
        raise UsageError(f"{path}: JPEG holds up to {_JPEG_SIDE} pixels a side, not {max(shape)}; use .png or .tif")
    refuse_existing(path)


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raises RefusedError when something is at `path`, StorageError when its folder is missing."""
    path = Path(path)
    if os.path.lexists(path):
        raise RefusedError(f"{path}: exists; name another output or remove it first")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{path}: folder {path.absolute().parent} does not exist; make it first")


def write_image(
    array: NDArray[Any], path: str | os.PathLike[str], pixel_size_um: tuple[float, float] | None = None
) -> int:
    """Write (y, x, c) pixels as PNG, JPEG (quality 95, full colour resolution) or TIFF (deflate), by the ending.

    Returns the number of bytes. The file appears whole or not at all. Raises as `check_image_output`, StorageError.
    """
    path = Path(path)
    check_image_output(path, (array.shape[0], array.shape[1]), array.shape[2], array.dtype)
    pixels = np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)
    kind = path.suffix.lower()
    if kind in (".tif", ".tiff"):
        return write_new(path, _tiff(pixels, pixel_size_um))
    import imagecodecs

    if kind == ".png":
        data = imagecodecs.png_encode(pixels, level=6)
    else:
        data = imagecodecs.jpeg8_encode(pixels, level=95, subsampling="444")
    return write_new(path, data)


def _tiff(pixels: NDArray[Any], pixel_size_um: tuple[float, float] | None) -> memoryview:
    import tifffile

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    is_rgb = channels in (3, 4) and pixels.dtype.kind == "u"
    options: dict[str, Any] = {"photometric": "rgb" if is_rgb else "minisblack"}
    if channels == 4 and is_rgb:
        options["extrasamples"] = ["unassalpha"]
    elif channels > 1 and not is_rgb:
        options["planarconfig"] = "contig"
    if pixel_size_um is not None:
        options |= {"resolution": (1e4 / pixel_size_um[1], 1e4 / pixel_size_um[0]), "resolutionunit": "CENTIMETER"}
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, tile=(256, 256), compression="zlib", predictor=True, metadata=None, **options)
    return file.getbuffer()


def write_new(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> int:
    """Create the file `path` with this content, whole or not at all, only if the name is still free.

    Returns the number of bytes. Raises RefusedError when `path` exists, StorageError when the disk refuses.
    """
    path = Path(path)
    refuse_existing(path)
    if not DirectoryStore(path.absolute().parent).put_new(path.name, data):
        refuse_existing(path)
    return len(data)
