"""What a blending mode is: its halo, which layers a region needs, and how what they bring becomes pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Blended, Contribution, Rule, blend_tile


@dataclass(frozen=True, slots=True)
class ChunkClass:
    """What a chunk needs: `layers` (indices, bottom first) to be read. copy: the one layer's pixels are the result."""

    layers: tuple[int, ...]
    copy: bool

    @property
    def is_decided(self) -> bool:
        """True when no pixel needs a weight."""
        return self.copy or not self.layers

    @property
    def kind(self) -> str:
        """ "empty", "copied" or "blended"."""
        return "empty" if not self.layers else "copied" if self.copy else "blended"


@dataclass(frozen=True, eq=False)
class Ground:
    """What layers are laid on. background: float32, one value per channel of the canvas, alpha last if there is one.

    keeps_alpha: the bottom layer's pixels come through with their own alpha: nothing is under them.
    """

    background: NDArray[np.float32]
    dtype: np.dtype[Any]
    has_alpha: bool
    keeps_alpha: bool

    @property
    def channels(self) -> int:
        """Of the canvas, alpha included."""
        return len(self.background)


@dataclass(frozen=True, eq=False)
class Laid:
    """What the layers that a region needs bring to it.

    region: whose pixels are wanted, of the canvas. reach: what the contributions cover: the region grown by the mode's
    halo, as far as the canvas goes. layers: by index, bottom first; each is read when it is asked for, every time.
    """

    region: Region
    reach: Region
    layers: Mapping[int, Contribution]
    ground: Ground


def full_of(dtype: np.dtype[Any]) -> float:
    """Full scale of colours: the dtype's maximum, 1 for floats."""
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


class BlendMode(Protocol):
    """One way of making one picture of layers. Frozen and picklable; decided once for a scene.

    halo_px: pixels around a region on whose colours and weights its pixels depend; 0: each pixel on its own place.
    """

    @property
    def halo_px(self) -> int:
        """As above; a number, read by plan, renderer and lazy face."""
        ...

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """Which layers' pixels a region needs, told by their weights alone; fields: prepared for its reach."""
        ...

    def combine(self, laid: Laid) -> Blended:
        """The pixels of `laid.region` in the ground's dtype. The same bits however a canvas is cut into regions."""
        ...

    def of_layer(self, index: int) -> str:
        """What of the mode decides how one layer is combined with others, for a tile's key (`compose.keys`); "" where
        nothing does."""
        ...


def classified(needed: Sequence[int], fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
    """The class of a region that needs these layers, in a mode where a layer of full weight alone is the result."""
    if len(needed) != 1:
        return ChunkClass(tuple(needed), False)
    only = fields[needed[0]]
    keeps_alpha = ground.keeps_alpha and needed[0] == 0
    low = (only.cover_bounds(region) if keeps_alpha else only.bounds(region))[0]
    return ChunkClass(tuple(needed), low == 1)


def blended(laid: Laid, rule: Rule) -> Blended:
    """By a rule without a halo."""
    layers, ground = list(laid.layers.values()), laid.ground
    if ground.has_alpha and 0 not in laid.layers:
        # The bottom layer's own alpha comes through only where it is the bottom layer.
        nothing = np.zeros(laid.region.shape, np.float32)
        layers.insert(0, Contribution(np.zeros_like(layers[0].colour), nothing, None, nothing))
    return blend_tile(layers, ground.background, ground.dtype, rule, has_alpha=ground.has_alpha)
