"""A composite with everything decided once: what every consumer of its pixels is given.

Here masks' values are looked at, layers are placed, feathers become filters and the mode becomes its operation. Plan,
renderer, passing, lazy face, preview, view, seams and checks take a `Scene` and decide nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tiledblend.compose.masks import MaskRule, decide_layer_rule
from tiledblend.compose.matching import Matched, matched, with_match
from tiledblend.compose.modes.average import Average
from tiledblend.compose.modes.bands import Banded, BandedLayer
from tiledblend.compose.modes.mode import BlendMode, ChunkClass, Ground
from tiledblend.compose.modes.operators import Operating
from tiledblend.compose.modes.over import Over
from tiledblend.compose.modes.stack import Stacked
from tiledblend.compose.placed import Kept
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.weights import LayerField
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.levels import at_level
from tiledblend.describe.matching import Match
from tiledblend.geometry import Region
from tiledblend.kernels.bands import Bands
from tiledblend.kernels.tone import Tone


def _over(readers: Sequence[LayerReader]) -> BlendMode:
    """By what its layers ask for."""
    operators = tuple(reader.layer.operator for reader in readers)
    if any(reader.bands is not None for reader in readers):
        return Banded(tuple(_banded(reader) for reader in readers), Region.of_shape(readers[0].canvas))
    return Over() if all(operator == "normal" for operator in operators) else Operating(operators)


def _banded(reader: LayerReader) -> BandedLayer:
    return BandedLayer(reader.bands or Bands(1), reader.layer.operator, reader.frame, reader.visible)


MODES: Mapping[str, Callable[[Sequence[LayerReader]], BlendMode]] = {
    "over": _over,
    "average": lambda _: Average(),
    "stack": lambda readers: Stacked(tuple(reader.layer.colours for reader in readers)),
}
"""By the name that a job file gives: the mode of a scene of these layers."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A composite, decided. Holds no pixels; pickles with its sources' names, and nothing is looked at again then.

    composite: with numbers for every match. asked: as it was given. matches: how those numbers were found. readers: the
    layers, placed, bottom first. mode: how they become one picture. ground: what they are laid on.
    """

    composite: Composite
    readers: tuple[LayerReader, ...]
    mode: BlendMode
    ground: Ground
    asked: Composite
    matches: tuple[Matched, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the canvas."""
        return self.composite.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the result."""
        return self.ground.dtype

    @property
    def channels(self) -> int:
        """Of the result, alpha included."""
        return self.ground.channels

    @property
    def has_alpha(self) -> bool:
        """True when the result's last channel is straight alpha."""
        return self.ground.has_alpha

    def reach(self, region: Region) -> Region:
        """The part of the canvas whose colours and weights decide the region's pixels."""
        return region.grow(self.mode.halo_px) & Region.of_shape(self.shape)

    def fields(self, region: Region) -> list[LayerField]:
        """The layers' weights over a region's reach, bottom first; reads the masks."""
        kept: Kept = {}
        made = [LayerField(reader, self.reach(region), kept) for reader in self.readers]
        kept.clear()
        return made

    def classify(self, fields: Sequence[LayerField], region: Region) -> ChunkClass:
        """Which layers' pixels a region needs. fields: of a region that contains it."""
        return self.mode.classify(fields, region, self.ground)

    def derived(self, changed: Composite) -> Scene:
        """The scene of another composite of the same masks: how their values are taken is not decided again."""
        rules = {_mask_key(reader.layer): reader.rule for reader in self.readers}
        for index, layer in enumerate(changed.layers):
            if isinstance(layer.match, Match):
                changed = with_match(changed, index, self._match_of(layer))
        return _decided(changed, rules)

    def _match_of(self, layer: Layer) -> Match | Tone | None:
        """What a match was decided to be; itself where it is a new one."""
        for asked, decided in zip(self.asked.layers, self.composite.layers, strict=True):
            if asked.image is layer.image and asked.match == layer.match:
                return decided.match
        return layer.match

    def at_level(self, level: int) -> Scene:
        """The scene on the canvas of the result's level `level` (`describe.levels.at_level`)."""
        return self if level == 0 else self.derived(at_level(self.composite, level))


def decide(composite: Composite) -> Scene:
    """The scene of a composite. Reads integer masks whose values are taken by `auto` until they tell how, and pixels
    around the edges of layers whose tone is to be matched.

    Raises BadInputError for masks whose values cannot be told.
    """
    return _decided(composite, {})


def _decided(composite: Composite, rules: dict[_MaskKey, MaskRule | None]) -> Scene:
    found, matches = matched(composite, lambda other: _scene(other, rules))
    return replace(_scene(found, rules), asked=composite, matches=matches)


_MaskKey = tuple[int, Any, float | None]


def _mask_key(layer: Layer) -> _MaskKey:
    return id(layer.mask), layer.mask_values, layer.threshold


def _scene(composite: Composite, rules: dict[_MaskKey, MaskRule | None]) -> Scene:
    for layer in composite.layers:
        if _mask_key(layer) not in rules:
            rules[_mask_key(layer)] = decide_layer_rule(layer)
    readers = tuple(
        LayerReader(composite, index, rules[_mask_key(layer)]) for index, layer in enumerate(composite.layers)
    )
    ground = Ground(composite.background_values(), composite.dtype, composite.has_alpha, composite.keeps_bottom_alpha)
    return Scene(composite, readers, MODES[composite.mode](readers), ground, composite)


class SceneWhenAsked:
    """A scene that is decided when it is first asked for: what draws a composite opens without reading a mask."""

    def __init__(self, composite: Composite, origin: SceneWhenAsked | None = None) -> None:
        self.composite = composite
        self._origin, self._deciding = origin, threading.Lock()
        self._scene: Scene | None = None

    @classmethod
    def of(cls, scene: Scene) -> SceneWhenAsked:
        """One that is decided already."""
        made = cls(scene.composite)
        made._scene = scene
        return made

    def __call__(self) -> Scene:
        with self._deciding:
            if self._scene is None:
                origin = self._origin
                self._scene = decide(self.composite) if origin is None else origin().derived(self.composite)
            return self._scene

    def derived(self, changed: Composite) -> SceneWhenAsked:
        """As `Scene.derived`, when it is asked for."""
        return SceneWhenAsked(changed, self)
