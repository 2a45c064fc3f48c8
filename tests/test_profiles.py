"""ICC profiles: carried into every kind of result, and colours converted as Pillow's Little CMS converts them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from conftest import Command
from numpy.typing import NDArray
from PIL import Image, ImageCms

import tiledblend as tb
from tiledblend.geometry import Region
from tiledblend.sources.profiles import converted, profile_name, srgb_profile

Array = NDArray[Any]
ADOBE: bytes = imagecodecs.cms_profile("adobergb")


def picture(seed: int, channels: int = 3, dtype: Any = np.uint8) -> Array:
    full = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, full + 1, (150, 170, channels), dtype)


def save(path: Path, pixels: Array, profile: bytes | None = None) -> Array:
    if pixels.dtype == np.uint8:
        Image.fromarray(pixels).save(path, icc_profile=profile)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), iccprofile=profile)
    return pixels


def by_pillow(pixels: Array, own: bytes, target: bytes) -> Array:
    first, second = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (own, target))
    done = ImageCms.profileToProfile(Image.fromarray(pixels), first, second, renderingIntent=1)
    return np.asarray(done).astype(int)


def profile_of(path: Path) -> bytes | None:
    """As another reader finds it."""
    if path.name.endswith(".zarr"):
        return tb.open(path).icc_profile
    if path.name.endswith(".ome.tif"):
        with tifffile.TiffFile(path) as tif:
            assert all(34675 in page.tags for page in tif.series[0].pages)  # type: ignore[union-attr]
            profile: bytes = tif.pages[0].tags[34675].value  # type: ignore[union-attr]
            return profile
    with Image.open(path) as image:
        return image.info.get("icc_profile")


@pytest.mark.parametrize("out", ["o.ome.zarr", "o.ome.tif", "o.png", "o.jpg", "o.tif"])
def test_the_bases_profile_is_carried(out: str, command: Command, tmp_path: Path) -> None:
    base = save(tmp_path / "b.png", picture(1), ADOBE)
    save(tmp_path / "o.png.png", picture(2))
    done = command("blend", "b.png", "o.png.png", "--opacity", "0", "-o", out)
    assert done.code == 0
    assert "ICC profiles are unlike" in done.err
    assert profile_of(tmp_path / out) == ADOBE
    assert "Adobe RGB (compatible)" in command("info", out).out
    if out != "o.jpg":
        np.testing.assert_array_equal(tb.open(tmp_path / out).read(Region.of_shape(base.shape[:2])), base)


@pytest.mark.parametrize("out", ["o.ome.zarr", "o.ome.tif", "o.png", "o.tif"])
def test_the_others_are_converted_into_the_bases(out: str, command: Command, tmp_path: Path) -> None:
    save(tmp_path / "b.png", picture(1), ADOBE)
    overlay = save(tmp_path / "top.png", picture(2))
    assert command("blend", "b.png", "top.png", "--icc", "base", "-o", out).code == 0
    got = tb.open(tmp_path / out).read(Region.of_shape(overlay.shape[:2])).astype(int)
    assert np.abs(got - by_pillow(overlay, srgb_profile(), ADOBE)).max() <= 1
    assert profile_of(tmp_path / out) == ADOBE
    assert np.abs(got - overlay).max() > 20


def test_all_are_converted_into_srgb(command: Command, tmp_path: Path) -> None:
    """Alpha is untouched; the result says that it is sRGB, and a second run finds nothing to convert."""
    base = picture(1, 4)
    save(tmp_path / "b.png", base, ADOBE)
    assert command("blend", "b.png", "--icc", "srgb", "-o", "o.ome.zarr").code == 0
    got = tb.open(tmp_path / "o.ome.zarr")
    pixels = got.read(Region.of_shape(base.shape[:2]))
    np.testing.assert_array_equal(pixels[..., 3], base[..., 3])
    assert np.abs(pixels[..., :3].astype(int) - by_pillow(base[..., :3], ADOBE, srgb_profile())).max() <= 1
    assert got.icc_profile == srgb_profile()
    attributes: Any = zarr.open_group(tmp_path / "o.ome.zarr", mode="r").attrs["tiledblend"]
    assert attributes["description"]["icc"] == "srgb"
    assert converted(got, srgb_profile()) is got
    assert command("verify", "o.ome.zarr", "--against-inputs", "1").code == 0


def test_sixteen_bits_and_cuts(tmp_path: Path) -> None:
    """uint16 follows uint8 to within its precision; a cut is that part of the whole."""
    wide = save(tmp_path / "w.tif", picture(3, 3, np.uint16), ADOBE)
    source = converted(tb.open(tmp_path / "w.tif"), srgb_profile())
    whole = source.read(Region.of_shape(wide.shape[:2]))
    expected = by_pillow((wide // 257).astype(np.uint8), ADOBE, srgb_profile())
    assert np.abs(whole / 257.0 - expected).mean() < 1.5
    for part in (Region(0, 0, 1, 1), Region(7, 30, 100, 91), Region(149, 100, 150, 170)):
        np.testing.assert_array_equal(source.read(part), whole[part.slices])
    narrow = save(tmp_path / "n.png", picture(4), ADOBE)
    source = converted(tb.open(tmp_path / "n.png"), srgb_profile())
    whole = source.read(Region.of_shape(narrow.shape[:2]))
    for part in (Region(0, 0, 1, 1), Region(7, 30, 100, 91), Region(149, 100, 150, 170)):
        np.testing.assert_array_equal(source.read(part), whole[part.slices])


def test_what_cannot_be_converted_is_one_line(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "b.png", picture(1), ADOBE)
    save(tmp_path / "broken.png", picture(2), b"no profile at all" * 20)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    save(tmp_path / "lab.png", picture(2), lab)
    assert profile_name(b"nothing") == "not readable"
    for name, says in (("broken.png", "is not readable"), ("lab.png", "is of Lab, not RGB")):
        done = command("blend", "b.png", name, "--icc", "base", "-o", "no.ome.zarr")
        assert done.code == 4
        assert f"{name}: its ICC profile {says}" in done.error
        assert command("blend", "b.png", name, "-o", f"{name}.ome.zarr").code == 0
    assert command("blend", "b.png", "--icc", "cmyk", "-o", "no.ome.zarr").code == 2


def test_srgb_is_the_same_each_time() -> None:
    assert profile_name(srgb_profile()).startswith("sRGB")
    assert srgb_profile()[24:36] == bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
