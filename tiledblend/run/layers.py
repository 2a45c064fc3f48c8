"""Each layer as a plan shows it: what it is, where it lies, how wide its edge is, where it alone decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tiledblend.compose.reader import LayerReader
from tiledblend.compose.scene import Scene
from tiledblend.compose.weights import LayerField
from tiledblend.describe.layers import Labels
from tiledblend.geometry import Region
from tiledblend.sources.base import RasterSource
from tiledblend.sources.outlines.source import PolygonSpec

EDGE_SIGMAS = 3.29
"""A straight edge feathered by a Gaussian goes from 5 to 95 % within this many sigmas: 2 x 1.645."""
INSIDE_SIGMAS = 1.897
"""The same of max(0, 2 G - 1): from G = 0.525 to G = 0.975."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer, in numbers.

    image: its file. series: which of its images, None for the only one. shape: (y, x) pixels of its own.
    place: (y0, x0, y1, x1) on the canvas that is rendered. on_canvas: share of the layer that lies on it. covers: share
    of the canvas under the layer's rectangle. mask: its file, "alpha", or None. values: how its numbers are taken.
    feather_px, feather_um: sigma along (y, x). edge_px, edge_um: the width, along (y, x), in which a straight edge goes
    from 5 to 95 %. alone: share of the looked-at pixels that the layer alone decides; None when none was looked at, and
    where the image's own alpha or bands decide. bands: of a multi-band blend, None otherwise.
    """

    image: str
    series: int | None
    shape: tuple[int, int]
    pixel_size_um: tuple[float, float] | None
    place: tuple[int, int, int, int]
    on_canvas: float
    covers: float
    mask: str | None
    classes: tuple[str, ...]
    values: str
    threshold: float | None
    invert: bool
    grow: str | None
    bands: int | None
    operator: str
    feather_px: tuple[float, float]
    feather_um: tuple[float, float] | None
    edge_px: tuple[float, float]
    edge_um: tuple[float, float] | None
    opacity: float
    alone: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def layer_plans(scene: Scene, alone: Sequence[float | None]) -> tuple[LayerPlan, ...]:
    """One per layer, bottom first. alone: as of `LayerPlan`."""
    if any(reader.layer.feather.band_count is not None for reader in scene.readers):
        alone = [None] * len(scene.readers)  # a band fades over its own width
    return tuple(_layer_plan(scene, reader, share) for reader, share in zip(scene.readers, alone, strict=True))


def _layer_plan(scene: Scene, reader: LayerReader, alone: float | None) -> LayerPlan:
    layer, composite, frame = reader.layer, scene.composite, reader.frame
    mask = layer.mask.spec if isinstance(layer.mask, RasterSource) else None
    size, sigmas = composite.grid.pixel_size_um, _sigmas(reader)
    widths = INSIDE_SIGMAS if layer.side == "inside" else EDGE_SIGMAS
    edge = (sigmas[0] * widths, sigmas[1] * widths)
    return LayerPlan(
        image=layer.image.spec.path,
        series=layer.image.spec.series,
        shape=layer.image.shape,
        pixel_size_um=layer.known_pixel_size_um,
        place=(frame.y0, frame.x0, frame.y1, frame.x1),
        on_canvas=reader.visible.size / max(1, frame.size),
        covers=reader.visible.size / math.prod(scene.shape),
        mask=mask.path if mask is not None else "alpha" if layer.mask == "alpha" else None,
        classes=mask.classes if isinstance(mask, PolygonSpec) else (),
        values=_values(layer.mask_values),
        threshold=layer.threshold,
        invert=layer.invert,
        grow=str(layer.grow) if layer.grow else None,
        bands=layer.feather.band_count,
        operator=layer.operator,
        feather_px=sigmas,
        feather_um=_in_um(sigmas, size),
        edge_px=edge,
        edge_um=_in_um(edge, size),
        opacity=layer.opacity,
        alone=None if reader.multiplies_alpha else alone,
    )


def _sigmas(reader: LayerReader) -> tuple[float, float]:
    """(y, x) pixels; of OpenCV's kernel the sigma that it stands for."""
    size = reader.kernel.ksize
    if size is None:
        return reader.kernel.sigmas
    sigma = 0.0 if size == 1 else 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    return sigma, sigma


def _in_um(pixels: tuple[float, float], size: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if size is None else (pixels[0] * size[0], pixels[1] * size[1])


def _values(values: Any) -> str:
    if isinstance(values, Labels):
        return f"labels:{','.join(map(str, values.values))}"
    return f"{values[0]:g},{values[1]:g}" if isinstance(values, tuple) else str(values)


def alone_in(scene: Scene, fields: Sequence[LayerField], parts: Iterable[Region]) -> list[int]:
    """Pixels of the regions that each layer alone decides: it has weight 1 (of an average: any), and none above (of an
    average: none besides) has any; of a stack: it has weight 1. An image's own alpha is not read for it."""
    counts = [0] * len(fields)
    for part in parts:
        if scene.composite.mode == "stack":
            counts = [count + int((field.cover(part) == 1).sum()) for count, field in zip(counts, fields, strict=True)]
            continue
        if scene.composite.mode == "average":
            covers = np.stack([field.cover(part) > 0 for field in fields])
            single = np.count_nonzero(covers, axis=0) == 1
            counts = [count + int(np.count_nonzero(one & single)) for count, one in zip(counts, covers, strict=True)]
            continue
        taken = np.zeros(part.shape, np.bool_)  # by a layer above
        for index in range(len(fields) - 1, -1, -1):
            low, high = fields[index].cover_bounds(part)
            if high == 0:
                continue
            whole = low == high == 1
            cover = None if whole else fields[index].cover(part)
            full = np.ones(part.shape, np.bool_) if cover is None else cover == 1
            if fields[index].reader.layer.operator != "normal":
                full = np.zeros_like(full)  # what lies below shows through
            counts[index] += int(np.count_nonzero(full & ~taken))
            taken |= True if cover is None else cover > 0
            if taken.all():
                break
    return counts
