"""Multi-band blending (Burt & Adelson 1983): each band of detail fades over a width of its own size.

With D = layer - what lies below: out = below + sum over k of expand^k(w_k L_k(D)), k = 0 … N-1. G_0 = D and G_{k+1} =
reduce(G_k); L_k = G_k - expand(G_{k+1}), the last one is the residual G_{N-1}; w_0 is the layer's weight and w_{k+1} =
reduce(w_k). `reduce` smooths by (1, 4, 6, 4, 1) / 16 along both axes and keeps the pixels whose place on the layer's
own grid is even; `expand` puts zeros between them and smooths by (1, 4, 6, 4, 1) / 8. Both mirror a level about the
centres of its first and last pixels. So a pixel depends on no more than `reach_px` around it, whatever is read at once.

Where every weight within reach is 1 the layer's own pixel comes out, and where it is 0 the one below. Of uint8 images
the bands are whole numbers of 1/32 level; of others float32, summed in one order: the same bits for every cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError
from tiledblend.geometry import Region

MOST_BANDS = 10
UNITS_PER_LEVEL = 32
"""Of uint8 differences as int16: up to four times the dtype's range."""
WEIGHT_FULL = 1 << 14

Values = NDArray[Any]
"""int16 or float32; shape (y, x) or (y, x, c)."""


@dataclass(frozen=True, slots=True)
class Bands:
    """How many bands: `count` - 1 of detail and the residual. One band is the hard edge.

    >>> Bands(1).reach_px, Bands(2).reach_px, Bands(6).reach_px
    (0, 4, 124)
    """

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_BANDS:
            raise UsageError(f"feather bands:{self.count} must be from bands:1 to bands:{MOST_BANDS}")

    @property
    def reach_px(self) -> int:
        """Pixels around a pixel that it can depend on: 2 (2^(N-1) - 1) by `reduce`, and as many by `expand`."""
        return 4 * ((1 << (self.count - 1)) - 1)


@dataclass(frozen=True, slots=True)
class Patch:
    """What a layer and what lies below it are in `where`, a region of the layer's own grid of pixels.

    layer, below: (y, x, c), float32 or whole numbers. weight: float32 (y, x) in [0, 1]. domain: the pixels of the layer
    that there are; levels are mirrored at its border.
    """

    layer: NDArray[Any]
    below: NDArray[Any]
    weight: NDArray[np.float32]
    where: Region
    domain: Region

    def __getitem__(self, region: Region) -> Patch:
        at = region.shift(-self.where.y0, -self.where.x0).slices
        return Patch(self.layer[at], self.below[at], self.weight[at], region, self.domain)


def reach_of(bands: Bands, region: Region, domain: Region) -> Region:
    """What has to be known of the layer and of what lies below for a region of the layer's grid."""
    return region.grow(bands.reach_px, bands.reach_px) & domain


def blend_bands(bands: Bands, patch: Patch, region: Region, *, whole_levels: bool) -> NDArray[np.float32]:
    """float32 (y, x, c) of `region`, unrounded: that part of what the whole layer gives, bit for bit.

    patch: knows `reach_of` the region. whole_levels: both images are of a range of 255 (uint8).
    """
    patch = patch[reach_of(bands, region, patch.domain)]
    at = _in(region, patch.where)
    below, layer = (values[at].astype(np.float32, order="C") for values in (patch.below, patch.layer))
    # Float images may hold NaN and infinities: they spread within reach, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        mixed = _summed(bands, patch, region, _WHOLE if whole_levels else _ORDERED)
        mixed += below
    _take_over(mixed, layer, _all_within(patch.weight == 1, bands.reach_px)[at])
    _take_over(mixed, below, _all_within(patch.weight == 0, bands.reach_px)[at])
    return mixed


def _take_over(out: NDArray[np.float32], values: NDArray[np.float32], where: NDArray[np.bool_]) -> None:
    """The values (y, x, c) where the flags (y, x) are set."""
    if out.shape[2] <= 4:
        cv2.copyTo(values, where.view(np.uint8), out)
    else:
        np.copyto(out, values, where=where[:, :, None])


def _all_within(flags: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """True where all flags in the square around a pixel are, as far as the array goes."""
    if not reach:
        return flags
    side = 2 * reach + 1
    others = cv2.boxFilter(
        (~flags).view(np.uint8), cv2.CV_32S, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return np.asarray(others == 0)


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """How levels are computed, each step in one order or in whole numbers.

    halved: (1, 4, 6, 4, 1) around every other value of a level; the first is around the third value. doubled: the
    values and those between; the very first and last ones are not right.
    """

    difference: Callable[[Values, Values], Values]
    weight: Callable[[NDArray[np.float32]], Values]
    halved: Callable[[Values], Values]
    doubled: Callable[[Values], Values]
    minus: Callable[[Values, Values], Values]
    plus: Callable[[Values, Values], Values]
    weighted: Callable[[Values, Values], Values]
    as_float: Callable[[Values], NDArray[np.float32]]


def _summed(bands: Bands, patch: Patch, region: Region, by: _Arithmetic) -> NDArray[np.float32]:
    """The sum over the bands, for `region`."""
    domains = [patch.domain]
    for _ in range(bands.count - 1):
        domains.append(_coarser(domains[-1]))
    # Of every level: what is summed there, and what has to be known for it.
    summed = [region]
    for fine in domains[:-1]:
        summed.append(_expanded_from(summed[-1], fine))
    known = [summed[-1]]
    for level in range(bands.count - 2, -1, -1):
        known.insert(0, _hull(summed[level], _reduced_from(known[0], domains[level])))
    start = patch[known[0]]
    gauss = by.difference(np.ascontiguousarray(start.layer), np.ascontiguousarray(start.below))
    weights = by.weight(start.weight)
    details = []
    for level in range(bands.count - 1):
        fine, here, coarse = domains[level], known[level], known[level + 1]
        reduced = _reduce(gauss, here, fine, coarse, by)
        detail = by.minus(gauss[_in(summed[level], here)], _expand(reduced, coarse, fine, summed[level], by))
        details.append(by.weighted(detail, weights[_in(summed[level], here)]))
        gauss, weights = reduced, _reduce(weights, here, fine, coarse, by)
    total = by.weighted(gauss, weights)
    for level in range(bands.count - 2, -1, -1):
        total = by.plus(details[level], _expand(total, summed[level + 1], domains[level], summed[level], by))
    return by.as_float(total)


def _in(region: Region, where: Region) -> tuple[slice, slice]:
    return region.shift(-where.y0, -where.x0).slices


def _coarser(domain: Region) -> Region:
    """The pixels of the next level: those of even place; of a single pixel of odd place, it."""
    (y0, y1), (x0, x1) = (
        ((start + 1) // 2, max((stop + 1) // 2, (start + 1) // 2 + 1))
        for start, stop in ((domain.y0, domain.y1), (domain.x0, domain.x1))
    )
    return Region(y0, x0, y1, x1)


def _hull(one: Region, other: Region) -> Region:
    return Region(min(one.y0, other.y0), min(one.x0, other.x0), max(one.y1, other.y1), max(one.x1, other.x1))


def _fold(places: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Places mirrored about start and stop - 1."""
    if stop - start == 1:
        return np.full_like(places, start)
    period = 2 * (stop - start - 1)
    folded = (places - start) % period
    return start + np.minimum(folded, period - folded)


def _fold_coarse(places: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Places of the next level mirrored as the zeros between them would be: at the finer level's ends."""
    if stop - start == 1:
        return np.full_like(places, (start + 1) // 2)
    return _fold(2 * places, start, stop) // 2


def _reduce_places(start: int, stop: int, low: int, high: int) -> NDArray[np.int64]:
    return _fold(np.arange(2 * low - 2, 2 * high + 1, dtype=np.int64), start, stop)


def _expand_places(start: int, stop: int, low: int, high: int) -> NDArray[np.int64]:
    return _fold_coarse(np.arange((low + 1) // 2 - 1, (high - 1) // 2 + 2, dtype=np.int64), start, stop)


def _span(y: NDArray[np.int64], x: NDArray[np.int64]) -> Region:
    return Region(int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1)


def _reduced_from(coarse: Region, fine: Region) -> Region:
    """What a region of the next level is reduced from."""
    return _span(
        _reduce_places(fine.y0, fine.y1, coarse.y0, coarse.y1), _reduce_places(fine.x0, fine.x1, coarse.x0, coarse.x1)
    )


def _expanded_from(region: Region, fine: Region) -> Region:
    """What a region is expanded from, of the next level. fine: the whole of the region's level."""
    return _span(
        _expand_places(fine.y0, fine.y1, region.y0, region.y1), _expand_places(fine.x0, fine.x1, region.x0, region.x1)
    )


def _reduce(values: Values, where: Region, fine: Region, coarse: Region, by: _Arithmetic) -> Values:
    """`coarse` of the next level of `values`, which are `where` of the level `fine`."""
    y = _reduce_places(fine.y0, fine.y1, coarse.y0, coarse.y1) - where.y0
    x = _reduce_places(fine.x0, fine.x1, coarse.x0, coarse.x1) - where.x0
    return by.halved(_taken(values, y, x))


def _expand(values: Values, where: Region, fine: Region, region: Region, by: _Arithmetic) -> Values:
    """`region` of the level `fine` of `values`, which are `where` of the next level."""
    y = _expand_places(fine.y0, fine.y1, region.y0, region.y1) - where.y0
    x = _expand_places(fine.x0, fine.x1, region.x0, region.x1) - where.x0
    doubled = by.doubled(_taken(values, y, x))
    origin = 2 * ((region.y0 + 1) // 2 - 1), 2 * ((region.x0 + 1) // 2 - 1)
    return doubled[region.shift(-origin[0], -origin[1]).slices]


def _taken(values: Values, y: NDArray[np.int64], x: NDArray[np.int64]) -> Values:
    """Rows and columns by number; a view where they follow each other."""
    for axis, numbers in enumerate((y, x)):
        if (np.diff(numbers) == 1).all():
            part = slice(int(numbers[0]), int(numbers[-1]) + 1)
            values = values[part] if axis == 0 else values[:, part]
        else:
            values = np.take(values, numbers, axis)
    return values


# --- uint8: whole numbers, exact in any order


def _whole_difference(layer: Values, below: Values) -> Values:
    if layer.dtype == np.uint8 and below.dtype == np.uint8:
        wide: Values = cv2.subtract(layer, below, dtype=cv2.CV_16S)
        return wide * np.int16(UNITS_PER_LEVEL)
    difference = np.subtract(layer, below, dtype=np.float32)
    difference *= np.float32(UNITS_PER_LEVEL)
    return _int16(difference)


def _int16(values: NDArray[np.float32]) -> Values:
    np.rint(values, out=values)
    np.clip(values, -32767, 32767, out=values)
    return values.astype(np.int16)


def _whole_weight(weight: NDArray[np.float32]) -> Values:
    return np.rint(weight * np.float32(WEIGHT_FULL)).astype(np.int16)


def _whole_halved(values: Values) -> Values:
    planes: Values = _by_channels(cv2.pyrDown, values)[1:-1, 1:-1]
    return planes


def _whole_doubled(values: Values) -> Values:
    return _by_channels(cv2.pyrUp, values)


def _by_channels(function: Callable[[Values], Values], values: Values) -> Values:
    """OpenCV takes up to four channels, and drops the only one."""
    if values.ndim == 2:
        return function(values)
    if values.shape[2] in (3, 4):
        return function(values)
    return np.stack([function(np.ascontiguousarray(values[:, :, c])) for c in range(values.shape[2])], axis=2)


def _whole_weighted(values: Values, weight: Values) -> Values:
    """Products in float32, rounded half to even."""
    channels = values.shape[2]
    wide = cv2.merge([weight] * channels) if channels <= 4 else np.repeat(weight[:, :, None], channels, axis=2)
    rows = values.shape[0]
    out: Values = cv2.multiply(
        values.reshape(rows, -1), wide.reshape(rows, -1), scale=1 / WEIGHT_FULL, dtype=cv2.CV_16S
    )
    return out.reshape(values.shape)


def _whole_minus(one: Values, other: Values) -> Values:
    return _saturated(cv2.subtract, one, other)


def _whole_plus(one: Values, other: Values) -> Values:
    return _saturated(cv2.add, one, other)


def _saturated(function: Callable[..., Any], one: Values, other: Values) -> Values:
    out: Values = function(one.reshape(one.shape[0], -1), other.reshape(one.shape[0], -1))
    return out.reshape(one.shape)


def _levels(values: Values) -> NDArray[np.float32]:
    return values.astype(np.float32) * np.float32(1 / UNITS_PER_LEVEL)


_WHOLE = _Arithmetic(
    _whole_difference,
    _whole_weight,
    _whole_halved,
    _whole_doubled,
    _whole_minus,
    _whole_plus,
    _whole_weighted,
    _levels,
)


# --- others: float32, every pixel's terms in one order


def _ordered_halved(values: Values) -> Values:
    return _halved_columns(_halved_rows(values))


def _halved_rows(values: Values) -> Values:
    even, odd = values[::2], values[1::2]
    sums = even[1:-1] * np.float32(6)
    sums += (odd[:-1] + odd[1:]) * np.float32(4)
    sums += even[:-2] + even[2:]
    sums *= np.float32(1 / 16)
    return sums


def _halved_columns(values: Values) -> Values:
    return np.swapaxes(_halved_rows(np.swapaxes(values, 0, 1)), 0, 1)


def _ordered_doubled(values: Values) -> Values:
    return np.swapaxes(_doubled_rows(np.swapaxes(_doubled_rows(values), 0, 1)), 0, 1)


def _doubled_rows(values: Values) -> Values:
    between = values[:-1] + values[1:]
    out = np.zeros((2 * len(values), *values.shape[1:]), np.float32)
    at = values[1:-1] * np.float32(6)
    at += values[:-2] + values[2:]
    np.multiply(at, np.float32(1 / 8), out=out[2:-2:2])
    np.multiply(between, np.float32(1 / 2), out=out[1:-1:2])
    return out


_ORDERED = _Arithmetic(
    lambda layer, below: np.subtract(layer, below, dtype=np.float32),
    lambda weight: weight,
    _ordered_halved,
    _ordered_doubled,
    np.subtract,
    np.add,
    lambda values, weight: values * weight[:, :, None],
    lambda values: values,
)
