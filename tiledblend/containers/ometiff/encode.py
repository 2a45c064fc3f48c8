"""Pixels of one tile → the bytes that its compression stores. Arrays in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.containers.ometiff.options import TiffOptions

DEFLATE_LEVEL = 1
"""After the predictor, higher levels gain about 1 % on slides and take two to four times as long."""
ZSTD_LEVEL = 1
FINE_CHROMA_QUALITY = 90
"""From this JPEG quality on, colour keeps its resolution in y (4:2:2, as scanners store it), below it half (4:2:0).

Not 4:4:4: Bio-Formats 7 converts such tiles from YCbCr twice, and QuPath then shows wrong colours.
"""


def has_predictor(options: TiffOptions, dtype: np.dtype[Any]) -> bool:
    """True when a tile stores differences to the left neighbour (TIFF predictor 2). Not for floats: few read that."""
    return options.compression in ("deflate", "zstd") and dtype.kind == "u"


def chroma_subsampling(options: TiffOptions) -> tuple[int, int]:
    """(x, y) pixels that share one colour in JPEG."""
    return (2, 1) if options.quality >= FINE_CHROMA_QUALITY else (2, 2)


def encoder(options: TiffOptions) -> Callable[[NDArray[Any]], bytes | bytearray]:
    """Function from a tile's pixels, as of `encode_tile`, to its stored bytes. For one thread."""
    return partial(encode_tile, options=options)


def encode_tile(pixels: NDArray[Any], options: TiffOptions) -> bytes | bytearray:
    """A tile of (y, x) or (y, x, samples), at the image's edges smaller than `options.tile`, as stored bytes.

    Missing rows and columns repeat the last one, which compresses best and bleeds least in JPEG.
    """
    import imagecodecs

    pixels = padded(pixels, options.tile)
    if options.compression == "none":
        return pixels.tobytes()
    if options.compression == "jpeg":
        return imagecodecs.jpeg8_encode(pixels, level=options.quality, subsampling=chroma_subsampling(options))
    if options.compression == "jpeg2000":
        return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)
    if has_predictor(options, pixels.dtype):
        # The x axis: of a tile of (y, x, samples) as of one of (y, x).
        pixels = imagecodecs.delta_encode(pixels, axis=1)
    raw = pixels.tobytes()
    if options.compression == "zstd":
        return imagecodecs.zstd_encode(raw, level=ZSTD_LEVEL)
    return imagecodecs.deflate_encode(raw, level=DEFLATE_LEVEL)


def padded(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """The tile at full size, in C order.

    >>> padded(np.array([[1, 2]]), 3).tolist()
    [[1, 2, 2], [1, 2, 2], [1, 2, 2]]
    """
    missing = [(0, side - pixels.shape[0]), (0, side - pixels.shape[1]), *[(0, 0)] * (pixels.ndim - 2)]
    if missing[0][1] or missing[1][1]:
        pixels = np.pad(pixels, missing, mode="edge")
    if pixels.ndim == 3 and pixels.shape[2] <= 4 and pixels.strides[2] != pixels.itemsize:
        import cv2

        # From planes: several times as fast as numpy's copy.
        return cv2.merge([np.ascontiguousarray(pixels[:, :, sample]) for sample in range(pixels.shape[2])])
    return np.ascontiguousarray(pixels)
