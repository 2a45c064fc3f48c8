"""How a layer's tone is to be matched to what lies below it, or the numbers that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiledblend.describe.lengths import Length
from tiledblend.errors import UsageError
from tiledblend.kernels.tone import Tone
from tiledblend.kernels.tone_fit import KINDS, Kind

RING_UM, RING_PX = 64.0, 128.0
"""Default of a ring: micrometres of a canvas with a pixel size, else pixels."""


@dataclass(frozen=True, slots=True)
class Match:
    """Fitted when the scene is decided, to what lies below in a ring on both sides of the mask's edge.

    by: "offset", "gain", "linear" (both) or "od" (the optical density is scaled). ring: how far from the edge; None: 64
    um, or 128 px on a canvas without a pixel size.

    >>> Match("linear", Length(64, "um")).as_dict()
    {'by': 'linear', 'ring': '64um'}
    """

    by: Kind
    ring: Length | None = None

    def __post_init__(self) -> None:
        if self.by not in KINDS:
            raise UsageError(f"match {self.by!r} must be offset, gain, linear or od")
        if self.ring is not None and self.ring.value <= 0:
            raise UsageError(f"match ring {self.ring} must be above 0; use for example 64um")

    def ring_px(self, pixel_size_um: tuple[float, float] | None) -> float:
        """In pixels of a canvas with pixels of this size."""
        um = None if pixel_size_um is None else (pixel_size_um[0] * pixel_size_um[1]) ** 0.5
        ring = self.ring or (Length(RING_PX) if um is None else Length(RING_UM, "um"))
        return ring.pixels(um, "match ring")

    def as_dict(self) -> dict[str, Any]:
        """As a job file says it."""
        return {"by": self.by, **({} if self.ring is None else {"ring": str(self.ring)})}


def match_of(value: Any, colours: int) -> Match | Tone | None:
    """A layer's match of a job's value: {by: linear, ring: 64um}, {gain: [...], offset: [...]}, {od: [...]}; numbers
    win over what they were fitted by. colours: channels, for one number that is meant for all."""
    if value is None:
        return None
    if isinstance(value, str):
        return Match(_kind(value))
    if not isinstance(value, Mapping):
        raise UsageError(
            f"match {value!r} is not understood; use linear, {{by: linear, ring: 64um}} or {{gain: [1.1]}}"
        )
    if "od" in value:
        if "gain" in value or "offset" in value:
            raise UsageError("match has od beside gain or offset; give one of them")
        return Tone(od=_numbers(value["od"], colours))
    if "gain" in value or "offset" in value:
        count = next((len(v) for v in (value.get("gain"), value.get("offset")) if isinstance(v, list | tuple)), colours)
        gain, offset = _numbers(value.get("gain", 1.0), count), _numbers(value.get("offset", 0.0), count)
        if len(gain) != len(offset):
            raise UsageError(f"match has {len(gain)} gains and {len(offset)} offsets; give one each per channel")
        return Tone(gain, offset)
    if "by" not in value:
        raise UsageError("match has neither by nor numbers; use {by: linear, ring: 64um} or {gain: [1.1], offset: [3]}")
    return Match(_kind(value["by"]), None if value.get("ring") is None else ring_of(value["ring"]))


def _kind(value: Any) -> Kind:
    known: Kind = value
    return known


def ring_of(value: Any) -> Length:
    """A ring's width of a job's value. Raises UsageError."""
    try:
        return Length.parse(value)
    except ValueError:
        raise UsageError(f"match ring {value!r} is not understood; use 64um or 128px") from None


def _numbers(value: Any, colours: int) -> tuple[float, ...]:
    try:
        given = [float(value)] * colours if np.ndim(value) == 0 else [float(number) for number in value]
    except (TypeError, ValueError):
        raise UsageError(f"match {value!r} must be numbers, one per channel") from None
    return tuple(given)


def tone_as_dict(tone: Tone) -> dict[str, Any]:
    """As a job file says it."""
    if tone.od:
        return {"od": list(tone.od)}
    return {"gain": list(tone.gain), "offset": list(tone.offset)}


def tone_text(tone: Tone) -> str:
    """For people.

    >>> tone_text(Tone((1.1, 1.0), (3.0, -2.0)))
    'gain 1.1, 1; offset 3, -2'
    """
    parts = [("od", tone.od)] if tone.od else [("gain", tone.gain), ("offset", tone.offset)]
    return "; ".join(f"{name} {', '.join(f'{number:.5g}' for number in numbers)}" for name, numbers in parts)
