"""A mask's edge moved to where two images differ least, within a distance: saved as outlines that a blend takes.

The seam is cut at a coarse level first, then again at each finer one in a narrow band around what was found, until the
band would be too large: what is held stays bounded.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.new_file import refuse_existing
from tiledblend.compose.scene import Scene, decide
from tiledblend.compose.weights import LayerField
from tiledblend.describe.composite import Composite
from tiledblend.describe.lengths import Feather, Length
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.cut import least_cut, whole_costs
from tiledblend.look.outline import outline
from tiledblend.look.seams import measure_seams
from tiledblend.sources import from_array, open_source

FIRST_NODES = 60_000
NODES = 300_000
CANVAS_PIXELS = 1 << 25
NARROW = 4
BLOCK = 512

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RouteReport:
    """What was found. level: of the canvas, at which the seam runs. before, after: mean step across the hard edge, as
    `seams` measures it, of the mask and of the route."""

    path: str
    outlines: int
    level: int
    before: float | None
    after: float | None
    bytes_written: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return asdict(self)


def route(composite: Composite, path: str | os.PathLike[str], within: Length, *, threads: int = 2) -> RouteReport:
    """Write the closed seam of least difference near the upper layer's mask as GeoJSON outlines at the new `path`.

    composite: a base and one layer with a mask. within: how far the seam may lie from the mask's edge. Coordinates are
    pixels of the canvas. Raises UsageError, RefusedError when `path` exists, BadInputError where there is no edge.
    """
    started = time.perf_counter()
    refuse_existing(path)
    if len(composite.layers) != 2 or composite.layers[1].mask is None:
        raise UsageError("a route needs a base and one overlay with a mask")
    hard = replace(composite.layers[1], feather=Feather(), opacity=1.0)
    scene = decide(replace(composite, layers=(composite.layers[0], hard)))
    size = composite.grid.pixel_size_um
    px = within.pixels(None if size is None else (size[0] * size[1]) ** 0.5, "within")
    if px <= 0:
        raise UsageError(f"within {within} must be above 0; use for example 200um")
    level, found = _routed(scene, px)
    mask = from_array(found.astype(np.uint8) * np.uint8(255), axes="yx", name="route", mask=True)
    grid = from_array(np.broadcast_to(np.uint8(0), composite.shape), axes="yx", name="canvas")
    done = outline(mask, path, like=grid)
    moved = replace(hard, mask=open_source(os.fspath(path), mask=True), mask_frame="canvas", **_PLAIN)
    before, after = (_step(one, threads) for one in (scene.composite, _with(scene.composite, moved)))
    took = time.perf_counter() - started
    return RouteReport(os.fspath(path), done.outlines, level, before, after, done.bytes_written, took)


_PLAIN: dict[str, Any] = {"mask_values": "auto", "threshold": None, "invert": False, "grow": None}


def _with(composite: Composite, layer: Any) -> Composite:
    return replace(composite, layers=(composite.layers[0], layer))


def _step(composite: Composite, threads: int) -> float | None:
    seams = measure_seams(composite, threads=threads)
    return seams[0].before.mean if seams and seams[0].before is not None else None


def _routed(scene: Scene, within: float) -> tuple[int, Flags]:
    """(level, True inside the seam there)."""
    level = 0
    while True:
        coarse = scene.at_level(level)
        if coarse.shape[0] * coarse.shape[1] <= CANVAS_PIXELS:
            inside, shown = _drawn(coarse)
            band = _near(inside, within / 2**level) & shown
            if np.count_nonzero(band) <= FIRST_NODES or max(coarse.shape) <= 256:
                break
        level += 1
    if not inside.any() or inside.all():
        raise BadInputError(
            f"{scene.composite.layers[1].image.name}: its mask has no edge on the canvas at level {level}"
        )
    _keep_cores(inside, band)
    allowed = band
    found = least_cut(whole_costs(_difference(coarse, band), band), inside, band)
    while level > 0:
        finer = scene.at_level(level - 1)
        if finer.shape[0] * finer.shape[1] > CANVAS_PIXELS:
            break
        wider, may = _doubled(found, finer.shape), _doubled(allowed, finer.shape)
        narrow = _near(wider, NARROW) & may
        if np.count_nonzero(narrow) > NODES:
            break
        level, allowed = level - 1, may
        found = least_cut(whole_costs(_difference(finer, narrow), narrow), wider, narrow)
    return level, found


def _drawn(scene: Scene) -> tuple[Flags, Flags]:
    """(inside the mask, where both images are) of the whole canvas."""
    inside, shown = np.zeros(scene.shape, np.bool_), np.zeros(scene.shape, np.bool_)
    reader = scene.readers[1]
    shown[(reader.visible & scene.readers[0].visible).slices] = True
    for y in range(0, scene.shape[0], 4 * BLOCK):
        rows = Region(y, 0, min(y + 4 * BLOCK, scene.shape[0]), scene.shape[1])
        inside[rows.slices] = LayerField(reader, rows).cover(rows) >= np.float32(0.5)
    return inside, shown


def _near(inside: Flags, reach: float) -> Flags:
    """Pixels within reach of the edge, on either side of it."""
    return np.asarray(np.where(inside, _distance(inside), _distance(~inside)) <= reach)


def _distance(flags: Flags) -> NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform(flags.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _keep_cores(inside: Flags, band: Flags) -> None:
    """Every area and every hole that lies wholly in the band keeps its middle: it is moved, and does not vanish."""
    from scipy import ndimage

    for side in (inside, ~inside):
        areas, count = ndimage.label(side)
        distance = _distance(side)
        kept = np.zeros(count + 1, np.bool_)
        kept[np.unique(areas[~band & side])] = True
        for number, window in enumerate(ndimage.find_objects(areas), 1):
            if not kept[number]:
                own = np.where(areas[window] == number, distance[window], 0)
                band[window][own == own.max()] = False


def _difference(scene: Scene, band: Flags) -> NDArray[np.float32]:
    """Mean absolute difference of the two images' channels where the band is, else 0."""
    out = np.zeros(scene.shape, np.float32)
    base, overlay = scene.readers
    for y in range(0, scene.shape[0], BLOCK):
        for x in range(0, scene.shape[1], BLOCK):
            block = Region(y, x, min(y + BLOCK, scene.shape[0]), min(x + BLOCK, scene.shape[1]))
            block = block & base.visible & overlay.visible
            if block.is_empty or not band[block.slices].any():
                continue
            first, second = (reader.read(block)[0].astype(np.float32) for reader in (base, overlay))
            with np.errstate(invalid="ignore"):
                out[block.slices] = np.abs(first - second).mean(axis=2)
    return out


def _doubled(flags: Flags, shape: tuple[int, int]) -> Flags:
    return flags.repeat(2, axis=0).repeat(2, axis=1)[: shape[0], : shape[1]]
