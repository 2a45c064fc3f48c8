"""Whether channels are red, green and blue of one picture: the one rule of all formats that do not store it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

RGB_NAMES = ({"r", "red"}, {"g", "green"}, {"b", "blue"})
RGB_COLORS = ("FF0000", "00FF00", "0000FF")
_NO_NAME = re.compile(r"(channel|ch|c|image|band|sample)?[\s_:.#-]*\d*(:\d+)*", re.IGNORECASE)


def says_rgb(
    names: Sequence[str], colors: Sequence[str], dtype: np.dtype[Any], *, photometric: str | None = None
) -> bool:
    """True when channels (alpha left out) say that they are red, green, blue.

    By their names; or, where they have none, by the colours FF0000, 00FF00, 0000FF of uint8 (a microscope's three
    stains are shown in these, too, and named); or by a photometric interpretation that says so.

    >>> says_rgb(("R", "G", "B"), (), np.dtype("uint16"))
    True
    >>> says_rgb(("DAPI", "FITC", "TRITC"), RGB_COLORS, np.dtype("uint8"))
    False
    """
    if photometric is not None and photometric.strip().lower().startswith("rgb"):
        return True
    named = [name.strip().lower() for name in names[:3]]
    if any(named):
        return len(named) == 3 and all(name in known for name, known in zip(named, RGB_NAMES, strict=True))
    return tuple(colors[:3]) == RGB_COLORS and dtype == np.uint8


def rgb_doubt(names: Sequence[str], channels: int, dtype: np.dtype[Any], *, is_rgb: bool) -> tuple[str, ...]:
    """The note of three uint8 channels that might be red, green, blue, and do not say it: without a name that means
    something.

    >>> len(rgb_doubt(("channel 0", "channel 1", "channel 2"), 3, np.dtype("uint8"), is_rgb=False))
    1
    """
    if is_rgb or channels != 3 or dtype != np.uint8 or not all(map(is_no_name, names)):
        return ()
    return ("three uint8 channels that do not say what they are: taken as channels; if they are RGB, give --rgb",)


def is_no_name(name: str) -> bool:
    """True for a channel's name that only counts, such as "channel 0" or "2"."""
    return _NO_NAME.fullmatch(name.strip()) is not None
