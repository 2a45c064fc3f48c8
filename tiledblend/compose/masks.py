"""How a mask's numbers become weights: one rule for the whole mask, decided once and checked in every region."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiledblend.describe.layers import Labels, Layer, MaskValues
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.kernels.mirror import Units
from tiledblend.sources.base import Alpha, RasterSource

log = logging.getLogger("tiledblend")
READ_BLOCK = 4096
MOST_COUNTED = 1 << 24
"""Pixels of a mask that are looked at to tell how many its rule clips; of a larger one a coarser level, or a sample."""
SAMPLE_SIDE, SAMPLES = 512, 32


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How a mask's numbers become units, decided once for the whole mask and checked in every region.

    kind: "binary" (0 and 1 only), "nonzero", "scale" (by the dtype's maximum), "unit" (floats in [0, 1]), "range"
    (lo..hi, what lies beyond is 0 or 1), "threshold" (1 from `low` on), "labels".
    """

    kind: Literal["binary", "nonzero", "scale", "unit", "range", "threshold", "labels"]
    low: float = 0.0
    high: float = 1.0
    labels: tuple[int, ...] = ()


def decide_mask_rule(mask: RasterSource, values: MaskValues, threshold: float | None = None) -> MaskRule:
    """The rule for a mask; `auto` reads integer masks until a value decides it. threshold: instead of `values`.

    Raises BadInputError for an integer mask whose maximum is above 1 and under 1/16 of its dtype's, and for binary
    floats of many values.
    """
    if threshold is not None:
        _tell_threshold(mask, threshold)
        return MaskRule("threshold", threshold)
    if isinstance(values, Labels):
        return MaskRule("labels", labels=values.values)
    if isinstance(values, tuple):
        low, high = float(values[0]), float(values[1])
        _tell_clipped(mask, low, high)
        return MaskRule("range", low, high)
    if values == "binary":
        _require_binary(mask)
        return MaskRule("nonzero")
    if mask.dtype.kind == "f":
        return MaskRule("unit")
    if mask.dtype.kind == "b":
        return MaskRule("binary")
    return _decide_integers(mask)


def _decide_integers(mask: RasterSource) -> MaskRule:
    enough = np.iinfo(mask.dtype).max / 16
    highest = 0
    for region in blocks(mask.shape):
        value = mask.uniform(region)
        highest = max(highest, int(one_channel(mask, mask.read(region)).max()) if value is None else value)
        if highest >= enough:
            log.info("mask %s: %s values scaled by %d", mask.name, mask.dtype.name, np.iinfo(mask.dtype).max)
            return MaskRule("scale")
    if highest <= 1:
        log.info("mask %s: all values are 0 or 1, taken as binary", mask.name)
        return MaskRule("binary")
    raise BadInputError(
        f"mask {mask.name}: its maximum is {highest} of {mask.dtype.name}'s "
        f"{np.iinfo(mask.dtype).max}, so it holds labels or a narrower range; "
        f"give --mask-values '[0, {_next_full(highest)}]', --threshold N (inside from N on), --mask-values binary or "
        "--mask-values '{labels: [...]}'"
    )


def _require_binary(mask: RasterSource) -> None:
    """Raise BadInputError for floats of more than one value that is no whole number: of these every pixel but a few
    would be inside."""
    if mask.dtype.kind != "f":
        return
    first: float | None = None
    for region in blocks(mask.shape):
        values = one_channel(mask, mask.read(region))
        broken = values[np.isfinite(values) & (values % 1 != 0)]
        if not broken.size:
            continue
        low, high = float(broken.min()), float(broken.max())
        first = low if first is None else first
        if (low, high) != (first, first):
            raise BadInputError(not_binary(f"mask {mask.name}", min(low, first), max(high, first)))


def not_binary(mask: str, low: float, high: float) -> str:
    """Why a mask of floats cannot be taken as binary. low, high: two of its values."""
    return (
        f"{mask}: binary takes all but 0 as inside, and it has values such as {low:g} and {high:g}, as of a network's "
        "output; give --threshold, such as --threshold 0.5, or --mask-values auto for a soft mask"
    )


def _tell_clipped(mask: RasterSource, low: float, high: float) -> None:
    if mask.dtype.kind != "f":
        least, most = (0, 1) if mask.dtype.kind == "b" else (np.iinfo(mask.dtype).min, np.iinfo(mask.dtype).max)
        if low <= least and high >= most:
            return
    below, above, how = _shares(mask, lambda values: values < low, lambda values: values > high)
    if below or above:
        log.info(
            "mask %s: %s of its values lie below %g and %s above %g%s: taken as 0 and 1",
            *(mask.name, _percent(below), low, _percent(above), high, how),
        )


def _tell_threshold(mask: RasterSource, threshold: float) -> None:
    inside, _, how = _shares(mask, lambda values: _at_least(values, threshold), np.zeros_like)
    log.info("mask %s: %s of its values are at or above %g%s", mask.name, _percent(inside), threshold, how)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _shares(mask: RasterSource, *tests: Callable[[NDArray[Any]], NDArray[Any]]) -> tuple[float, float, str]:
    """(share of the first test, of the second, "" or how it was found when not every pixel was looked at)."""
    level = next((i for i, known in enumerate(mask.levels) if known.shape[0] * known.shape[1] <= MOST_COUNTED), None)
    if level is None:
        level = len(mask.levels) - 1
        every = blocks(mask.levels[level].shape, SAMPLE_SIDE)
        looked, how = every[:: max(1, len(every) // SAMPLES)], " (of a sample)"
    else:
        looked, how = blocks(mask.levels[level].shape), f" (on its level {level})" if level else ""
    counts, total = [0] * len(tests), 0
    for region in looked:
        values = one_channel(mask, mask.read(region, level))
        total += values.size
        for i, test in enumerate(tests):
            counts[i] += int(np.count_nonzero(test(values)))
    return counts[0] / total, counts[1] / total, how


def _next_full(value: int) -> int:
    return int((1 << value.bit_length()) - 1)


def blocks(shape: tuple[int, int], side: int = READ_BLOCK) -> list[Region]:
    """Regions that cover (y, x) pixels, row by row."""
    height, width = shape
    return [
        Region(y, x, min(y + side, height), min(x + side, width))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def one_channel(mask: RasterSource, pixels: NDArray[Any]) -> NDArray[Any]:
    """(y, x) of a mask: its only channel, or BT.601 luma of RGB (0.299 R + 0.587 G + 0.114 B), an alpha channel left
    out."""
    colours = pixels.shape[2] - (mask.alpha is not Alpha.NONE)
    if colours == 1:
        return pixels[:, :, 0]
    # Term by term: a matrix product may add in another order on another tile, and then round a tie differently.
    red, green, blue = (pixels[:, :, i].astype(np.float64) for i in range(3))
    luma = red * 0.299 + green * 0.587 + blue * 0.114
    if pixels.dtype.kind == "b":
        return luma >= 0.5
    return np.rint(luma).astype(pixels.dtype) if pixels.dtype.kind in "ui" else luma.astype(np.float32)


def apply_mask_rule(rule: MaskRule, values: NDArray[Any], *, keep_float: bool, where: str) -> Units:
    """Mask numbers (y, x) to units: uint8 or uint16 of full scale, or float32 weights when `keep_float` and the values
    are not full-scale integers.

    Raises BadInputError saying `where` for NaN and for values that the rule does not allow.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadInputError(f"{where}: the mask has NaN or infinite values; fill them with 0")
    if rule.kind == "labels":
        return np.isin(values, rule.labels).astype(np.uint8) * np.uint8(255)
    if rule.kind == "threshold":
        return _at_least(values, rule.low).astype(np.uint8) * np.uint8(255)
    if rule.kind == "nonzero":
        return (values != 0).astype(np.uint8) * np.uint8(255)
    if rule.kind == "binary":
        if values.dtype.kind != "b" and ((values < 0) | (values > 1)).any():
            wrong = values.max() if values.max() > 1 else values.min()
            raise BadInputError(f"{where}: mask value {wrong} in a mask taken as binary; give --mask-values")
        return values.astype(np.uint8) * np.uint8(255)
    if rule.kind == "scale" and values.dtype in (np.uint8, np.uint16):
        return values
    low, high = (0.0, float(np.iinfo(values.dtype).max)) if rule.kind == "scale" else (rule.low, rule.high)
    smallest, largest = float(values.min()), float(values.max())
    if rule.kind != "range" and (smallest < low or largest > high):
        raise BadInputError(
            f"{where}: mask values {smallest:g} to {largest:g} lie outside {low:g} to {high:g}; "
            "give --mask-values LO,HI"
        )
    unit = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return unit.astype(np.float32) if keep_float else np.rint(unit * 65535).astype(np.uint16)


def _at_least(values: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Floats are compared in their own precision: 0.7 of a float32 mask is at 0.7."""
    inside: NDArray[np.bool_] = values >= (values.dtype.type(threshold) if values.dtype.kind == "f" else threshold)
    return inside


def units_dtype(rule: MaskRule, dtype: np.dtype[Any], *, keep_float: bool) -> np.dtype[Any]:
    """Of what `apply_mask_rule` makes of a mask of this dtype."""
    if rule.kind in ("labels", "nonzero", "binary", "threshold"):
        return np.dtype(np.uint8)
    if rule.kind == "scale" and dtype in (np.uint8, np.uint16):
        return dtype
    return np.dtype(np.float32 if keep_float else np.uint16)


def decide_layer_rule(layer: Layer) -> MaskRule | None:
    """The rule of a layer's mask, None where it is no raster."""
    mask = layer.mask
    if not isinstance(mask, RasterSource):
        return None
    if mask.channels >= 3:
        log.info("mask %s: %d channels, taken as BT.601 luma", mask.name, mask.channels)
    rule = decide_mask_rule(mask, layer.mask_values, layer.threshold)
    mask.rest()
    return rule
