"""Tiles for the page: the store's own pixels, coloured as stated, read once, kept within a bound."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from conftest import Command
from numpy.typing import NDArray

from tiledblend.compose.lazy import to_array
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.errors import UsageError
from tiledblend.look import tiles as module
from tiledblend.look.tiles import Channel, Gallery, coloured
from tiledblend.look.view import describe
from tiledblend.sources import open_source
from tiledblend.sources.arrays import from_array
from tiledblend.sources.base import Alpha

Array = NDArray[Any]


def decoded(png: bytes) -> Array:
    """RGB, RGBA or grey (h, w, c)."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture.ndim == 2:
        return picture[:, :, None]
    return cv2.cvtColor(picture, {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}[picture.shape[2]])


def whole(scene: Gallery, view: str, level: int, **how: Any) -> Array:
    """All tiles of a level, laid out."""
    height, width = scene.source.levels[level].shape
    rows = [
        np.concatenate([decoded(scene.tile(view, level, r, c, **how)) for c in range(-(-width // 512))], axis=1)
        for r in range(-(-height // 512))
    ]
    return np.concatenate(rows)


def layers(shape: tuple[int, int], channels: int, dtype: str) -> list[Layer]:
    rng = np.random.default_rng(5)
    high = {"uint8": 255, "uint16": 4000, "float32": 1}[dtype]
    base, overlay = (rng.random((*shape, channels)) * high for _ in range(2))
    disc = cv2.circle(np.zeros(shape, np.uint8), (shape[1] // 2, shape[0] // 2), min(shape) // 3, 255, -1)
    images = [from_array(pixels.astype(dtype), axes="yxc", pixel_size_um=(0.5, 0.5)) for pixels in (base, overlay)]
    return [Layer(images[0]), Layer(images[1], mask=from_array(disc, axes="yx", mask=True), feather=Feather.px(6))]


@pytest.fixture
def result(tmp_path: Path, command: Command) -> Path:
    """A stored result of two PNGs with a mask, 700 x 1100, three levels."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, (700, 1100, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "m.png"), np.tri(700, 1100, dtype=np.uint8) * 255)
    flags = ("--mask", "m.png", "--feather", "9px", "--chunk", 128, "--shard", 256, "-o", "out.ome.zarr")
    assert command("blend", "a.png", "b.png", *flags).code == 0
    return tmp_path / "out.ome.zarr"


def test_tiles_of_a_result_are_the_stores_pixels_at_every_level(result: Path) -> None:
    scene = Gallery.of_result(str(result), None)
    group = zarr.open_group(str(result), mode="r")
    assert scene.shape == (700, 1100)
    for level in range(scene.levels):
        stored = np.moveaxis(np.asarray(group[str(level)]), 0, 2)
        assert np.array_equal(whole(scene, "result", level), stored), level


def test_tiles_of_a_planned_composite_are_what_blend_would_store() -> None:
    composite = Composite(layers((600, 900), 3, "uint8"))
    scene = Gallery.of_composite(composite)
    assert [view.id for view in scene.views] == ["result", "image-0", "image-1", "weight-1"]
    assert np.array_equal(whole(scene, "result", 0), to_array(composite))
    assert np.array_equal(whole(scene, "image-1", 0), to_array(Composite([Layer(composite.layers[1].image)])))
    weight = whole(scene, "weight-1", 0)
    assert (weight[300, 450, 0], weight[0, 0, 0]) == (255, 0)
    edge = whole(scene, "edge-1", 0)
    assert edge.shape[2] == 4
    on = np.argwhere(edge[:, :, 3] == 255)
    assert np.abs(np.hypot(on[:, 0] - 300, on[:, 1] - 450) - 200).max() < 5


def test_an_overlap_is_the_neighbours_pixels() -> None:
    composite = Composite(layers((600, 900), 3, "uint8"))
    scene = Gallery.of_composite(composite)
    pixels = to_array(composite)
    assert np.array_equal(decoded(scene.tile("result", 0, 0, 0, overlap=2)), pixels[:514, :514])
    assert np.array_equal(decoded(scene.tile("result", 0, 1, 1, overlap=3)), pixels[509:, 509:])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_seven_deep_channels_are_added_in_their_colours(dtype: str) -> None:
    composite = Composite(layers((520, 530), 7, dtype))
    scene = Gallery.of_composite(composite)
    first = scene.channels()
    assert len(first) == 7
    full = 4000 if dtype == "uint16" else 1
    assert all(c.low < 0.2 * full and 0.8 * full < c.high <= full for c in first)
    chosen = [Channel(1, "FF8000", 0.25 * full, 0.5 * full), Channel(6, "0000FF", 0, full)]
    pixels = to_array(composite).astype(np.float64)
    expected = np.zeros((*pixels.shape[:2], 3))
    for channel, colour in zip(chosen, ([255, 128, 0], [0, 0, 255]), strict=True):
        value = np.clip((pixels[..., channel.index] - channel.low) / (channel.high - channel.low), 0, 1)
        expected += value[..., None] * colour
    assert np.abs(whole(scene, "result", 0, channels=chosen) - np.clip(expected, 0, 255)).max() <= 0.51
    assert not whole(scene, "result", 0, channels=[]).any()
    with pytest.raises(UsageError, match="channel 7 must be from 0 to 6"):
        scene.tile("result", 0, 0, 0, [Channel(7, "FFFFFF", 0, 1)])


def test_grey_and_nan_and_transparency() -> None:
    grey = from_array(np.arange(256, dtype=np.uint8).reshape(16, 16), axes="yx")
    scene = Gallery.of_composite(Composite([Layer(grey)]))
    assert [view.id for view in scene.views] == ["result"]
    assert np.array_equal(whole(scene, "result", 0)[:, :, 0].ravel(), np.arange(256))
    odd = np.array([[[np.nan, 1.0], [2.0, 0.5]]], np.float32)
    source = from_array(odd, axes="yxc", alpha=Alpha.STRAIGHT)
    drawn = coloured(odd, [Channel(0, "FFFFFF", 0, 2)], source)
    assert drawn.tolist() == [[[0, 0, 0, 255], [255, 255, 255, 128]]]
    small = Layer(from_array(np.full((20, 30, 3), 90, np.uint8), axes="yxc"), offset=(5, 6))
    base = from_array(np.zeros((50, 60, 3), np.uint8), axes="yxc")
    placed = whole(Gallery.of_composite(Composite([Layer(base), small])), "image-1", 0)
    assert placed.shape == (50, 60, 4)
    assert placed[5, 6].tolist() == [90, 90, 90, 255]
    assert placed[4, 6].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "place", [("none", 0, 0, 0), ("result", 9, 0, 0), ("result", 0, 5, 0), ("result", 0, 0, -1), ("result", -1, 0, 0)]
)
def test_what_is_not_there(place: tuple[str, int, int, int]) -> None:
    scene = Gallery.of_composite(Composite(layers((600, 700), 3, "uint8")))
    with pytest.raises(UsageError, match="no "):
        scene.tile(*place)
    with pytest.raises(UsageError, match="overlap"):
        scene.tile("result", 0, 0, 0, overlap=99)


def test_the_cache_is_bounded_and_reads_once() -> None:
    cache = module._PixelCache(3 * 1000)
    reads: list[int] = []
    started = threading.Event()

    def read(key: int) -> Array:
        reads.append(key)
        started.set()
        time.sleep(0.05)
        return np.full(1000, key, np.uint8)

    with ThreadPoolExecutor(4) as pool:
        assert {int(part[0]) for part in pool.map(lambda _: cache.get(1, lambda: read(1)), range(4))} == {1}
    assert reads == [1]
    for key in (2, 3, 4):
        cache.get(key, lambda key=key: read(key))
    cache.get(3, lambda: read(3))
    assert reads == [1, 2, 3, 4]
    assert cache._bytes == 3000
    cache.get(1, lambda: read(1))  # was the oldest
    assert reads == [1, 2, 3, 4, 1]

    def fail() -> Array:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            cache.get(9, fail)


@pytest.mark.parametrize("bad", [("FFF", 0, 1), ("GG0000", 0, 1), ("FF0000", float("nan"), 1)])
def test_channels_are_checked(bad: tuple[str, float, float]) -> None:
    with pytest.raises(UsageError):
        Channel(0, *bad)


def test_grey_is_shown_as_it_is_and_a_mask_of_ones_is_visible() -> None:
    grey = np.tri(60, 80, dtype=np.uint8)
    for pixels, range_ in ((grey, (0, 1)), (grey * 200, (0, 255))):
        scene = Gallery.of_composite(Composite([Layer(from_array(pixels, axes="yx"))]))
        (channel,) = scene.channels()
        assert (channel.low, channel.high) == range_
        assert whole(scene, "result", 0).max() == (255 if range_ == (0, 1) else 200)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_rgb_is_red_green_and_blue_before_it_is_stored(dtype: str, tmp_path: Path, command: Command) -> None:
    """As a TIFF, as a planned composite of it, and as the result."""
    rgb = np.linspace(0, 4000, 60 * 80 * 3).reshape(60, 80, 3).astype(dtype)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    command("blend", "rgb.tif", "-o", "rgb.ome.zarr")
    for name in ("rgb.tif", "rgb.ome.zarr"):
        scene = Gallery.of_composite(Composite([Layer(open_source(tmp_path / name))]))
        assert [channel.colour for channel in scene.channels()] == ["FF0000", "00FF00", "0000FF"]
        assert [channel["name"] for channel in describe(scene)["channels"]] == ["red", "green", "blue"]
