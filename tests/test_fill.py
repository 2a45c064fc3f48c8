"""A colour as a layer: the bits of an image of that colour, and the glass near a mask as the colour."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from conftest import Command

import tiledblend as tb
from tiledblend.errors import UsageError
from tiledblend.sources.single_colour import from_color

SHAPE = (300, 420)


def slide(folder: Path, name: str, pixels: Any) -> Path:
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(folder / name, pixels, photometric=photometric, tile=(64, 64))
    return folder / name


def pen_slide(glass: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    """(slide, mask of the pen's stroke with a margin, pixels of glass): tissue, glass with noise, blue ink."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:600, :800]
    pixels = np.broadcast_to(glass, (600, 800, 3)) + random.normal(0, 2, (600, 800, 3))
    tissue = (y - 300) ** 2 + (x - 250) ** 2 < 200**2
    pixels[tissue] = random.normal((200, 120, 170), 15, (int(tissue.sum()), 3))
    ink = (abs(y - 100 - 0.3 * x) < 12) & (x > 480)
    pixels[ink] = (20, 40, 160)
    mask = (abs(y - 100 - 0.3 * x) < 18) & (x > 470)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), mask, ~tissue & ~mask


@pytest.mark.parametrize(
    ("dtype", "color"), [(np.uint8, [243, 240, 250]), (np.uint16, [60000, 1, 7]), (np.float32, [0.5, 0.25, 1.0])]
)
def test_a_colour_has_the_bits_of_an_image_of_it(tmp_path: Path, dtype: Any, color: list[float]) -> None:
    random = np.random.default_rng(0)
    base = (random.random((*SHAPE, 3)) * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)
    mask = tb.from_array(random.random(SHAPE) > 0.5, axes="yx", mask=True)
    image = tb.from_array(np.broadcast_to(np.array(color, dtype), base.shape).copy(), axes="yxc")
    bottom = tb.from_array(base, axes="yxc")
    options: dict[str, Any] = {"mask": mask, "feather": tb.Feather.px(3), "opacity": 0.7}
    expected = tb.to_array(tb.Composite([tb.Layer(bottom), tb.Layer(image, **options)]))
    filled = tb.Composite([tb.Layer(bottom), tb.Layer(from_color(color, bottom), **options)])
    np.testing.assert_array_equal(tb.to_array(filled), expected)
    tb.write(filled, tmp_path / "a.ome.zarr", output=tb.OutputSpec(chunk=32, shard=64))
    stored = zarr.open_array(str(tmp_path / "a.ome.zarr" / "0"), mode="r")[:]
    np.testing.assert_array_equal(np.moveaxis(stored, 0, 2), expected)
    again = pickle.loads(pickle.dumps(from_color(color, bottom)))
    assert again.fingerprint() == from_color(color, bottom).fingerprint()


def test_forms_of_a_colour() -> None:
    rgb = tb.from_array(np.zeros((4, 4, 3), np.uint8), axes="yxc")
    deep = tb.from_array(np.zeros((4, 4, 3), np.uint16), axes="yxc")

    def pixel(color: Any, like: Any) -> list[float]:
        return from_color(color, like).read(tb.Region(0, 0, 1, 1))[0, 0].tolist()

    assert pixel("#f3f000", rgb) == [243, 240, 0]
    assert pixel("#ff00F3", deep) == [65535, 0, 243 * 257]
    assert pixel(7, rgb) == [7, 7, 7]
    for wrong in ([1, 2], [1, 2, 300], [-1, 2, 3], "red", [1, 2, float("nan")], "#fff"):
        with pytest.raises(UsageError, match="color"):
            from_color(wrong, rgb)


def test_fill_is_a_key_and_the_flag_says_the_same(tmp_path: Path, command: Command) -> None:
    pixels, mask, _ = pen_slide((243, 241, 244))
    slide(tmp_path, "base.tif", pixels)
    slide(tmp_path, "mask.tif", mask.astype(np.uint8) * 255)
    (tmp_path / "job.yaml").write_text(
        "layers: [{image: base.tif}, {color: [243, 240, 250], mask: mask.tif, feather: 2px}]"
    )
    flags = ("--mask", "mask.tif", "--feather", "2px")
    made = []
    for number, words in enumerate(
        (
            ("base.tif", "--fill", "243,240,250", *flags),
            ("base.tif", "--fill", "#f3f0fa", *flags),
            ("--job", "job.yaml"),
            ("base.tif", "--layer", "{color: [243, 240, 250], mask: mask.tif, feather: 2px}"),
        )
    ):
        ran = command("blend", *words, "-o", f"{number}.tif")
        assert ran.code == 0, ran.err
        made.append(tifffile.imread(tmp_path / f"{number}.tif"))
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    assert (made[0][280, 600] == (243, 240, 250)).all()
    np.testing.assert_array_equal(made[0][400:], pixels[400:])


@pytest.mark.parametrize("outlines", [False, True])
def test_auto_is_the_median_of_the_glass_near_the_mask(tmp_path: Path, command: Command, outlines: bool) -> None:
    """Glass that is darker to the left: what is near the stroke counts, and neither tissue nor ink."""
    glass = np.linspace(225, 245, 800)[None, :, None] + np.array([0, -3, 2])
    pixels, mask, is_glass = pen_slide(glass)
    slide(tmp_path, "base.tif", pixels)
    slide(tmp_path, "mask.tif", mask.astype(np.uint8) * 255)
    if outlines:
        stroke = [[470, 223], [799, 322], [799, 358], [470, 259], [470, 223]]
        geometry = {"type": "Polygon", "coordinates": [stroke]}
        (tmp_path / "mask.tif").unlink()
        (tmp_path / "mask.tif").write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    ran = command("blend", "base.tif", "--fill", "auto", "--mask", "mask.tif", "-o", "out.ome.zarr")
    assert ran.code == 0, ran.err
    assert "pixels of glass near the mask" in ran.err
    stored = json.loads((tmp_path / "out.ome.zarr" / "zarr.json").read_text())["attributes"]["tiledblend"]
    color = stored["description"]["layers"][1]["color"]
    y, x = np.mgrid[:600, :800]
    near = is_glass & (abs(y - 100 - 0.3 * x) < 60) & (x > 440)
    assert np.abs(np.array(color) - np.median(pixels[near], axis=0)).max() <= 2
    assert np.abs(np.array(color) - np.median(pixels[is_glass], axis=0)).max() > 2
    made = np.moveaxis(zarr.open_array(str(tmp_path / "out.ome.zarr" / "0"), mode="r")[:], 0, 2)
    assert (made[300, 650] == color).all()
    assert command("verify", "out.ome.zarr", "--against-inputs", "all").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("base.tif", "--fill", "auto"), "give the layer a mask"),
        (("base.tif", "base.tif", "--fill", "auto"), "--fill is laid over BASE in place of OVERLAY"),
        (("base.tif", "--fill", "pink", "--mask", "mask.tif"), "--fill 'pink' is not understood"),
        (("base.tif", "--fill", "1,2", "--mask", "mask.tif"), "has 2 numbers; the images have 3 colour channels"),
        (("base.tif", "--fill", "1", "--mask", "mask.tif", "--offset", "3,4"), "covers the canvas; leave out offset"),
        (("base.tif", "--layer", "{mask: mask.tif}"), "--layer 1 has no 'image'"),
        (("base.tif", "--layer", "{image: a.tif, color: 3}"), "leave out image"),
        (("--layer", "{color: 3}"), "every layer is a color"),
        (("grey.tif", "--fill", "auto", "--mask", "mask.tif"), "color auto is for RGB slides"),
    ],
)
def test_fills_that_cannot_be(tmp_path: Path, command: Command, words: tuple[str, ...], message: str) -> None:
    pixels, mask, _ = pen_slide((243, 241, 244))
    slide(tmp_path, "base.tif", pixels)
    slide(tmp_path, "grey.tif", pixels[:, :, 0])
    slide(tmp_path, "mask.tif", mask.astype(np.uint8) * 255)
    ran = command("blend", *words, "-o", "out.tif")
    assert (ran.code, message in ran.error) == (2, True), ran.error
