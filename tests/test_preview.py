"""Previews: right size, right colours, only what is needed is read, nothing overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from numpy.typing import NDArray
from PIL import Image

from tiledblend.compose.composed import canvas_views
from tiledblend.demo.tissue import Slides
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.errors import BadInputError, RefusedError, StorageError, UsageError
from tiledblend.geometry import Region
from tiledblend.look.preview import panel, preview, preview_level, thumbnail
from tiledblend.sources import open_source
from tiledblend.sources.arrays import from_array
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec


class CountingPyramid(RasterSource):
    """Three levels of one value; counts the pixels that were read from each and the largest request."""

    def __init__(self) -> None:
        self.spec = SourceSpec("pyramid")
        self.dtype = np.dtype(np.uint8)
        self.channels = 1
        self.levels = tuple(Level((9000 >> k, 6000 >> k), (256, 256)) for k in range(3))
        self.info = SourceInfo("test", "yx")
        self.reads: dict[int, int] = {}
        self.largest = 0

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        self.reads[level] = self.reads.get(level, 0) + region.size
        self.largest = max(self.largest, region.size)
        return np.full((*region.shape, 1), 77, np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_reads_the_coarsest_level_that_is_large_enough_in_blocks() -> None:
    source = CountingPyramid()
    assert [preview_level(source, size) for size in (8192, 4500, 4499, 2250, 100)] == [0, 1, 1, 2, 2]
    assert preview_level(source, 8000) == 0
    picture = thumbnail(source, 1000)
    assert picture.shape == (1000, 667, 3)
    assert (picture == 77).all()
    assert source.reads == {2: 2250 * 1500}
    assert thumbnail(source, 3000).shape == (3000, 2000, 3)
    assert source.largest <= 2048 * 2048


def test_area_average_equals_the_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    picture = thumbnail(from_array(pixels, axes="yxc"), 60)
    mean = pixels.reshape(40, 10, 60, 10, 3).mean((1, 3))
    assert np.abs(picture - mean).max() <= 0.51


def test_never_enlarged(tmp_path: Path) -> None:
    source = from_array(np.full((5, 7, 3), 9, np.uint8), axes="yxc")
    done = preview(source, tmp_path / "p.png", 1024)
    assert done["shape"] == [5, 7]
    assert np.asarray(Image.open(tmp_path / "p.png")).tolist() == np.full((5, 7, 3), 9).tolist()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_channels_are_stretched_and_added_in_their_colours(dtype: str) -> None:
    pixels = np.zeros((64, 64, 4), dtype)
    pixels[:32, :, 2] = 500
    pixels[:, :32, 3] = 7
    picture = thumbnail(from_array(pixels, axes="yxc"), 64)
    assert picture[0, 63].tolist() == [255, 0, 255]  # channel 2 alone: magenta
    assert picture[63, 0].tolist() == [0, 255, 255]  # channel 3 alone: cyan
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[63, 63].tolist() == [0, 0, 0]


def test_grey_stays_grey_and_a_binary_mask_is_visible() -> None:
    grey = np.full((8, 8), 120, np.uint8)
    assert (thumbnail(from_array(grey, axes="yx")) == 120).all()
    binary = np.eye(8, dtype=np.uint8)
    assert (thumbnail(from_array(binary, axes="yx", mask=True))[:, :, 0] == binary * 255).all()


def test_alpha_lies_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 51
    straight = thumbnail(from_array(pixels, axes="yxc", alpha=Alpha.STRAIGHT))
    assert straight[0, 0].tolist() == [244, 204, 204]


def test_constant_and_nan_images_do_not_fail() -> None:
    assert (thumbnail(from_array(np.full((4, 4), np.nan, np.float32), axes="yx")) == 0).all()
    assert thumbnail(from_array(np.full((4, 4), 3.0, np.float32), axes="yx")).shape == (4, 4, 3)


def test_preview_of_a_slide_and_a_panel(slides: Slides, tmp_path: Path) -> None:
    done = preview(slides.base, tmp_path / "p.png", 250)
    assert done["shape"] == [250, 250]
    colours = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert colours[0, 0].min() > 230  # bare glass
    assert colours.mean((0, 1))[1] + 4 < colours.mean((0, 1))[0]  # and pink tissue: little green
    sheet = panel([("H&E", slides.base), ("mask", open_source(slides.mask, mask=True))], tmp_path / "s.png", 200)
    assert sheet["shape"] == [200 + 24 + 26, 2 * 200 + 3 * 12]


def test_refusals(slides: Slides, tmp_path: Path) -> None:
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"mine")
    with pytest.raises(RefusedError, match="exists"):
        preview(slides.base, taken)
    assert taken.read_bytes() == b"mine"
    with pytest.raises(UsageError, match=r"name it \.png"):
        preview(slides.base, tmp_path / "a.gif")
    with pytest.raises(UsageError, match="from 1 to"):
        preview(slides.base, tmp_path / "a.png", 0)
    with pytest.raises(StorageError, match="does not exist"):
        preview(slides.base, tmp_path / "none" / "a.png")
    with pytest.raises(BadInputError, match="no such file"):
        preview(tmp_path / "none.tif", tmp_path / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.png"]


def test_a_faint_weight_is_drawn_faint() -> None:
    grey = from_array(np.full((60, 80, 3), 90, np.uint8), axes="yxc")
    mask = from_array(np.tri(60, 80, dtype=bool), axes="yx", mask=True)
    views = canvas_views(Composite([Layer(grey), Layer(grey, mask=mask, opacity=0.05)]))
    weight = views.weights[1]
    assert weight is not None
    assert np.unique(thumbnail(weight)).tolist() == [0, 13]


def test_a_caption_stays_below_its_picture(tmp_path: Path) -> None:
    grey = from_array(np.full((90, 90), 200, np.uint8), axes="yx")
    panel([("a caption that is much longer than its picture is wide", grey), ("", grey)], tmp_path / "p.png", 90)
    assert (np.asarray(Image.open(tmp_path / "p.png"))[110:, 112:] == 255).all()
    panel([("short", grey), ("", grey)], tmp_path / "q.png", 90)
    assert (np.asarray(Image.open(tmp_path / "q.png"))[110:, 12:102] < 255).any()


def test_pictures_of_one_canvas_are_equally_large(tmp_path: Path, command: Command) -> None:
    """1043 x 777 px and their half, 522 x 389 px, are 223 and 224 px wide at 300 px high."""
    pixels = np.full((1043, 777, 3), 90, np.uint8)
    pixels[300:700, 300:500] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0] // 200 * 255).save(tmp_path / "m.png")
    flags = ("a.png", "a.png", "--mask", "m.png")
    assert command("blend", *flags, "-o", "small.png", "--report", "small.html").code == 0
    command("blend", *flags, "-o", "flat.ome.zarr", "--levels", "1")
    assert command("preview", "flat.ome.zarr", "p.png", "--max-size", "300", "--seams", "--weights").code == 0
    assert thumbnail(open_source(tmp_path / "a.png"), 300).shape == (300, 223, 3)
