"""A scale bar on a picture: a round number of micrometres, legible on bare glass and on black."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

SHARE = 0.25
"""Most of a picture's width that the bar takes."""
MIN_WIDTH, MIN_HEIGHT = 96, 48
"""Smaller pictures get none: its label would not fit."""


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """length_px: pixels of the picture. length_um: what they are on the slide. across_only: down they are another."""

    length_px: float
    length_um: float
    across_only: bool = False

    @property
    def label(self) -> str:
        """Such as "200 µm", "5 mm", "50 nm", or "200 µm in x"."""
        factor, unit = next(((f, u) for f, u in ((1e3, "mm"), (1.0, "µm")) if self.length_um >= f), (1e-3, "nm"))
        return f"{self.length_um / factor:g} {unit}{' in x' if self.across_only else ''}"


def fitting_bar(pixel_um: float, width_px: int, *, square: bool = True) -> ScaleBar | None:
    """The longest bar of 1, 2 or 5 times a power of ten that takes a quarter of `width_px` at most.

    pixel_um: width of the picture's pixels. square: their height, too. None where the picture is too narrow for one.

    >>> fitting_bar(0.5, 1024).label, fitting_bar(0.5, 1024, square=False).label
    ('100 µm', '100 µm in x')
    """
    if width_px < MIN_WIDTH:
        return None
    most = pixel_um * width_px * SHARE
    power = 10.0 ** math.floor(math.log10(most))
    # A hair of tolerance: 0.1 * 3 is a little above 0.3.
    length = max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))
    return ScaleBar(length / pixel_um, length, not square)


def with_scale_bar(picture: Pixels, bar: ScaleBar) -> Pixels:
    """The RGB picture (h, w, 3) with the bar and its label on a dark plate, bottom left."""
    height, width = picture.shape[:2]
    size = min(28, max(12, min(width // 56, height // 4)))
    pad = size // 2
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    left, top, right, bottom = font.getbbox(bar.label.replace("µ", "u"))
    thick = max(2, size // 5)
    plate_width = round(max(bar.length_px, right - left)) + 2 * pad
    plate_height = round(bottom - top) + thick + 3 * pad
    x0, y0 = pad, height - pad - plate_height
    image = Image.fromarray(picture).convert("RGB")
    plate = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(plate)
    draw.rectangle((x0, y0, x0 + plate_width - 1, y0 + plate_height - 1), fill=(0, 0, 0, 150))
    middle = x0 + plate_width / 2
    _write(draw, (round(middle - (right - left) / 2 - left), round(y0 + pad - top)), bar.label, font)
    bar_x, bar_y = round(middle - bar.length_px / 2), y0 + plate_height - pad - thick
    draw.rectangle((bar_x, bar_y, bar_x + round(bar.length_px) - 1, bar_y + thick - 1), fill=(255, 255, 255, 255))
    image.paste(plate, (0, 0), plate)
    return np.asarray(image)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], label: str, font: ImageFont.FreeTypeFont) -> None:
    """Text in white. Pillow's own font has no µ: an u gets its tail drawn, as long as a p's."""
    white = (255, 255, 255, 255)
    text = label.replace("µ", "u")
    draw.text(place, text, fill=white, font=font)
    if (at := label.find("µ")) < 0:
        return
    stem = place[0] + font.getlength(text[:at]) + font.getbbox("u")[0]
    top, bottom = font.getbbox("u")[1], font.getbbox("p")[3]
    wide = max(1, round(font.size / 12))
    draw.rectangle((math.ceil(stem), place[1] + top, math.ceil(stem) + wide - 1, place[1] + bottom - 1), fill=white)
