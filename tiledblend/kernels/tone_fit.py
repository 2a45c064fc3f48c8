"""The tone by which one image comes nearest to another, from pairs of their pixels, whatever a part of them shows.

Pairs are counted in a joint histogram, in whole numbers: the fit depends on which pairs there are and on nothing else.
Clipped values are left out, and no value of the layer counts for more than 1/32 of all: glass, however much of it there
is, cannot drive the fit. Then:

- linear: least trimmed squares (Rousseeuw 1984) by concentration steps from a few lines through column medians
  (Rousseeuw & Van Driessen 2006), three quarters of the pairs kept; then the reweighted step of Rousseeuw & Leroy
  (1987): of the pairs within 2.5 scales of that line the reduced major axis, gain = sd(below) / sd(layer), which noise
  and shifts that both images have do not flatten as they do a regression.
- offset: the median of the differences, reweighted likewise. gain, od: least absolute deviations through the origin
  (a weighted median of ratios), reweighted likewise; od in optical density.

Up to a quarter of the pairs may be of anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.tone import Tone

Kind = Literal["offset", "gain", "linear", "od"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FEWEST_PAIRS = 64
BINS = 512
"""Of a histogram's side where the dtype has more values than 256."""
COARSE = 8
KEPT = 0.75
CUTOFF = 2.5
MAD_TO_SD = 1.4826
MOST_OF_ONE = 32
"""No value of the layer counts for more than one part in so many of all that counts."""
LINES = (0.1, 0.3, 0.5, 0.7, 0.9)
STEPS = 20

Values = NDArray[Any]
"""float64."""


@dataclass(frozen=True, slots=True)
class Fit:
    """tone: None where none was found; then `reason` says why. pairs: that were looked at."""

    tone: Tone | None
    pairs: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Cells:
    """Filled cells of a joint histogram: values of the layer and of what lies below, in the dtype's units, and how much
    they count. step: width of a cell."""

    x: Values
    y: Values
    weight: Values
    step: float

    def where(self, kept: NDArray[np.bool_]) -> _Cells:
        return _Cells(self.x[kept], self.y[kept], self.weight[kept], self.step)


def fit_tone(by: Kind, layer: NDArray[Any], below: NDArray[Any], dtype: np.dtype[Any]) -> Fit:
    """The tone of a layer from pairs: layer, below (pairs, channels) in units of dtype (integers or floats)."""
    gains: list[float] = []
    offsets: list[float] = []
    for channel in range(layer.shape[1]):
        cells = _cells(layer[:, channel], below[:, channel], np.dtype(dtype))
        if cells is None:
            return Fit(None, len(layer), f"channel {channel} has too few unclipped pixels in the ring")
        line = _FITS[by](cells, np.dtype(dtype))
        if line is None:
            return Fit(None, len(layer), f"channel {channel} of the two images does not agree in the ring")
        gains.append(float(f"{line[0]:.5g}"))
        offsets.append(round(line[1] / cells.step, 2) * cells.step)
    if by == "od":
        return Fit(Tone(od=tuple(gains)), len(layer))
    digits = tuple(float(f"{offset:.6g}") for offset in offsets)
    return Fit(Tone(tuple(gains), digits), len(layer))


def _cells(x: NDArray[Any], y: NDArray[Any], dtype: np.dtype[Any]) -> _Cells | None:
    x, y = x.astype(np.float64), y.astype(np.float64)
    usable = np.isfinite(x) & np.isfinite(y)
    if dtype.kind == "u":
        edge = 1 if dtype.itemsize == 1 else 0
        low, high = edge, int(np.iinfo(dtype).max) - edge
        usable &= (x > low) & (x < high) & (y > low) & (y < high)
    x, y = x[usable], y[usable]
    if len(x) < FEWEST_PAIRS:
        return None
    origin, step = _bins(x, y, dtype)
    columns, rows = (np.rint((v - origin) / step).astype(np.int64) for v in (x, y))
    inside = (columns >= 0) & (columns < BINS) & (rows >= 0) & (rows < BINS)
    counts = np.bincount(columns[inside] * BINS + rows[inside], minlength=BINS * BINS)
    filled = np.nonzero(counts)[0]
    column, count = filled // BINS, counts[filled].astype(np.float64)
    of_column = np.bincount(column, count, BINS)
    share = np.minimum(1.0, _most_of_one(of_column) / np.maximum(of_column, 1.0))
    return _Cells(origin + column * step, origin + filled % BINS * step, count * share[column], step)


def _most_of_one(counts: Values) -> float:
    """Where the counts of single values are cut, so that none is more than its part of what is left."""
    counts = np.sort(counts[counts > 0])[::-1]
    parts = min(MOST_OF_ONE, max(1, len(counts) // 2))
    rest = np.cumsum(counts[::-1])[::-1]
    for cut in range(parts):
        most = float(rest[cut]) / (parts - cut)
        if counts[cut] <= most:
            return most if cut else math.inf
    return float(counts[-1])


def _bins(x: Values, y: Values, dtype: np.dtype[Any]) -> tuple[float, float]:
    """(value of the first bin, width): each value one where there are few, else what nearly all values span."""
    if dtype == np.uint8:
        return 0.0, 1.0
    both = np.concatenate([x, y])
    low, high = (float(v) for v in np.quantile(both, (0.001, 0.999), method="nearest"))
    if high <= low:
        return low, 1.0
    step = 2.0 ** math.ceil(math.log2((high - low) / (BINS - 1)))
    return math.floor(low / step) * step, step


Line = tuple[float, float]
"""(gain, offset)."""


def _weighted_median(values: Values, weight: Values) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _scale(residuals: Values, weight: Values, floor: float) -> float:
    return max(MAD_TO_SD * _weighted_median(np.abs(residuals), weight), floor)


def _near(cells: _Cells, residuals: Values, floor: float) -> _Cells:
    """The pairs that are no outliers."""
    return cells.where(np.abs(residuals) <= CUTOFF * _scale(residuals, cells.weight, floor))


def _fit_offset(cells: _Cells, dtype: np.dtype[Any]) -> Line | None:
    difference = cells.y - cells.x
    near = _near(cells, difference - _weighted_median(difference, cells.weight), cells.step)
    return 1.0, float(np.average(near.y - near.x, weights=near.weight))


def _fit_gain(cells: _Cells, dtype: np.dtype[Any]) -> Line | None:
    """Through the origin."""
    cells = cells.where((cells.x > 0) & (cells.y > 0))
    if not len(cells.x):
        return None
    gain = _weighted_median(cells.y / cells.x, cells.weight * cells.x)
    for _ in range(3):
        near = _near(cells, cells.y - gain * cells.x, cells.step)
        gain = float((near.weight * near.y).sum() / (near.weight * near.x).sum())
    return _plausible(gain, 0.0)


def _fit_od(cells: _Cells, dtype: np.dtype[Any]) -> Line | None:
    if dtype.kind != "u":
        return None
    white = float(np.iinfo(dtype).max)
    inside = cells.where((cells.x > 0) & (cells.y > 0) & (cells.x < white) & (cells.y < white))
    dense = _Cells(-np.log(inside.x / white), -np.log(inside.y / white), inside.weight, 1 / 64)
    return _fit_gain(dense, dtype)


def _fit_linear(cells: _Cells, dtype: np.dtype[Any]) -> Line | None:
    coarse = _coarsened(cells)
    lines = [(1.0, _weighted_median(cells.y - cells.x, cells.weight)), *_lines(coarse)]
    tried = [_concentrated(coarse, line, 3) for line in lines]
    line = min(tried, key=lambda one: one[0])[1]
    line = _concentrated(cells, line, STEPS)[1]
    near = _near(cells, cells.y - (line[0] * cells.x + line[1]), cells.step)
    (mean_x, sd_x), (mean_y, sd_y) = (_mean_and_sd(v, near.weight) for v in (near.x, near.y))
    if sd_x < 2 * cells.step:
        return _fit_offset(cells, dtype)  # one tone only: it has no slope
    if np.average((near.x - mean_x) * (near.y - mean_y), weights=near.weight) <= 0:
        return None
    gain = sd_y / sd_x
    return _plausible(gain, mean_y - gain * mean_x)


def _plausible(gain: float, offset: float) -> Line | None:
    return (gain, offset) if 1 / 8 <= gain <= 8 else None


def _mean_and_sd(values: Values, weight: Values) -> tuple[float, float]:
    mean = float(np.average(values, weights=weight))
    return mean, math.sqrt(float(np.average((values - mean) ** 2, weights=weight)))


def _coarsened(cells: _Cells) -> _Cells:
    """The same in cells of several times the width: enough to begin with."""
    step = cells.step * COARSE
    x, y = np.floor(cells.x / step).astype(np.int64), np.floor(cells.y / step).astype(np.int64)
    places, which = np.unique(np.stack([x, y]), axis=1, return_inverse=True)
    weight = np.bincount(which.ravel(), cells.weight)
    middle = (places + 0.5) * step - cells.step / 2
    return _Cells(middle[0], middle[1], weight, step)


def _lines(cells: _Cells) -> list[Line]:
    """Lines through the medians of a few columns."""
    order = np.argsort(cells.x, kind="stable")
    total = np.cumsum(cells.weight[order])
    points = {}
    for share in LINES:
        x = float(cells.x[order][np.searchsorted(total, share * total[-1])])
        column = cells.x == x
        points[x] = _weighted_median(cells.y[column], cells.weight[column])
    return [
        ((y1 - y0) / (x1 - x0), y0 - (y1 - y0) / (x1 - x0) * x0)
        for (x0, y0), (x1, y1) in combinations(points.items(), 2)
    ]


def _concentrated(cells: _Cells, line: Line, steps: int) -> tuple[float, Line]:
    """(sum of squares, line) after steps that each fit the pairs that lie nearest to the last line."""
    squares = math.inf
    for _ in range(steps):
        residuals = (cells.y - (line[0] * cells.x + line[1])) ** 2
        order = np.argsort(residuals, kind="stable")
        total = np.cumsum(cells.weight[order])
        kept = cells.where(np.sort(order[: int(np.searchsorted(total, KEPT * total[-1])) + 1]))
        now = float((residuals[order] * cells.weight[order])[: len(kept.x)].sum())
        if not now < squares:
            break
        squares = now
        mean_x, sd_x = _mean_and_sd(kept.x, kept.weight)
        mean_y = float(np.average(kept.y, weights=kept.weight))
        if sd_x == 0:
            line = (1.0, mean_y - mean_x)
            continue
        gain = float(np.average((kept.x - mean_x) * (kept.y - mean_y), weights=kept.weight)) / sd_x**2
        line = (gain, mean_y - gain * mean_x)
    return squares, line


_FITS = {"offset": _fit_offset, "gain": _fit_gain, "linear": _fit_linear, "od": _fit_od}
