"""What a notebook shows: facts always, a picture where it is cheap, never an error."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.look.notebook import MOST_PIXELS, html_of
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec


def picture(html: str) -> NDArray[Any] | None:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    if found is None:
        return None
    return cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_COLOR)


class Slide(RasterSource):
    """Of 10 Gpx; counts what is read. flat: without a pyramid."""

    def __init__(self, *, flat: bool = False, broken: bool = False) -> None:
        self.spec = SourceSpec("/secret <folder>/<slide>.svs")
        self.dtype = np.dtype(np.uint8)
        self.channels = 3
        self.is_rgb = True
        self.levels = tuple(Level((100_000 >> k, 100_000 >> k), (256, 256)) for k in ((0,) if flat else range(9)))
        self.info = SourceInfo("test", "yxc")
        self.broken, self.read_pixels = broken, 0

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        self.read_pixels += region.size
        if self.broken:
            raise BadInputError("broken")
        return np.full((*region.shape, 3), 90, np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_a_source_from_its_coarsest_level_that_will_do() -> None:
    slide = Slide()
    html = slide._repr_html_()
    shown = picture(html)
    assert shown is not None
    assert (shown.shape, shown.min(), shown.max()) == ((320, 320, 3), 90, 90)
    assert slide.read_pixels <= MOST_PIXELS
    assert "100,000 × 100,000 px, 9 levels" in html
    assert "&lt;slide&gt;.svs" in html
    assert "<slide>" not in html


def test_no_gigapixels_are_read() -> None:
    slide = Slide(flat=True)
    html = slide._repr_html_()
    assert picture(html) is None
    assert "100,000 × 100,000 px" in html
    assert picture(tb.Composite([tb.Layer(slide)])._repr_html_()) is None
    assert slide.read_pixels == 0
    lazy = tb.from_array(da.zeros((100, 100), dtype=np.uint8), axes="yx")
    assert picture(lazy._repr_html_()) is None


def test_what_cannot_be_read_has_facts() -> None:
    html = Slide(broken=True)._repr_html_()
    assert picture(html) is None
    assert "3 channels of uint8, RGB" in html


def test_a_composite_is_composed_small() -> None:
    base, overlay = Slide(), Slide()
    mask = tb.from_array(np.tri(500, dtype=np.uint8) * 255, axes="yx", mask=True)
    composite = tb.Composite([tb.Layer(base), tb.Layer(overlay, mask=mask, feather=tb.Feather.px(16), opacity=0.5)])
    html = composite._repr_html_()
    shown = picture(html)
    assert shown is not None
    assert shown.shape == (320, 320, 3)
    assert base.read_pixels <= MOST_PIXELS
    assert "&lt;slide&gt;.svs, mask numpy array, feather 16px, opacity 0.5" in html


def test_a_written_result(tmp_path: Path) -> None:
    image = tb.from_array(np.full((60, 80, 3), 130, np.uint8), axes="yxc")
    report = tb.write(tb.Composite([tb.Layer(image)]), str(tmp_path / "out.ome.zarr"))
    for shown in (report, tb.open(report.uri)):
        drawn = picture(shown._repr_html_())
        assert drawn is not None
        assert (drawn.shape, drawn.min(), drawn.max()) == ((60, 80, 3), 130, 130)
    assert "80 × 60 px" in report._repr_html_()


def test_others_have_none_and_text_is_short() -> None:
    with pytest.raises(UsageError, match="int has no picture"):
        html_of(3)
    source = tb.from_array(np.zeros((5, 6), np.uint8), axes="yx")
    assert repr(source) == "<ArraySource numpy array: 5 x 6 px (y x x), 1 of uint8>"
