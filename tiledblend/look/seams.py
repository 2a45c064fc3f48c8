"""How visible a composite's seams are: the step across each layer's edge, hard, feathered, and of the images alone.

A layer's edge is every pair of neighbouring pixels (left and right, above and below) of which one lies inside (its
weight without feather is half its opacity or more) and the other outside. The step of a pair is the absolute difference
of its two pixels, averaged over the colour channels. It is measured with a hard edge, with the layer's feather, and in
the two images that meet there, each by itself: what their own texture steps, which no feather takes away. A feather is
wide enough when its step is about that of the images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.composed import has_edge, unmasked
from tiledblend.compose.matching import Matched
from tiledblend.compose.render import render_region
from tiledblend.compose.scene import Scene, decide
from tiledblend.compose.weights import LayerField
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.describe.matching import Match, tone_as_dict
from tiledblend.geometry import Region, ceil_div
from tiledblend.sources.base import RasterSource

BLOCK = 1024
"""Side in pixels of the blocks that an edge is looked for in."""
WHOLE_BLOCKS = 16
"""A canvas of so many blocks is measured wholly; a larger one is sampled."""
WINDOW = 256
"""Side of what is measured of a block of a sampled canvas."""
WINDOWS = 128
"""Windows measured of a sampled canvas, at most."""
MOST_BLOCKS = 4096
"""Blocks of a sampled canvas that are looked into, at most."""
MOST_PAIRS = 1 << 15
"""Pairs measured of one window, at most."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """Differences across an edge in the images' own units: mean and 99th percentile of the pairs; and by channel."""

    mean: float
    p99: float
    channels_mean: tuple[float, ...]
    channels_p99: tuple[float, ...]


@dataclass(frozen=True)
class MatchedStep:
    """What a match of the layer's tone gives. tone: its numbers; None where it is left out, for `reason`. hard: with a
    hard edge. feathered: with the layer's feather."""

    by: str
    tone: dict[str, Any] | None
    reason: str
    hard: Step | None
    feathered: Step | None


@dataclass(frozen=True)
class Seam:
    """One layer's edge. layer: its index, bottom 0. feather: as given. pairs: of neighbouring pixels, measured.

    before: with a hard edge. after: with the layer's feather. images: of the two images by themselves. widths: what
    other feathers would give. matches: what other tones would. sampled: False when every pair of the edge was measured;
    windows: measured; blocks: looked into, of `of_blocks`. The steps are None when no edge was found on the canvas.
    """

    layer: int
    image: str
    mask: str | None
    feather: str
    pairs: int
    sampled: bool
    windows: int
    blocks: int
    of_blocks: int
    before: Step | None
    after: Step | None
    images: Step | None
    widths: tuple[tuple[str, Step], ...] = ()
    matches: tuple[MatchedStep, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "widths": [{"feather": name, **asdict(step)} for name, step in self.widths]}


def measure_seams(
    composite: Composite | Scene, widths: Sequence[Feather] = (), *, matches: Sequence[Match] = (), threads: int = 2
) -> tuple[Seam, ...]:
    """The seam of every layer that can have one, bottom first. widths: feathers, matches: of its tone, to compare.

    Each layer is measured as it lies on those below it, the ones above left away (mode average: among all). Large
    canvases are sampled, the same way each time: what is read stays bounded. Raises BadInputError.
    """
    scene = composite if isinstance(composite, Scene) else decide(composite)
    if scene.composite.mode == "stack":
        return ()  # nothing meets there
    with ThreadPoolExecutor(threads) as pool:
        return tuple(
            _measured(_Pictures.of(scene, index, tuple(widths), tuple(matches) if index else ()), pool)
            for index, layer in enumerate(scene.composite.layers)
            if layer.opacity > 0 and has_edge(scene.composite, layer)
        )


def feather_text(feather: Feather) -> str:
    """As a flag says it.

    >>> feather_text(Feather.um(8)), feather_text(Feather.ksize(5))
    ('8um', 'ksize:5')
    """
    if feather.band_count is not None:
        return f"bands:{feather.band_count}"
    if feather.kernel_size is not None:
        return f"ksize:{feather.kernel_size}"
    return f"{feather.sigma:g}{feather.unit}"


@dataclass(frozen=True)
class _Pictures:
    """The scenes that a seam's steps are taken from.

    layer: as given, the `index`th. hard: its feather left out. matched: in other tones, with a hard edge and feathered.
    alone: it without a mask over nothing. below: all but it.
    """

    layer: Layer
    index: int
    widths: tuple[Feather, ...]
    hard: Scene
    feathered: tuple[Scene, ...]
    matched: tuple[tuple[Matched, Scene, Scene], ...]
    alone: Scene
    below: Scene

    @classmethod
    def of(cls, scene: Scene, index: int, widths: tuple[Feather, ...], matches: tuple[Match, ...]) -> _Pictures:
        composite = scene.composite
        if composite.mode == "over":
            composite = replace(composite, layers=composite.layers[: index + 1])
        layer = composite.layers[index]

        def among(changed: Layer) -> Scene:
            layers = (*composite.layers[:index], changed, *composite.layers[index + 1 :])
            return scene.derived(replace(composite, layers=layers))

        def matched(match: Match) -> tuple[Matched, Scene, Scene]:
            found = among(replace(layer, match=match))
            decided = replace(layer, match=found.composite.layers[index].match)
            return found.matches[0], among(replace(decided, feather=Feather())), found

        return cls(
            layer,
            index,
            widths,
            among(replace(layer, feather=Feather())),
            tuple(among(replace(layer, feather=width)) for width in (layer.feather, *widths)),
            tuple(map(matched, matches)),
            scene.derived(replace(composite, layers=(unmasked(layer),))),
            among(replace(layer, opacity=0.0)),
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.hard.shape


def _measured(pictures: _Pictures, pool: ThreadPoolExecutor) -> Seam:
    shape = pictures.shape
    of_blocks = ceil_div(shape[0], BLOCK) * ceil_div(shape[1], BLOCK)
    sampled = of_blocks > WHOLE_BLOCKS
    windows: list[Region] = []
    blocks = 0
    for window in _in_order(pool, _blocks(shape), lambda block: _window(pictures, block, sampled)):
        blocks += 1
        windows += [window] if window is not None else []
        if sampled and len(windows) == WINDOWS:
            break
    parts = list(pool.map(lambda window: _steps(pictures, window), windows))
    steps: list[Step | None] = [_summary(np.concatenate(values)) for values in zip(*parts, strict=True)]
    layer = pictures.layer
    before, images, after, *others = steps or [None] * (3 + len(pictures.widths) + 2 * len(pictures.matched))
    toned = others[len(pictures.widths) :]
    return Seam(
        layer=pictures.index,
        image=layer.image.name,
        mask=layer.mask.name if isinstance(layer.mask, RasterSource) else layer.mask,
        feather=feather_text(layer.feather),
        pairs=sum(len(part[0]) for part in parts),
        sampled=sampled or any(len(part[0]) == MOST_PAIRS for part in parts),
        windows=len(windows),
        blocks=blocks,
        of_blocks=of_blocks,
        before=before,
        after=after,
        images=images,
        widths=tuple((feather_text(w), s) for w, s in zip(pictures.widths, others, strict=False) if s is not None),
        matches=tuple(
            _matched_step(found, hard, feathered)
            for (found, _, _), hard, feathered in zip(pictures.matched, toned[::2], toned[1::2], strict=True)
        ),
    )


def _matched_step(found: Matched, hard: Step | None, feathered: Step | None) -> MatchedStep:
    if found.tone is None:
        return MatchedStep(found.by, None, found.reason, None, None)
    return MatchedStep(found.by, tone_as_dict(found.tone), "", hard, feathered)


def _in_order(
    pool: ThreadPoolExecutor, regions: Iterator[Region], work: Callable[[Region], Region | None]
) -> Iterator[Region | None]:
    """Results in the regions' order, a few ahead of the one that is taken."""
    while batch := list(islice(regions, 16)):
        yield from pool.map(work, batch)


def _blocks(shape: tuple[int, int]) -> Iterator[Region]:
    """All blocks of a canvas in order when they are few, else some of them, shuffled the same way each time."""
    rows, columns = ceil_div(shape[0], BLOCK), ceil_div(shape[1], BLOCK)
    places: Sequence[int] = range(rows * columns)
    if len(places) > WHOLE_BLOCKS:
        places = random.Random(0).sample(places, min(len(places), MOST_BLOCKS))
    for place in places:
        y, x = place // columns * BLOCK, place % columns * BLOCK
        yield Region(y, x, min(y + BLOCK, shape[0]), min(x + BLOCK, shape[1]))


def _window(pictures: _Pictures, block: Region, sampled: bool) -> Region | None:
    """What is measured of a block: all, or around the middle one of its edge's pixels. None: it has no edge."""
    down, across = _pairs(pictures, block)
    rows, columns = np.nonzero(down | across)
    if not len(rows):
        return None
    if not sampled:
        return block
    middle = len(rows) // 2
    y = min(block.y0 + max(0, int(rows[middle]) - WINDOW // 2), max(block.y0, block.y1 - WINDOW))
    x = min(block.x0 + max(0, int(columns[middle]) - WINDOW // 2), max(block.x0, block.x1 - WINDOW))
    return Region(y, x, y + WINDOW, x + WINDOW) & block


def _reach(region: Region, shape: tuple[int, int]) -> Region:
    """The region and the neighbours below and to the right of its pixels."""
    return Region(region.y0, region.x0, region.y1 + 1, region.x1 + 1) & Region.of_shape(shape)


def _pairs(pictures: _Pictures, region: Region) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(y, x) of the region: True where the edge runs between a pixel and the one below; and the one to the right."""
    reach = _reach(region, pictures.shape)
    nothing = np.zeros(region.shape, np.bool_)
    field = LayerField(pictures.hard.readers[pictures.index], reach)
    low, high = field.cover_bounds(reach)
    opacity = pictures.layer.opacity
    if high < opacity / 2 or low >= opacity / 2:
        return nothing, nothing
    inside = field.cover(reach) >= np.float32(opacity / 2)
    down, across = nothing.copy(), nothing
    down[: reach.shape[0] - 1] = (inside[1:] != inside[:-1])[: region.shape[0], : region.shape[1]]
    across[:, : reach.shape[1] - 1] = (inside[:, 1:] != inside[:, :-1])[: region.shape[0], : region.shape[1]]
    return down, across


def _steps(pictures: _Pictures, window: Region) -> list[Values]:
    """Steps (pairs, channels) of the window's pairs: hard, of the images, feathered, and with the other widths."""
    reach = _reach(window, pictures.shape)
    first, second = _chosen(*_pairs(pictures, window))

    def steps(picture: Scene) -> Values:
        pixels = render_region(picture, reach).astype(np.float32)
        if picture.has_alpha:
            pixels = pixels[:, :, :-1]
        with np.errstate(invalid="ignore"):
            return np.abs(pixels[first] - pixels[second])

    below = steps(pictures.below)
    covered = LayerField(pictures.alone.readers[0], reach).cover(reach) > 0
    shown = covered[first] & covered[second]
    # Where the layer itself ends there is no image on its other side.
    images = np.where(shown[:, None], (steps(pictures.alone) + below) / 2, below) if shown.any() else below
    toned = [picture for _, *both in pictures.matched for picture in both]
    return [steps(pictures.hard), images, *map(steps, (*pictures.feathered, *toned))]


Places = tuple[NDArray[np.intp], NDArray[np.intp]]


def _chosen(down: NDArray[np.bool_], across: NDArray[np.bool_]) -> tuple[Places, Places]:
    """(rows, columns) of the pairs' first pixels and of their second ones, evenly thinned out to MOST_PAIRS."""
    y_down, x_down = np.nonzero(down)
    y_across, x_across = np.nonzero(across)
    y, x = np.concatenate([y_down, y_across]), np.concatenate([x_down, x_across])
    dy = np.concatenate([np.ones_like(y_down), np.zeros_like(y_across)])
    if len(y) > MOST_PAIRS:
        kept = np.linspace(0, len(y) - 1, MOST_PAIRS).astype(np.intp)
        y, x, dy = y[kept], x[kept], dy[kept]
    return (y, x), (y + dy, x + 1 - dy)


def _summary(steps: Values) -> Step:
    """Of steps (pairs, channels). Pairs of which a pixel is NaN or infinite count nowhere."""
    finite = steps[np.isfinite(steps).all(axis=1)].astype(np.float64)
    if not len(finite):
        finite = np.zeros((1, steps.shape[1]))
    mixed = finite.mean(axis=1)
    by_channel = np.percentile(finite, 99, axis=0)
    return Step(
        float(mixed.mean()),
        float(np.percentile(mixed, 99)),
        tuple(float(v) for v in finite.mean(axis=0)),
        tuple(float(v) for v in by_channel),
    )
