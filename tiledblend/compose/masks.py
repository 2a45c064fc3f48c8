"""How a mask's numbers become weights: one rule for the whole mask, decided once and checked in every region."""

from __future__ import annotations

import logging
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


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How a mask's numbers become units, decided once for the whole mask and checked in every region.

    kind: "binary" (0 and 1 only), "nonzero", "scale" (by the dtype's maximum), "unit" (floats in [0, 1]), "range"
    (lo..hi), "labels".
    """

    kind: Literal["binary", "nonzero", "scale", "unit", "range", "labels"]
    low: float = 0.0
    high: float = 1.0
    labels: tuple[int, ...] = ()


def decide_mask_rule(mask: RasterSource, values: MaskValues) -> MaskRule:
    """The rule for a mask; `auto` reads integer masks until a value decides it.

    Raises BadInputError for an integer mask whose maximum is above 1 and under 1/16 of its dtype's.
    """
    if isinstance(values, Labels):
        return MaskRule("labels", labels=values.values)
    if isinstance(values, tuple):
        return MaskRule("range", float(values[0]), float(values[1]))
    if values == "binary":
        return MaskRule("nonzero")
    if mask.dtype.kind == "f":
        return MaskRule("unit")
    if mask.dtype.kind == "b":
        return MaskRule("binary")
    return _decide_integers(mask)


def _decide_integers(mask: RasterSource) -> MaskRule:
    enough = np.iinfo(mask.dtype).max / 16
    highest = 0
    for region in _blocks(mask):
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
        f"give --mask-values '[0, {_next_full(highest)}]', --mask-values binary or --mask-values '{{labels: [...]}}'"
    )


def _next_full(value: int) -> int:
    return int((1 << value.bit_length()) - 1)


def _blocks(source: RasterSource) -> list[Region]:
    height, width = source.shape
    return [
        Region(y, x, min(y + READ_BLOCK, height), min(x + READ_BLOCK, width))
        for y in range(0, height, READ_BLOCK)
        for x in range(0, width, READ_BLOCK)
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
    if smallest < low or largest > high:
        raise BadInputError(
            f"{where}: mask values {smallest:g} to {largest:g} lie outside {low:g} to {high:g}; "
            "give --mask-values '[lo, hi]'"
        )
    unit = (values.astype(np.float64) - low) / (high - low)
    return unit.astype(np.float32) if keep_float else np.rint(unit * 65535).astype(np.uint16)


def units_dtype(rule: MaskRule, dtype: np.dtype[Any], *, keep_float: bool) -> np.dtype[Any]:
    """Of what `apply_mask_rule` makes of a mask of this dtype."""
    if rule.kind in ("labels", "nonzero", "binary"):
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
    rule = decide_mask_rule(mask, layer.mask_values)
    mask.rest()
    return rule
