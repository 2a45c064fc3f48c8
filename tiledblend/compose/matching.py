"""Tones fitted to what lies below: pairs of pixels from a ring around each mask's edge, once, when a scene is decided.

At the first level whose canvas has no more than 16 Mpx, in blocks near the edge, so that what is read and held is
bounded however large the images are. A tone is kept where it makes the step across the edge smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.modes.mode import Laid, full_of
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.weights import LayerField
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.describe.levels import at_level
from tiledblend.describe.matching import Match, tone_text
from tiledblend.geometry import Region
from tiledblend.kernels.tone import Tone
from tiledblend.kernels.tone_fit import fit_tone

if TYPE_CHECKING:
    from tiledblend.compose.scene import Scene

CANVAS_PIXELS = 1 << 24
SEARCHED = 1024
READ_PIXELS = 1 << 24
FEWEST_BLOCKS = 32
MOST_PAIRS = 1 << 18

Pixels = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Matched:
    """What became of a layer's match. layer: its index. tone: None where it was left out, for `reason`. pairs: of
    pixels, at `level` of the canvas. before, after: mean step across the hard edge there, in the dtype's units."""

    layer: int
    image: str
    by: str
    tone: Tone | None
    reason: str
    pairs: int
    level: int
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        steps = ""
        if self.before is not None and self.after is not None:
            steps = f"; step across the edge {self.before:.4g}, matched {self.after:.4g}"
        if self.tone is None:
            return f"{self.image}: match {self.by} is left out: {self.reason}{steps}"
        where = f"from {self.pairs:,} pixels of level {self.level}"
        return f"{self.image}: match {self.by} {where}: {tone_text(self.tone)}{steps}"


SceneOf = Callable[[Composite], "Scene"]


def matched(composite: Composite, scene_of: SceneOf) -> tuple[Composite, tuple[Matched, ...]]:
    """The composite with numbers for every match, from the bottom up, and how they were found.

    scene_of: decides composites whose matches are numbers.
    """
    found: list[Matched] = []
    for index, layer in enumerate(composite.layers):
        if isinstance(layer.match, Match):
            one = _fitted(composite, index, layer.match, scene_of)
            found.append(one)
            composite = with_match(composite, index, one.tone)
    return composite, tuple(found)


def with_match(composite: Composite, index: int, match: Match | Tone | None) -> Composite:
    """The composite with another match of one layer."""
    layers = list(composite.layers)
    layers[index] = replace(layers[index], match=match)
    return replace(composite, layers=tuple(layers))


def _fitted(composite: Composite, index: int, match: Match, scene_of: SceneOf) -> Matched:
    layer, level = composite.layers[index], _level(composite)
    name = layer.image.name
    below = scene_of(at_level(replace(composite, layers=composite.layers[:index]), level))
    with_it = scene_of(at_level(replace(composite, layers=(*composite.layers[:index], _hard(layer))), level))
    ring = max(2.0, match.ring_px(composite.full.pixel_size_um) / (composite.reduction * 2**level))
    search = _Search(with_it.readers[index], below.readers, ring)
    pairs, steps = _looked_at(search, below, level)
    if not pairs:
        return Matched(index, name, match.by, None, "no edge with both images around it was found", 0, level)
    layer_values, below_values = (np.concatenate(values) for values in zip(*pairs, strict=True))
    fit = fit_tone(match.by, layer_values, below_values, composite.dtype)
    if fit.tone is None:
        return Matched(index, name, match.by, None, fit.reason, fit.pairs, level)
    before, after = _step(steps, None, composite.dtype), _step(steps, fit.tone, composite.dtype)
    if before is not None and after is not None and after < before:
        return Matched(index, name, match.by, fit.tone, "", fit.pairs, level, before, after)
    reason = "it makes the step across the edge no smaller"
    return Matched(index, name, match.by, None, reason, fit.pairs, level, before, after)


def _level(composite: Composite) -> int:
    level, (height, width) = 0, composite.shape
    while (height >> level) * (width >> level) > CANVAS_PIXELS:
        level += 1
    return level


def _hard(layer: Layer) -> Layer:
    """At full weight inside its mask, as its image has it."""
    return replace(layer, feather=Feather(), opacity=1.0, match=None, operator="normal")


@dataclass(frozen=True)
class _Search:
    """own: the layer, unfeathered. below: those under it. ring: pixels of the level on either side of the edge."""

    own: LayerReader
    below: tuple[LayerReader, ...]
    ring: float

    def flags(self, region: Region) -> tuple[Flags, Flags] | None:
        """(in the ring, inside the mask) of a region; None where no edge is near."""
        margin = int(self.ring) + 2
        reach = region.grow(margin) & Region.of_shape(self.own.canvas)
        field = LayerField(self.own, reach)
        low, high = field.cover_bounds(reach)
        if high < 0.5 or low >= 0.5:
            return None
        inside = field.cover(reach) >= np.float32(0.5)
        if inside.all() or not inside.any():
            return None
        # Of each side the distance to the other.
        near = np.where(inside, _distance(inside), _distance(~inside)) <= self.ring
        at = region.shift(-reach.y0, -reach.x0).slices
        return (near & self._shown(reach))[at], inside[at]

    def _shown(self, region: Region) -> Flags:
        """Where the layer's image lies over something, its alpha left out."""
        part = region & self.own.visible
        shown = np.zeros(region.shape, np.bool_)
        at = part.shift(-region.y0, -region.x0).slices
        border = self.own.border.weight(part)
        shown[at] = True if border is None else border == 1
        under = np.zeros(region.shape, np.bool_)
        for reader in self.below:
            field = LayerField(reader, region)
            if field.cover_bounds(region)[1] > 0:
                under |= field.cover(region) == 1
        return shown & under


def _distance(flags: Flags) -> Pixels:
    return np.asarray(cv2.distanceTransform(flags.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5))


Pair = tuple[Pixels, Pixels]


def _looked_at(search: _Search, below: Scene, level: int) -> tuple[list[Pair], list[Pair]]:
    """(pairs of the ring, pairs across the edge): (layer, below), each (pairs, channels), block by block."""
    side = max(64, 512 >> level)
    blocks = list(_near_edges(search, side))
    most = max(FEWEST_BLOCKS, READ_PIXELS // (side << level) ** 2)
    if len(blocks) > most:
        blocks = sorted(random.Random(0).sample(blocks, most), key=lambda found: (found[0].y0, found[0].x0))
    share = max(256, MOST_PAIRS // max(1, len(blocks)))
    pairs: list[Pair] = []
    steps: list[Pair] = []
    for block, near, within in blocks:
        part = block & search.own.visible
        if part.is_empty:
            continue
        at = part.shift(-block.y0, -block.x0).slices
        ring, inside = near[at], within[at]
        colour, alpha = search.own.read(part)
        under = _pixels(below, part)
        if alpha is not None and search.own.multiplies_alpha:
            ring = ring & (alpha == 1)
        if below.has_alpha:
            ring, under = ring & (under[:, :, -1] == full_of(below.dtype)), under[:, :, :-1]
        colour = colour.astype(np.float32)
        wide = np.asarray(under, np.float32)
        every = max(1, int(np.count_nonzero(ring)) // share)
        if ring.any():
            pairs.append((colour[ring][::every], wide[ring][::every]))
        steps += _across(ring, inside, colour, wide)
    return pairs, steps


def _pixels(scene: Scene, region: Region) -> NDArray[Any]:
    """As `render.render_region`, of a small region: nothing is classified."""
    fields, reach = scene.fields(region), scene.reach(region)
    layers = {index: field.contribution(reach) for index, field in enumerate(fields)}
    return scene.mode.combine(Laid(region, reach, layers, scene.ground)).pixels


def _near_edges(search: _Search, side: int) -> Iterator[tuple[Region, Flags, Flags]]:
    """Blocks that the ring touches, with what is in the ring and inside the mask."""
    height, width = search.own.canvas
    for y in range(0, height, SEARCHED):
        for x in range(0, width, SEARCHED):
            tile = Region(y, x, min(y + SEARCHED, height), min(x + SEARCHED, width))
            flags = search.flags(tile)
            if flags is None:
                continue
            for row in range(tile.y0, tile.y1, side):
                for column in range(tile.x0, tile.x1, side):
                    block = Region(row, column, min(row + side, tile.y1), min(column + side, tile.x1))
                    near, inside = (flag[block.shift(-y, -x).slices] for flag in flags)
                    if near.any():
                        yield block, near.copy(), inside.copy()


def _across(ring: Flags, inside: Flags, layer: Pixels, below: Pixels) -> Iterator[Pair]:
    """(inner pixels of the layer, outer pixels of what lies below) of neighbours that the edge runs between."""
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        known = ring[first] & ring[second]
        for inner, outer in ((first, second), (second, first)):
            between = known & inside[inner] & ~inside[outer]
            if between.any():
                yield layer[inner][between], below[outer][between]


def _step(steps: list[Pair], tone: Tone | None, dtype: np.dtype[Any]) -> float | None:
    """Mean absolute difference across the edge, of all channels. None: no pair of finite values."""
    total, count = 0.0, 0
    for layer, below in steps:
        shown = layer if tone is None else tone.of(layer[None], dtype)[0]
        with np.errstate(invalid="ignore"):
            difference = np.abs(shown - below)
        finite = difference[np.isfinite(difference)].astype(np.float64)
        total, count = total + float(finite.sum()), count + finite.size
    return total / count if count else None
