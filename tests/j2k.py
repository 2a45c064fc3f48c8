"""JPEG 2000 codestreams with subsampled components, as scanners write them: by the OpenJPEG that Pillow brings."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest

_FIELDS = "dx dy w h x0 y0 prec bpp sgnd"


class _Parameters(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in _FIELDS.split())


class _Component(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in f"{_FIELDS} resno_decoded factor".split()),
        ("data", ctypes.POINTER(ctypes.c_int32)),
        ("alpha", ctypes.c_uint16),
    )


class _Image(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ["x0", "y0", "x1", "y1", "numcomps"]),
        ("color_space", ctypes.c_int),
        ("comps", ctypes.POINTER(_Component)),
        ("icc", ctypes.c_void_p),
        ("icclen", ctypes.c_uint32),
    )


def _library() -> Any:
    found = sorted((Path(PIL.__file__).parents[1] / "pillow.libs").glob("libopenjp2*.so*"))
    if not found:
        pytest.skip("this Pillow brings no OpenJPEG of its own")
    library = ctypes.CDLL(str(found[0]))
    library.opj_image_create.restype = ctypes.POINTER(_Image)
    library.opj_image_create.argtypes = [ctypes.c_uint32, ctypes.POINTER(_Parameters), ctypes.c_int]
    library.opj_create_compress.restype = library.opj_stream_create_default_file_stream.restype = ctypes.c_void_p
    library.opj_stream_create_default_file_stream.argtypes = [ctypes.c_char_p, ctypes.c_int]
    return library


def subsample(ycbcr: Any, step: tuple[int, int]) -> list[Any]:
    """Luminance, and each chrominance as the mean of its (y, x) step."""
    (height, width), (y, x) = ycbcr.shape[:2], step
    planes = [np.ascontiguousarray(ycbcr[:, :, 0])]
    for k in (1, 2):
        padded = np.pad(ycbcr[:, :, k], ((0, -height % y), (0, -width % x)), mode="edge")
        means = padded.reshape(len(padded) // y, y, padded.shape[1] // x, x).mean((1, 3))
        planes.append(means.round().astype(np.uint8))
    return planes


def encode(planes: list[Any], steps: list[tuple[int, int]], path: Path, *, space: int | None = None) -> bytes:
    """Lossless, without a component transform. steps: (y, x) of each plane. path: of a scratch file.

    space: OpenJPEG's colour space of a JP2 box (1 sRGB, 3 sYCC); None: a bare codestream.
    """
    library = _library()
    height, width = planes[0].shape
    parameters = (_Parameters * len(planes))()
    for each, plane, (dy, dx) in zip(parameters, planes, steps, strict=True):
        each.dx, each.dy, each.prec, each.bpp = dx, dy, 8, 8
        each.h, each.w = plane.shape
    image = library.opj_image_create(len(planes), parameters, space or 0)
    image.contents.x1, image.contents.y1 = width, height
    for index, plane in enumerate(planes):
        flat = np.ascontiguousarray(plane, np.int32).ravel()
        ctypes.memmove(image.contents.comps[index].data, flat.ctypes.data, flat.nbytes)
    options = (ctypes.c_char * 65536)()
    library.opj_set_default_encoder_parameters(options)
    codec = ctypes.c_void_p(library.opj_create_compress(0 if space is None else 2))
    assert library.opj_setup_encoder(codec, options, image)
    stream = ctypes.c_void_p(library.opj_stream_create_default_file_stream(str(path).encode(), 0))
    assert library.opj_start_compress(codec, image, stream)
    assert library.opj_encode(codec, stream)
    assert library.opj_end_compress(codec, stream)
    library.opj_stream_destroy(stream)
    library.opj_destroy_codec(codec)
    library.opj_image_destroy(image)
    return path.read_bytes()
