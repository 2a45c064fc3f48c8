"""A composite that was never written, as sources: itself, its layers and their weights, any region at any level,
rendered when it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.render import render_region
from tiledblend.compose.scene import Scene, SceneWhenAsked
from tiledblend.compose.weights import LayerField
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import fingerprint
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.describe.levels import at_level
from tiledblend.describe.matching import Match
from tiledblend.geometry import Grid, Region
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec

TILE = 512


class _OnCanvas(RasterSource):
    """What is rendered on a composite's canvas, level k as `at_level` composes it.

    scene: of the composite; None: decided by the first read.
    """

    is_opened_by_name = False

    def __init__(self, composite: Composite, name: str, scene: SceneWhenAsked | None) -> None:
        self.spec = SourceSpec(name)
        self.composite = composite
        self.pixel_size_um, self.origin_um = composite.grid.pixel_size_um, composite.grid.origin_um
        at = [at_level(composite, k) for k in range(Grid.auto_levels(composite.shape, TILE))]
        self.levels = tuple(Level(c.shape, (min(TILE, c.shape[0]), min(TILE, c.shape[1]))) for c in at)
        scene = scene or SceneWhenAsked(composite)
        self._scenes = (scene, *(scene.derived(coarser) for coarser in at[1:]))

    def contents(self) -> Iterable[tuple[str, str]]:
        """None: the fingerprint is that of the composite."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """Digest of what decides the composite's bits."""
        text = json.dumps(fingerprint(self.composite), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"uri": f"{self.info.format}:{self.spec.path}", "size": None, "modified": None, "structure": digest}


class ComposedSource(_OnCanvas):
    """The pixels of a composite: level 0 as `write` would store it, level k as `at_level` composes it."""

    def __init__(self, composite: Composite, name: str = "composite", scene: SceneWhenAsked | None = None) -> None:
        super().__init__(composite, name, scene)
        grid = composite.grid
        self.dtype = composite.dtype
        self.channels = composite.channels
        self.alpha = Alpha.STRAIGHT if composite.has_alpha else Alpha.NONE
        self.is_rgb = bool(grid.is_rgb)
        self.info = SourceInfo(
            "composite",
            "yxc",
            channel_names=grid.channel_names,
            channel_colors=grid.channel_colors,
            channel_windows=grid.channel_windows,
        )

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        return np.asarray(render_region(self._scenes[level](), region))

    def __reduce__(self) -> tuple[Any, ...]:
        return ComposedSource, (self.composite, self.spec.path)


class WeightSource(_OnCanvas):
    """The weight of one layer (its index, bottom 0) on the canvas, its image's own alpha left out: uint8, 255 is 1."""

    def __init__(self, composite: Composite, index: int, scene: SceneWhenAsked | None = None) -> None:
        super().__init__(composite, f"weight of {composite.layers[index].image.name}", scene)
        self.index = index
        self.layer = composite.layers[index]
        self.dtype = np.dtype(np.uint8)
        self.channels = 1
        self.info = SourceInfo("weight", "yx")

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        reader = self._scenes[level]().readers[self.index]
        weight = LayerField(reader, region).cover(region)
        return np.rint(weight * np.float32(255)).astype(np.uint8)[:, :, None]

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightSource, (self.composite, self.index)


@dataclass(frozen=True)
class CanvasViews:
    """What there is to see of a composite, all on its canvas. images, weights, edges: one per layer, bottom first;
    None for a layer that covers the canvas with one weight: it has no edge.

    edges: the weights as they are without feather and opacity.
    """

    result: ComposedSource
    images: tuple[ComposedSource, ...]
    weights: tuple[WeightSource | None, ...]
    edges: tuple[WeightSource | None, ...]


def canvas_views(shown: Composite | Scene) -> CanvasViews:
    """The views of a composite, or of one that is decided already; nothing is read yet."""
    scene = SceneWhenAsked.of(shown) if isinstance(shown, Scene) else SceneWhenAsked(shown)
    composite = scene.composite
    hard = replace(
        composite, layers=tuple(replace(layer, feather=Feather(), opacity=1.0) for layer in composite.layers)
    )
    indices = [index if has_edge(composite, layer) else None for index, layer in enumerate(composite.layers)]
    return CanvasViews(
        ComposedSource(composite, scene=scene),
        tuple(_alone(composite, layer) for layer in composite.layers),
        tuple(None if index is None else WeightSource(composite, index, scene) for index in indices),
        tuple(None if index is None else WeightSource(hard, index, scene.derived(hard)) for index in indices),
    )


def has_edge(composite: Composite, layer: Layer) -> bool:
    """False for a layer of one weight all over the canvas: without a mask, and wholly covering it."""
    return layer.mask is not None or not _covers(composite, layer)


def _covers(composite: Composite, layer: Layer) -> bool:
    placement = composite.placement(layer)
    return placement.frame.contains(Region.of_shape(composite.shape)) and not placement.sides


def unmasked(layer: Layer) -> Layer:
    """The layer with all of its image at full weight, in the tone that it has, if that is known."""
    return replace(
        layer,
        mask=None,
        mask_values="auto",
        threshold=None,
        invert=False,
        grow=None,
        feather=Feather(),
        opacity=1.0,
        operator="normal",
        match=None if isinstance(layer.match, Match) else layer.match,
    )


def _alone(composite: Composite, layer: Layer) -> ComposedSource:
    """A layer's image on the canvas, transparent where it does not reach."""
    see_through = layer.image.alpha is not Alpha.NONE or not _covers(composite, layer)
    canvas = replace(composite.full, channels=layer.colours + see_through, has_alpha=None)
    if composite.mode == "stack":
        # Its own channels, not those of all.
        canvas = replace(canvas, is_rgb=None, channel_names=(), channel_colors=(), channel_windows=())
    alone = replace(composite, layers=(unmasked(layer),), mode="over", background=0, canvas=canvas)
    return ComposedSource(alone, layer.image.name)
