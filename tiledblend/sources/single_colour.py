"""One colour as an image of any size: what pen marks and labels are filled with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import UsageError
from tiledblend.geometry import Grid, Region, halved
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec

TILE = 512
Colour = str | float | Sequence[float]


@dataclass(frozen=True, slots=True)
class ColourSpec(SourceSpec):
    """A colour. values: one per channel, in the dtype's numbers. shape: (y, x). dtype: its name."""

    values: tuple[float, ...] = ()
    shape: tuple[int, int] = (1, 1)
    dtype: str = "uint8"
    is_rgb: bool = False


def from_color(color: Colour, like: RasterSource, shape: tuple[int, int] | None = None) -> RasterSource:
    """A colour as a source, with the dtype and the colour channels of another one.

    color: a number for every channel, one number per channel in the dtype's numbers, or "#f3f3f3" (of three channels,
    in 255ths of full scale). shape: (y, x), that of `like` unless given.

    Raises UsageError for a colour that such an image cannot have.

    >>> import tiledblend as tb
    >>> base = tb.from_array(np.zeros((4, 6, 3), np.uint8), axes="yxc")
    >>> from_color("#f3f3f3", base).read(Region(0, 0, 1, 1)).tolist()
    [[[243, 243, 243]]]
    """
    channels = like.channels - (like.alpha is not Alpha.NONE)
    values = _values(color, channels, like.dtype)
    name = f"colour {', '.join(f'{value:g}' for value in values)}"
    spec = ColourSpec(name, values=values, shape=shape or like.shape, dtype=like.dtype.name, is_rgb=like.is_rgb)
    made = ColourSource(spec)
    made.pixel_size_um, made.icc_profile = like.pixel_size_um, like.icc_profile
    return made


def _values(color: Any, channels: int, dtype: np.dtype[Any]) -> tuple[float, ...]:
    full = np.iinfo(dtype).max if dtype.kind == "u" else 1.0
    if isinstance(color, str):
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", color) or channels != 3:
            raise UsageError(f"color {color!r} must be a number per channel, or #rrggbb of three channels")
        values = [int(color[i : i + 2], 16) * full / 255 for i in (1, 3, 5)]
    else:
        try:
            values = [float(color)] * channels if np.ndim(color) == 0 else [float(value) for value in color]
        except (TypeError, ValueError):
            raise UsageError(f"color {color!r} must be a number per channel, such as 243,243,243") from None
    if len(values) != channels:
        raise UsageError(f"color {color!r} has {len(values)} numbers; the images have {channels} colour channels")
    if not np.isfinite(values).all():
        raise UsageError(f"color {color!r} must be finite")
    if dtype.kind == "u":
        values = [float(round(value)) for value in values]
        if min(values) < 0 or max(values) > full:
            raise UsageError(f"color {color!r} lies outside {dtype.name}, 0 to {full}")
    return tuple(values)


class ColourSource(RasterSource):
    """The same colour everywhere; halved levels, so that a small picture of it costs nothing."""

    is_opened_by_name = False

    def __init__(self, spec: ColourSpec) -> None:
        self.spec: ColourSpec = spec
        self.dtype = np.dtype(spec.dtype)
        self.channels = len(spec.values)
        self.is_rgb = spec.is_rgb
        count = Grid.auto_levels(spec.shape, TILE)
        shapes = [halved(spec.shape, level) for level in range(count)]
        self.levels = tuple(Level((y, x), (min(TILE, y), min(TILE, x))) for y, x in shapes)
        self.info = SourceInfo("colour", "yxc")
        self._pixel = np.array(spec.values, np.float64).astype(self.dtype)

    @property
    def name(self) -> str:
        """The colour itself."""
        return self.spec.path

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        # A buffer of its own: what follows wants plain memory.
        return np.full((*region.shape, self.channels), self._pixel, self.dtype)

    def contents(self) -> tuple[tuple[str, str], ...]:
        """None: nothing is stored."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """Of the colour, its dtype and size."""
        what = f"{self.spec.values} {self.spec.dtype} {self.spec.shape}"
        digest = hashlib.sha256(what.encode()).hexdigest()
        return {"uri": f"memory:{self.spec.path}", "size": None, "modified": None, "structure": digest}
