"""Blending: colours and weights of several layers to one result, per pixel and channel.

Everything is float32 and elementwise in a fixed order, with one round-half-even at the end, so any part of a blend
equals that part of the whole blend bit for bit. Work goes in strips of rows that stay in the processor's cache.
What is done with a strip is a `Rule`: `kernels.over`, `kernels.average`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.halve import is_planar

Mode = Literal["over", "average"]
STRIP_SAMPLES = 32_768


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one layer brings to a region.

    colour: (y, x, c) without alpha, in the canvas's dtype or float32. weight: float32 (y, x) in [0, 1] with everything
    in it, or None where it is 1.
    alpha: float32 (y, x) of the image, or None; already part of `weight`. cover: the weight without the image's alpha,
    or None where it is 1; a canvas
    with alpha needs both.
    """

    colour: NDArray[Any]
    weight: NDArray[np.float32] | None = None
    alpha: NDArray[np.float32] | None = None
    cover: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Blended:
    """pixels: (y, x, c) in the canvas's dtype. background: number of pixels where no layer has weight."""

    pixels: NDArray[Any]
    background: int


Strip = Callable[
    [Sequence[NDArray[Any]], Sequence[NDArray[np.float32] | None], NDArray[np.float32], bool], NDArray[np.float32]
]
AlphaBlend = Callable[
    [Sequence[Contribution], NDArray[np.float32], np.float32], tuple[NDArray[np.float32], NDArray[np.float32]]
]


@dataclass(frozen=True, slots=True)
class Rule:
    """How weighted colours become one.

    strip: (colours (y, x * channels) and weights of the same shape or None for 1, bottom first, the background (1, x *
    channels), True where a colour that alone decides is to come through as it is) to float32 samples.
    alpha: (layers, background, full scale) to (colours, alpha from 0 to 1) of a canvas with straight alpha.
    """

    strip: Strip
    alpha: AlphaBlend


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """float32 to the canvas's dtype: round half to even, clipped to the dtype's range; floats stay.

    >>> to_dtype(np.array([0.5, 1.5, 300.0], np.float32), np.dtype("uint8")).tolist()
    [0, 2, 255]
    """
    if values.dtype == dtype or dtype.kind == "f":
        return values.astype(dtype, copy=False)
    return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)


def blend_tile(
    layers: Sequence[Contribution],
    background: NDArray[np.float32],
    dtype: np.dtype[Any],
    rule: Rule,
    *,
    has_alpha: bool = False,
) -> Blended:
    """Blends layers, bottom first, over the background (float32, one value per channel of the canvas).

    With `has_alpha` the last channel of the result is straight alpha. Where no layer has weight the background stands.
    """
    # Float images may hold NaN and infinities: they come through or spread as IEEE 754 says, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        if has_alpha:
            return _blend_alpha(layers, background, dtype, rule)
        return _blend_opaque(layers, background, dtype, rule)


def _blend_opaque(
    layers: Sequence[Contribution], background: NDArray[np.float32], dtype: np.dtype[Any], rule: Rule
) -> Blended:
    colour = layers[0].colour
    if is_planar(colour):
        planes = [
            _blend_flat([layer.colour[:, :, c] for layer in layers], layers, background[c : c + 1], dtype, rule)
            for c in range(colour.shape[2])
        ]
        return Blended(np.moveaxis(np.stack(planes), 0, 2), count_background(layers))
    height, width, channels = colour.shape
    flat = [np.ascontiguousarray(layer.colour).reshape(height, width * channels) for layer in layers]
    out = _blend_flat(flat, layers, background, dtype, rule)
    return Blended(out.reshape(height, width, channels), count_background(layers))


def count_background(layers: Sequence[Contribution]) -> int:
    """Pixels where no layer has weight."""
    if any(layer.weight is None for layer in layers):
        return 0
    empty: Any = True
    for layer in layers:
        empty = empty & (layer.weight == 0)
    return int(np.count_nonzero(empty))


def _widen(weight: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """(y, x) weights to (y, x * channels), each repeated for its pixel's channels."""
    if channels == 1:
        return weight
    if channels <= 4:
        wide: NDArray[Any] = cv2.merge([weight] * channels)
        return wide.reshape(weight.shape[0], -1)
    return np.repeat(weight, channels, axis=1)


def _blend_flat(
    colours: Sequence[NDArray[Any]],
    layers: Sequence[Contribution],
    background: NDArray[np.float32],
    dtype: np.dtype[Any],
    rule: Rule,
) -> NDArray[Any]:
    """Blends 2-D arrays of samples (y, x * channels), strip by strip."""
    height, samples = colours[0].shape
    channels = len(background)
    out = np.empty((height, samples), dtype)
    rows = max(1, STRIP_SAMPLES // max(1, samples))
    ground = np.tile(background, samples // channels)[None]
    signed = any(colour.dtype.kind == "f" for colour in colours)
    for y in range(0, height, rows):
        part = slice(y, min(y + rows, height))
        weights = [
            None if layer.weight is None else _widen(np.ascontiguousarray(layer.weight[part]), channels)
            for layer in layers
        ]
        strip = rule.strip([c[part] for c in colours], weights, ground, dtype.kind == "f")
        if dtype.kind == "f":
            out[part] = strip
        else:
            _round_into(strip, out[part], signed=signed)
    return out


def _round_into(strip: NDArray[np.float32], out: NDArray[Any], *, signed: bool) -> None:
    """Round half to even, clipped to uint8 or uint16: OpenCV does in one pass what takes numpy four."""
    if out.dtype == np.uint8:
        if signed:
            cv2.threshold(strip, 0, 0, cv2.THRESH_TOZERO, dst=strip)
        cv2.convertScaleAbs(strip, out)  # of what is not negative
    else:
        cv2.addWeighted(strip, 1, strip, 0, 0, out, cv2.CV_16U)


def _blend_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], dtype: np.dtype[Any], rule: Rule
) -> Blended:
    """Canvas with straight alpha. Where the bottom layer alone has weight, undimmed, over a transparent background,
    its colour and alpha come through as they are."""
    full = np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)
    shape = layers[0].colour.shape[:2]
    colour, alpha = rule.alpha(layers, background, full)
    out = np.empty((*shape, len(background)), np.float32)
    out[:, :, :-1] = colour
    out[:, :, -1] = alpha * full
    result = to_dtype(out, dtype)
    nothing = np.ones(shape, np.bool_)
    for layer in layers:
        nothing &= weight_of(layer, shape) == 0
    np.copyto(result, to_dtype(background, dtype), where=nothing[:, :, None])
    bottom, transparent = layers[0], background[-1] == 0
    untouched = _bottom_alone(layers, shape)
    if transparent and untouched.any():
        np.copyto(result[:, :, :-1], to_dtype(bottom.colour, dtype), where=untouched[:, :, None])
        own = full if bottom.alpha is None else bottom.alpha * full
        np.copyto(result[:, :, -1], to_dtype(np.broadcast_to(np.float32(own), shape), dtype), where=untouched)
    if transparent:
        # A transparent pixel of the image is the image's, not background.
        for layer in layers:
            nothing &= _cover_of(layer, shape) == 0
    return Blended(result, int(np.count_nonzero(nothing)))


def weight_of(layer: Contribution, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A layer's weight as an array."""
    return np.ones(shape, np.float32) if layer.weight is None else layer.weight


def _cover_of(layer: Contribution, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.ones(shape, np.float32) if layer.cover is None else layer.cover


def _bottom_alone(layers: Sequence[Contribution], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    alone: NDArray[np.bool_] = _cover_of(layers[0], shape) == 1
    for layer in layers[1:]:
        alone &= weight_of(layer, shape) == 0
    return alone


def unmultiplied(
    premultiplied: NDArray[np.float32], alpha: NDArray[np.float32], background: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Colours of premultiplied ones; the background's where nothing covers it."""
    covered = (alpha > 0)[:, :, None]
    return np.where(
        covered, premultiplied / np.where(covered, alpha[:, :, None], np.float32(1)), background[:-1]
    ).astype(np.float32)
