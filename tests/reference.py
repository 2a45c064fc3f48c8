"""The meaning of every pixel, computed in float64 with numpy and scipy on whole arrays.

Shares no code with the package: it is what the package's results are measured against. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import reference_modes
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import erf

Array = NDArray[Any]
Weights = NDArray[np.float64]

SNAP = 2.0**-12
WEIGHT_ERROR = 0.002
"""What the contract allows a feathered weight to be off by."""


@dataclass
class Picture:
    """A layer as plain arrays. image: (y, x, c), alpha last. alpha: "none", "straight", "premultiplied". sigma: one or
    (y, x).

    mask: (y, x) or (y, x, 3), "alpha" or None. values: "auto", "binary", (lo, hi) or a list of labels.
    """

    image: Array
    alpha: str = "none"
    mask: Array | str | None = None
    values: Any = "auto"
    mask_frame: str = "layer"
    invert: bool = False
    sigma: float | tuple[float, float] = 0.0
    ksize: int | None = None
    side: str = "both"
    opacity: float = 1.0
    offset: tuple[int, int] = (0, 0)
    fit: bool = False
    operator: str = "normal"
    bands: int | None = None
    gain: tuple[float, ...] | None = None
    tone_offset: tuple[float, ...] = ()

    @property
    def feathered(self) -> bool:
        return np.max(self.sigma) > 0 or self.ksize not in (None, 1)


def full_scale(dtype: Any) -> float:
    return 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)


def snapped(weight: Weights) -> Weights:
    return np.where(weight < SNAP, 0.0, np.where(weight > 1 - SNAP, 1.0, weight))


def unit_mask(mask: Array, values: Any = "auto") -> Weights:
    """Mask numbers to 0..1."""
    if mask.ndim == 3 and mask.shape[2] == 3:
        luma = mask[..., 0] * 0.299 + mask[..., 1] * 0.587 + mask[..., 2] * 0.114
        mask = luma if mask.dtype.kind == "f" else np.rint(luma).astype(mask.dtype)
    elif mask.ndim == 3:
        mask = mask[..., 0]
    if isinstance(values, list):
        return np.isin(mask, values).astype(float)
    if values == "binary":
        return (mask != 0).astype(float)
    if isinstance(values, tuple):
        return (mask - float(values[0])) / (values[1] - values[0])
    if mask.dtype.kind in "bf" or mask.max() <= 1:
        return mask.astype(float)
    return mask / full_scale(mask.dtype)


def _resize_axis(values: Array, size: int, axis: int, nearest: bool) -> Array:
    """One axis to `size`, pixel centres aligned: nearest, bilinear when enlarging, area mean when shrinking."""
    moved = np.moveaxis(values, axis, 0)
    n = moved.shape[0]
    if nearest:
        out = moved[[min(int((i + 0.5) * n / size), n - 1) for i in range(size)]]
    elif size >= n:
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        t = (at - low).reshape(-1, *[1] * (moved.ndim - 1))
        out = moved[low] * (1 - t) + moved[high] * t
    else:
        # The mean over [a, b) is a difference of the running integral, which is linear between pixel edges.
        sums = np.concatenate([np.zeros((1, *moved.shape[1:])), np.cumsum(moved, axis=0)])
        edges = np.arange(size + 1) * n / size
        low = np.minimum(edges.astype(int), n - 1)
        t = (edges - low).reshape(-1, *[1] * (moved.ndim - 1))
        integral = sums[low] * (1 - t) + sums[low + 1] * t
        out = np.diff(integral, axis=0) * (size / n)
    return np.moveaxis(out, 0, axis)


def resized(values: Array, shape: tuple[int, int], nearest: bool = False) -> Array:
    if values.shape[:2] == shape:
        return values
    if not nearest:
        values = values.astype(float)
    return _resize_axis(_resize_axis(values, shape[0], 0, nearest), shape[1], 1, nearest)


def power_of_two(mask: tuple[int, int], frame: tuple[int, int]) -> int | None:
    """The f of the contract: mask pixel i covers frame pixels [f i, f i + f)."""
    for power in range(20):
        f = 2**power
        if all(abs(f * m - n) < f for m, n in zip(mask, frame, strict=True)):
            return f
    return None


def same_aspect(mask: tuple[int, int], frame: tuple[int, int]) -> bool:
    return abs(mask[0] - frame[0] * mask[1] / frame[1]) <= 1 or abs(mask[1] - frame[1] * mask[0] / frame[0]) <= 1


def mask_on_frame(unit: Weights, frame: tuple[int, int], *, fit: bool = False, labels: bool = False) -> Weights:
    """A mask at the resolution of its frame."""
    f = None if fit else power_of_two(unit.shape, frame)  # type: ignore[arg-type]
    if f is None:
        return resized(unit, frame, nearest=labels)
    rows = np.minimum(np.arange(frame[0]) // f, unit.shape[0] - 1)
    columns = np.minimum(np.arange(frame[1]) // f, unit.shape[1] - 1)
    return unit[rows][:, columns]


def feather(
    unit: Weights, sigma: float | tuple[float, float] = 0.0, ksize: int | None = None, side: str = "both"
) -> Weights:
    """The feathered weight of a whole mask, snapped."""
    if ksize is not None:
        taps = cv2.getGaussianKernel(ksize, 0, cv2.CV_64F).ravel()
        blurred = ndimage.correlate1d(ndimage.correlate1d(unit, taps, 0, mode="mirror"), taps, 1, mode="mirror")
    elif np.max(sigma) > 0:
        blurred = ndimage.gaussian_filter(unit, sigma, mode="mirror", truncate=4)
    else:
        blurred = unit
    weight = snapped(blurred)
    if side == "inside" and (np.max(sigma) > 0 or ksize not in (None, 1)):
        weight = snapped(np.maximum(0.0, 2 * weight - 1))
    return weight


def border(
    frame: tuple[int, int], offset: tuple[int, int], canvas: tuple[int, int], sigma: float | tuple[float, float]
) -> Weights:
    """Fade towards the layer's sides that end strictly inside the canvas."""
    if np.max(sigma) == 0:
        return np.ones(frame)
    sides = []
    for axis, along in enumerate(np.broadcast_to(sigma, 2)):
        centre = np.arange(frame[axis]) + 0.5
        fade = np.ones(frame[axis])
        if offset[axis] > 0:
            fade = fade * erf(centre / (along * np.sqrt(2)))
        if offset[axis] + frame[axis] < canvas[axis]:
            fade = fade * erf((frame[axis] - centre) / (along * np.sqrt(2)))
        sides.append(fade)
    return snapped(sides[0][:, None] * sides[1][None, :])


@dataclass
class Placed:
    """A layer on the canvas. colour: (y, x, c) float64. weight: (y, x). alpha: the image's own, 1 where it is none or
    already is the mask."""

    colour: Array
    weight: Weights
    alpha: Weights
    error: float
    full: float = 255
    operator: str = "normal"
    bands: int = 1
    offset: tuple[int, int] = (0, 0)
    frame: tuple[int, int] = (0, 0)


def _colour_and_alpha(layer: Picture, shape: tuple[int, int]) -> tuple[Array, Weights | None]:
    image = layer.image.astype(float)
    if layer.alpha == "none":
        return resized(image, shape), None
    full = full_scale(layer.image.dtype)
    alpha = image[..., -1] / full
    if layer.alpha == "straight":
        premultiplied = image[..., :-1] * alpha[..., None]
    else:  # un-multiplied, cut at full, and weighted by alpha again
        premultiplied = np.minimum(image[..., :-1], image[..., -1:]) if full > 1 else image[..., :-1]
        premultiplied = np.where(alpha[..., None] > 0, premultiplied, 0)
    if image.shape[:2] == shape and layer.alpha == "straight":
        return image[..., :-1], alpha
    premultiplied, alpha = resized(premultiplied, shape), resized(alpha, shape)
    seen = alpha[..., None] > 1e-9  # running sums leave traces of 1e-17
    colour = np.where(seen, premultiplied / np.where(seen, alpha[..., None], 1), 0)
    return (np.minimum(colour, full) if full > 1 else colour), alpha


def place(layer: Picture, canvas: tuple[int, int]) -> Placed:
    """A layer's colours and weight on the whole canvas."""
    frame = canvas if layer.fit else layer.image.shape[:2]
    offset = (0, 0) if layer.fit else layer.offset
    colour, alpha = _colour_and_alpha(layer, frame)
    if layer.gain is not None:
        colour = reference_modes.tone(colour, np.array(layer.gain), np.array(layer.tone_offset))
    weight = np.full(frame, layer.opacity)
    mask_on_canvas = None
    if layer.mask is not None:
        if isinstance(layer.mask, str):
            assert alpha is not None
            unit = alpha
        else:
            inner = canvas if layer.mask_frame == "canvas" else frame
            unit = mask_on_frame(
                unit_mask(layer.mask, layer.values),
                inner,
                fit=layer.fit and layer.mask_frame == "layer",
                labels=isinstance(layer.values, list),
            )
        unit = 1 - unit if layer.invert else unit
        mask = feather(unit, layer.sigma, layer.ksize, layer.side)
        if layer.mask_frame == "canvas":
            mask_on_canvas = mask
        else:
            weight = weight * mask
    weight = weight * border(frame, offset, canvas, 0.0 if layer.ksize else layer.sigma)
    if alpha is None or isinstance(layer.mask, str):
        alpha = np.ones(frame)
    weight = weight * alpha
    out = Placed(
        _onto(colour, offset, canvas),
        _onto(weight, offset, canvas),
        _onto(alpha, offset, canvas),
        _error(layer),
        full_scale(layer.image.dtype),
        layer.operator,
        layer.bands or 1,
        offset,
        frame,
    )
    if mask_on_canvas is not None:
        out.weight = out.weight * mask_on_canvas
    return out


def _error(layer: Picture) -> float:
    if layer.mask is None or not layer.feathered:
        return 2e-5 + SNAP
    # The one-sided feather is 2 G - 1.
    return WEIGHT_ERROR * (2 if layer.side == "inside" else 1) + SNAP


def _onto(values: Array, offset: tuple[int, int], canvas: tuple[int, int]) -> Array:
    out = np.zeros((*canvas, *values.shape[2:]))
    (y, x), (height, width) = offset, values.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, canvas[0]), min(x + width, canvas[1])
    if bottom > top and right > left:
        out[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return out


@dataclass
class Expected:
    """Result and how far from it each sample may be. values: (y, x, c) float64 (colour premultiplied by alpha where
    the canvas has alpha, then alpha in 0..1 last). allowed: the same shape, rounding left out."""

    values: Array
    allowed: Array


def composite(
    layers: Sequence[Picture],
    canvas: tuple[int, int],
    *,
    mode: str = "over",
    background: Sequence[float] = (0,),
    has_alpha: bool = False,
) -> Expected:
    """All layers over the background."""
    placed = [place(layer, canvas) for layer in layers]
    if has_alpha:
        return _with_alpha(placed, np.asarray(background, float), full_scale(layers[0].image.dtype), mode)
    if mode == "stack":
        return _stacked(placed, background)
    ground = np.broadcast_to(np.asarray(background, float), placed[0].colour.shape)
    done = _over(placed, ground) if mode == "over" else _average(placed, ground)
    # Cut once, at the end: bands and tones may leave the dtype's range.
    full = placed[0].full
    return Expected(np.clip(done.values, 0, full), done.allowed) if full > 1 else done


def _over(placed: Sequence[Placed], ground: Array) -> Expected:
    out, allowed = ground.copy(), np.zeros(ground.shape)
    for layer in placed:
        w = layer.weight[..., None]
        colour = reference_modes.operator(layer.operator, out, layer.colour, layer.full)
        if layer.bands > 1:
            out, allowed = _in_bands(layer, out, colour, allowed)
            continue
        # What an operator makes of it is off by no more than what lies below.
        through = 0 if layer.operator == "normal" else 1
        allowed = layer.error * (np.abs(colour - out) + (1 + through) * allowed) + (1 - w + through * w) * allowed
        out = w * colour + (1 - w) * out
    return Expected(out, allowed)


def _in_bands(layer: Placed, out: Array, colour: Array, allowed: Array) -> tuple[Array, Array]:
    """The sum over bands on the part of the layer that is on the canvas."""
    (y, x), (height, width) = layer.offset, layer.frame
    top, left = max(y, 0), max(x, 0)
    seen = slice(top, min(y + height, out.shape[0])), slice(left, min(x + width, out.shape[1]))
    laid = out.copy()
    laid[seen] = reference_modes.bands(out[seen], colour[seen], layer.weight[seen], layer.bands, (top - y, left - x))
    # Each band is off by what its weight and what lies below are off by, and uint8 is summed in 1/32 levels.
    step = 0.25 if layer.full == 255 else 1e-5 * layer.full
    through = 2 * layer.bands * (1 if layer.operator == "normal" else 2) + 1
    largest = allowed.max() * through + layer.error * 2 * layer.bands * np.abs(colour - out).max() + step
    grown = allowed.copy()
    grown[seen] = largest
    return laid, grown


def _stacked(placed: Sequence[Placed], background: Sequence[float]) -> Expected:
    """Each layer alone over its channels' background."""
    values, allowed, start = [], [], 0
    for layer in placed:
        stop = start + layer.colour.shape[2]
        ground = np.broadcast_to(np.asarray(background[start:stop], float), layer.colour.shape)
        alone = _over([layer], ground)
        values.append(np.clip(alone.values, 0, layer.full) if layer.full > 1 else alone.values)
        allowed.append(alone.allowed)
        start = stop
    return Expected(np.concatenate(values, axis=2), np.concatenate(allowed, axis=2))


def _average(placed: Sequence[Placed], ground: Array) -> Expected:
    weights = np.stack([p.weight for p in placed])[..., None]
    colours = np.stack([p.colour for p in placed])
    total = weights.sum(0)
    out = np.where(total > 0, (weights * colours).sum(0) / np.where(total > 0, total, 1), ground)
    errors = np.array([p.error for p in placed]).reshape(-1, 1, 1, 1)
    slack = total - errors.sum()
    choices = np.concatenate([colours, ground[None]])
    spread = choices.max(0) - choices.min(0)
    drift = (errors * np.abs(colours - out)).sum(0)
    return Expected(out, np.where(slack > 0, np.minimum(drift / np.where(slack > 0, slack, 1), spread), spread))


def _with_alpha(placed: Sequence[Placed], background: Array, full: float, mode: str) -> Expected:
    """Porter and Duff's over on premultiplied colours, or the average of the layers' premultiplied colours."""
    shape = placed[0].weight.shape
    errors = sum(p.error for p in placed)
    if mode == "over":
        alpha = np.full(shape, background[-1] / full)
        colour = np.broadcast_to(background[:-1] * background[-1] / full, placed[0].colour.shape)
        for p in placed:
            below = np.where(alpha[..., None] > 0, colour / np.where(alpha > 0, alpha, 1)[..., None], background[:-1])
            met = reference_modes.operator(p.operator, below, p.colour, full)
            met = (1 - alpha[..., None]) * p.colour + alpha[..., None] * met
            colour = p.weight[..., None] * met + (1 - p.weight[..., None]) * colour
            alpha = p.weight + (1 - p.weight) * alpha
        allowed_alpha = np.full(shape, errors)
    else:
        weight = sum(p.weight for p in placed)
        some = weight > 0
        alpha_sum = sum(p.weight * p.alpha for p in placed)
        alpha = np.where(some, alpha_sum / np.where(some, weight, 1), background[-1] / full)
        mean = sum(p.weight[..., None] * p.colour for p in placed) / np.where(some, weight, 1)[..., None]
        colour = alpha[..., None] * np.where(some[..., None], mean, background[:-1])
        slack = weight - errors
        allowed_alpha = np.where(slack > 0, 2 * errors / np.where(slack > 0, slack, 1), 1.0)
    if full > 1:
        shown = alpha[..., None] > 0
        colour = np.where(
            shown, np.clip(colour / np.where(shown, alpha[..., None], 1), 0, full) * alpha[..., None], colour
        )
    largest = max(max(np.abs(p.colour).max() for p in placed), np.abs(background).max(), 1e-9)
    values = np.concatenate([colour, alpha[..., None]], axis=2)
    allowed = np.concatenate(
        [np.repeat(allowed_alpha[..., None], colour.shape[2], 2) * largest * 2, allowed_alpha[..., None]], axis=2
    )
    return Expected(values, allowed)
