"""An image with its weight and its place on the canvas; what a mask's numbers mean."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tiledblend.describe.lengths import (
    Feather,
    Length,
    checked_grow,
    checked_offset,
    checked_pixel_size,
    is_pixel_size,
    set_number,
)
from tiledblend.describe.matching import Match
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Affine
from tiledblend.kernels.operators import OPERATORS, Operator
from tiledblend.kernels.tone import Tone
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.outlines.source import PolygonSource


@dataclass(frozen=True, slots=True)
class Labels:
    """Mask values that count as inside; all others are outside.

    >>> Labels((2, 5)).values
    (2, 5)
    """

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        given: Any = self.values
        try:
            object.__setattr__(self, "values", tuple(map(operator.index, given)))
        except TypeError:
            raise UsageError(f"mask_values labels {given!r} must be whole numbers, such as (2, 5)") from None
        if not self.values:
            raise UsageError("mask_values labels must name at least one label")


MaskValues = Literal["auto", "binary"] | tuple[float, float] | Labels


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def checked_mask_values(values: Any) -> MaskValues:
    """How a mask's numbers become 0..1, [lo, hi] as a tuple of floats. Raises UsageError."""
    if isinstance(values, Labels):
        return values
    if isinstance(values, str):
        if values == "auto":
            return "auto"
        if values == "binary":
            return "binary"
        raise UsageError(f"mask_values {values!r} must be auto, binary, [lo, hi] or labels")
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"mask_values {values!r} must be auto, binary, (lo, hi) or Labels((2, 5))") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"mask_values {[low, high]} must be [lo, hi] with lo below hi")
    return low, high


@dataclass(frozen=True, slots=True)
class Layer:
    """An image with its weight and its place on the canvas.

    image: the colours. mask: one-channel (or RGB) source, "alpha" for the image's own alpha channel, or None (opaque).
    mask_values: how the mask's numbers become 0..1. mask_frame: what the mask covers, this layer or the whole canvas
    (None: the canvas for polygons, else the layer).
    feather: a `Feather`, or what a job has: 16, "16px", "8um", "bands:6", "ksize:5".
    feather_side: "both" or "inside" (None: inside for alpha, else both). opacity: 0..1. offset: (y, x) of the image's
    top-left corner on the canvas, whole pixels or `Length`s (also "12um"), may be negative; None: not placed, so the
    sizes must agree. fit: "canvas" resamples image and mask to the canvas's size, "physical" by the pixel sizes of
    layer and canvas, "scene" by the scene above OME-Zarr images of one store. pixel_size_um: (y, x) of the image,
    instead of what its file says. affine: maps points (x, y) of the layer to points of the canvas, instead of offset
    and fit; rows [[a, b, c], [d, e, f]] will do (`Affine`).
    grow: the mask grows by this much on the canvas before it is feathered (negative: shrinks), in pixels or "8um".
    operator: how the colours meet those below (W3C Compositing and Blending): "normal", "multiply", "screen", "darken",
    "lighten" or "difference". match: the tone, as numbers or fitted to what lies below (`Match`).
    threshold: the mask is what is at or above this, in the mask file's own numbers, instead of `mask_values`.

    An offset in micrometres is rounded to a whole pixel of the canvas where the layer's pixels are not resampled.
    """

    image: RasterSource
    mask: RasterSource | Literal["alpha"] | None = None
    mask_values: MaskValues = "auto"
    mask_frame: Literal["layer", "canvas"] | None = None
    invert: bool = False
    feather: Feather = field(default_factory=Feather)
    feather_side: Literal["both", "inside"] | None = None
    opacity: float = 1.0
    offset: tuple[int, int] | tuple[Length, Length] | None = None
    fit: Literal["canvas", "physical", "scene"] | None = None
    pixel_size_um: tuple[float, float] | None = None
    affine: Affine | None = None
    grow: Length | None = None
    operator: Operator = "normal"
    match: Match | Tone | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.mask_frame is None:
            object.__setattr__(self, "mask_frame", "canvas" if isinstance(self.mask, PolygonSource) else "layer")
        if not 0 <= self.opacity <= 1:
            raise UsageError(f"opacity {self.opacity} of layer {self.image.name} must be from 0 to 1")
        if self.affine is not None and (self.fit is not None or self.offset is not None):
            raise UsageError(
                f"layer {self.image.name} has an affine and {'fit' if self.fit else 'an offset'}; give one"
            )
        if self.fit in ("canvas", "scene") and self.offset not in (None, (0, 0)):
            raise UsageError(f"layer {self.image.name} has both fit {self.fit} and an offset; give one of them")
        if self.mask_frame not in ("layer", "canvas") or self.fit not in (None, "canvas", "physical", "scene"):
            raise UsageError(
                f"layer {self.image.name}: mask_frame must be layer or canvas, fit none, canvas, physical or scene"
            )
        if not (self.match is None or isinstance(self.match, (Match, Tone))):
            raise UsageError(f"match {self.match!r} of layer {self.image.name} must be a Match, a Tone or None")
        if self.operator not in OPERATORS:
            raise UsageError(f"operator {self.operator!r} of layer {self.image.name} must be {_listed(OPERATORS)}")
        if self.mask is None:
            self._refuse_what_needs_a_mask()
        if self.feather_side not in (None, "both", "inside"):
            raise UsageError(f"layer {self.image.name}: feather_side {self.feather_side!r} must be both or inside")
        if self.mask == "alpha" and self.image.alpha is Alpha.NONE:
            raise BadInputError(
                f"{self.image.name}: mask is alpha, but the image has {self.image.channels} channels "
                "and no alpha; give a mask file"
            )
        self._check_mask_channels()

    def _check_kinds(self) -> None:
        """Python callers get words for what would fail much later; lists become tuples."""
        if not isinstance(self.image, RasterSource):
            raise UsageError(f"image {self.image!r} must be a source; use tiledblend.open or tiledblend.from_array")
        is_alpha = isinstance(self.mask, str) and self.mask == "alpha"
        if not (self.mask is None or is_alpha or isinstance(self.mask, RasterSource)):
            raise UsageError(
                f"mask {self.mask!r} must be a source (use tiledblend.open or tiledblend.from_array), 'alpha' or None"
            )
        feather: Any = self.feather
        object.__setattr__(self, "feather", Feather.parse(feather))
        set_number(self, "opacity", float, f"opacity of layer {self.image.name}")
        if not isinstance(self.invert, (bool, np.bool_)):
            raise UsageError(f"layer {self.image.name}: invert {self.invert!r} must be True or False")
        object.__setattr__(self, "invert", bool(self.invert))
        object.__setattr__(self, "mask_values", checked_mask_values(self.mask_values))
        if self.threshold is not None:
            self._check_threshold()
        if self.offset is not None:
            object.__setattr__(self, "offset", checked_offset(self.offset))
        if self.grow is not None:
            object.__setattr__(self, "grow", checked_grow(self.grow))
        matrix: Any = self.affine
        if not (matrix is None or isinstance(matrix, Affine)):
            object.__setattr__(self, "affine", Affine.of_matrix(matrix))
        if self.pixel_size_um is not None:
            object.__setattr__(self, "pixel_size_um", checked_pixel_size(self.pixel_size_um, self.image.name))

    def _check_threshold(self) -> None:
        set_number(self, "threshold", float, f"threshold of layer {self.image.name}")
        if not math.isfinite(self.threshold or 0):
            raise UsageError(f"layer {self.image.name}: threshold {self.threshold} must be finite")
        if self.mask_values != "auto":
            raise UsageError(
                f"layer {self.image.name}: threshold and mask_values both say what the mask's numbers mean; give one"
            )
        if self.mask == "alpha" or isinstance(self.mask, PolygonSource):
            what = "the image's own alpha" if self.mask == "alpha" else "outlines"
            raise UsageError(f"layer {self.image.name}: threshold is for a mask of numbers, not for {what}")

    def _refuse_what_needs_a_mask(self) -> None:
        """A mask that was forgotten would else show the whole layer, without a word."""
        given = {
            "grow": self.grow is not None,
            "invert": self.invert,
            "mask_values": self.mask_values != "auto",
            "threshold": self.threshold is not None,
        }
        for what in (name for name, is_given in given.items() if is_given):
            raise UsageError(f"layer {self.image.name}: {what} needs a mask")

    def _check_mask_channels(self) -> None:
        if isinstance(self.mask, RasterSource) and not (self.mask.channels == 1 or _is_rgb_mask(self.mask)):
            raise BadInputError(
                f"mask {self.mask.name} has {self.mask.channels} channels; a mask has one (or is RGB, "
                "taken as luma): select one with channels"
            )

    @property
    def known_pixel_size_um(self) -> tuple[float, float] | None:
        """(y, x) of the image's pixels: as stated, else as the file says if that can be."""
        said = self.image.pixel_size_um
        return self.pixel_size_um or (said if said and all(map(is_pixel_size, said)) else None)

    @property
    def side(self) -> Literal["both", "inside"]:
        """The feather's side with its default resolved."""
        if self.feather_side is not None:
            return self.feather_side
        return "inside" if self.mask == "alpha" else "both"

    @property
    def colours(self) -> int:
        """Number of colour channels, alpha left out."""
        return self.image.channels - (self.image.alpha is not Alpha.NONE)


def _is_rgb_mask(mask: RasterSource) -> bool:
    return mask.channels - (mask.alpha is not Alpha.NONE) in (1, 3)
