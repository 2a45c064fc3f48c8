"""Colours and alpha of an image apart: checked, un-multiplied, resampled without hidden colours bleeding in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.kernels.resample import Sampling
from tiledblend.sources.base import Alpha, RasterSource


def full_scale(dtype: np.dtype[Any]) -> np.float32:
    """The alpha value that is opaque."""
    return np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)


def checked_alpha(pixels: NDArray[Any], image: RasterSource, region: Region, level: int = 0) -> NDArray[Any]:
    """The same pixels. Raises BadInputError for a float alpha that is NaN or not from 0 to 1."""
    if image.alpha is not Alpha.NONE and pixels.dtype.kind == "f":
        alpha = pixels[:, :, -1]
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise BadInputError(
                f"{image.name}: level {level}, region {region}: alpha has NaN or values outside 0 to 1; "
                "scale it, or leave the channel out with channels"
            )
    return pixels


def split_alpha(pixels: NDArray[Any], alpha: Alpha) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """(colours, alpha from 0 to 1) of pixels; premultiplied colours are divided by their alpha."""
    if alpha is Alpha.NONE:
        return pixels, None
    full = full_scale(pixels.dtype)
    opacity = pixels[:, :, -1].astype(np.float32) / full
    colour = pixels[:, :, :-1]
    if alpha is Alpha.PREMULTIPLIED:
        colour = _unmultiplied(colour.astype(np.float32), opacity, full)
    return colour, opacity


def _unmultiplied(colour: NDArray[np.float32], alpha: NDArray[np.float32], full: np.float32) -> NDArray[np.float32]:
    visible = (alpha > 0)[:, :, None]
    plain = np.where(visible, colour / np.where(visible, alpha[:, :, None], np.float32(1)), np.float32(0))
    return np.minimum(plain, full) if full > 1 else plain


def resampled(
    pixels: NDArray[Any], alpha: Alpha, region: Region, sampling: Sampling
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Colour is weighted by alpha while it is resampled, so that hidden colours do not bleed in."""
    if alpha is Alpha.NONE:
        return sampling.resample(pixels, region), None
    full = full_scale(pixels.dtype)
    opacity = pixels[:, :, -1].astype(np.float32) / full
    colour = pixels[:, :, :-1].astype(np.float32)
    if alpha is Alpha.STRAIGHT:
        # Not 0 x infinity: a hidden colour is nothing, whatever it holds.
        colour = np.where(opacity[:, :, None] == 0, np.float32(0), colour) * opacity[:, :, None]
    else:
        # What _unmultiplied makes of each pixel, weighted by alpha again: it cuts a colour beyond its alpha.
        if full > 1:
            colour = np.minimum(colour, pixels[:, :, -1:].astype(np.float32))
        colour = np.where(opacity[:, :, None] == 0, np.float32(0), colour)
    smooth_alpha = sampling.resample(opacity, region)
    smooth = sampling.resample(colour, region)
    return _unmultiplied(smooth, smooth_alpha, full), smooth_alpha
