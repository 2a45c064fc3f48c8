"""Blending: colours and weights of several layers to one result, per pixel and channel.

Everything is float32 and elementwise in a fixed order, with one round-half-even at the end, so any part of a blend
equals that part of the whole blend bit for bit. Work goes in strips of rows that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    mode: Mode = "over",
    *,
    has_alpha: bool = False,
) -> Blended:
    """Blends layers, bottom first, over the background (float32, one value per channel of the canvas).

    over: out = w I + (1 - w) out (Porter and Duff 1984, over); with `has_alpha` the last channel of the result is
    straight alpha and colours are
    composited premultiplied. average: sum(w I) / sum(w), alpha like a colour. Where no layer has weight the background
    stands.
    """
    # Float images may hold NaN and infinities: they come through or spread as IEEE 754 says, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        if has_alpha:
            return _blend_alpha(layers, background, dtype, mode)
        return _blend_opaque(layers, background, dtype, mode)


def _blend_opaque(
    layers: Sequence[Contribution], background: NDArray[np.float32], dtype: np.dtype[Any], mode: Mode
) -> Blended:
    colour = layers[0].colour
    if is_planar(colour):
        planes = [
            _blend_flat([layer.colour[:, :, c] for layer in layers], layers, background[c : c + 1], dtype, mode)
            for c in range(colour.shape[2])
        ]
        return Blended(np.moveaxis(np.stack(planes), 0, 2), _count_background(layers))
    height, width, channels = colour.shape
    flat = [np.ascontiguousarray(layer.colour).reshape(height, width * channels) for layer in layers]
    out = _blend_flat(flat, layers, background, dtype, mode)
    return Blended(out.reshape(height, width, channels), _count_background(layers))


def _count_background(layers: Sequence[Contribution]) -> int:
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
    mode: Mode,
) -> NDArray[Any]:
    """Blends 2-D arrays of samples (y, x * channels), strip by strip."""
    height, samples = colours[0].shape
    channels = len(background)
    out = np.empty((height, samples), dtype)
    rows = max(1, STRIP_SAMPLES // max(1, samples))
    one_strip = _over_strip if mode == "over" else _average_strip
    ground = np.tile(background, samples // channels)[None]
    for y in range(0, height, rows):
        part = slice(y, min(y + rows, height))
        weights = [
            None if layer.weight is None else _widen(np.ascontiguousarray(layer.weight[part]), channels)
            for layer in layers
        ]
        strip = one_strip([c[part] for c in colours], weights, ground, dtype.kind == "f")
        if dtype.kind == "f":
            out[part] = strip
        else:
            _round_into(strip, out[part])
    return out


def _round_into(strip: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Round half to even, clipped to uint8 or uint16: OpenCV does in one pass what takes numpy four."""
    if out.dtype == np.uint8:
        cv2.convertScaleAbs(strip, out)  # of blends of what is not negative
    else:
        cv2.addWeighted(strip, 1, strip, 0, 0, out, cv2.CV_16U)


def _over_strip(
    colours: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[np.float32] | None],
    ground: NDArray[np.float32],
    select: bool,
) -> NDArray[np.float32]:
    """select: float images keep NaN, infinities and signs of the layer that alone decides; integers are exact
    without."""
    total: NDArray[np.float32] | None = None
    for colour, weight in zip(colours, weights, strict=True):
        if weight is None:
            total = colour.astype(np.float32)
            continue
        below = np.broadcast_to(ground, colour.shape) if total is None else total
        mixed = np.multiply(colour, weight, dtype=np.float32)
        mixed += (np.float32(1) - weight) * below
        if select:
            np.copyto(mixed, colour, where=weight == 1)
            np.copyto(mixed, below, where=weight == 0)
        total = mixed
    assert total is not None
    return total


def _average_strip(
    colours: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[np.float32] | None],
    ground: NDArray[np.float32],
    select: bool,
) -> NDArray[np.float32]:
    total = np.zeros(colours[0].shape, np.float32)
    weight_sum = np.zeros(colours[0].shape, np.float32)
    alone = np.full(colours[0].shape, -1, np.int16) if select else None
    for i, (colour, weight) in enumerate(zip(colours, weights, strict=True)):
        w = np.ones(colour.shape, np.float32) if weight is None else weight
        term = np.multiply(colour, w, dtype=np.float32)
        if alone is not None:
            np.copyto(term, np.float32(0), where=w == 0)
            alone[w != 0] = np.where(alone[w != 0] == -1, i, -2)
        total += term
        weight_sum += w
    nothing = weight_sum == 0
    np.copyto(weight_sum, np.float32(1), where=nothing)
    total /= weight_sum
    np.copyto(total, ground, where=nothing)
    if alone is not None:
        for i, colour in enumerate(colours):
            np.copyto(total, colour, where=alone == i)
    return total


def _blend_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], dtype: np.dtype[Any], mode: Mode
) -> Blended:
    """Canvas with straight alpha. Where the bottom layer alone has weight, undimmed, over a transparent background,
    its colour and alpha come through as they are."""
    full = np.float32(1 if dtype.kind == "f" else np.iinfo(dtype).max)
    shape = layers[0].colour.shape[:2]
    colour, alpha = (_over_alpha if mode == "over" else _average_alpha)(layers, background, full)
    out = np.empty((*shape, len(background)), np.float32)
    out[:, :, :-1] = colour
    out[:, :, -1] = alpha * full
    result = to_dtype(out, dtype)
    nothing = np.ones(shape, np.bool_)
    for layer in layers:
        nothing &= _weight_of(layer, shape) == 0
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


def _weight_of(layer: Contribution, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.ones(shape, np.float32) if layer.weight is None else layer.weight


def _cover_of(layer: Contribution, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.ones(shape, np.float32) if layer.cover is None else layer.cover


def _bottom_alone(layers: Sequence[Contribution], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    alone: NDArray[np.bool_] = _cover_of(layers[0], shape) == 1
    for layer in layers[1:]:
        alone &= _weight_of(layer, shape) == 0
    return alone


def _over_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], full: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = layers[0].colour.shape
    alpha = np.full(shape[:2], background[-1] / full, np.float32)
    premultiplied = np.broadcast_to(background[:-1] * (background[-1] / full), shape).astype(np.float32)
    for layer in layers:
        weight = _weight_of(layer, shape[:2])
        rest = np.float32(1) - weight
        own = layer.colour.astype(np.float32)
        mixed = own * weight[:, :, None] + premultiplied * rest[:, :, None]
        mixed = np.where((weight == 1)[:, :, None], own, mixed)
        premultiplied = np.where((weight == 0)[:, :, None], premultiplied, mixed)
        alpha = weight + rest * alpha
    return _unmultiplied(premultiplied, alpha, background), alpha


def _average_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], full: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = layers[0].colour.shape
    total = np.zeros(shape, np.float32)
    weight_sum = np.zeros(shape[:2], np.float32)
    alpha_sum = np.zeros(shape[:2], np.float32)
    for layer in layers:
        weight = _weight_of(layer, shape[:2])
        term = layer.colour.astype(np.float32) * weight[:, :, None]
        # The first term is taken as it is, so that a negative zero survives.
        grown = np.where((weight_sum == 0)[:, :, None], term, total + term)
        total = np.where((weight == 0)[:, :, None], total, grown)
        weight_sum += weight
        alpha_sum += weight if layer.alpha is None else weight * layer.alpha
    # Alpha is averaged as a colour channel is.
    colour = _unmultiplied(total, weight_sum, background)
    nothing = weight_sum == 0
    alpha = alpha_sum / np.where(nothing, np.float32(1), weight_sum)
    return colour, np.where(nothing, background[-1] / full, alpha).astype(np.float32)


def _unmultiplied(
    premultiplied: NDArray[np.float32], alpha: NDArray[np.float32], background: NDArray[np.float32]
) -> NDArray[np.float32]:
    covered = (alpha > 0)[:, :, None]
    return np.where(
        covered, premultiplied / np.where(covered, alpha[:, :, None], np.float32(1)), background[:-1]
    ).astype(np.float32)
