"""Blending modes through the command line, each against float64 on whole arrays by independent code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_modes
import tifffile
import zarr
from conftest import Command
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]


def save(path: Path, pixels: Array) -> Array:
    """A tiled TIFF of these pixels."""
    tifffile.imwrite(
        path, pixels, tile=(64, 64), photometric="rgb" if pixels.ndim == 3 and pixels.shape[2] >= 3 else "minisblack"
    )
    return pixels


def level_0(path: Path) -> Array:
    """(y, x, c), by zarr-python."""
    return np.moveaxis(np.asarray(zarr.open_group(path, mode="r")["0"]), 0, 2)


def smooth(seed: int, shape: tuple[int, ...], full: float = 255, dtype: Any = np.uint8) -> Array:
    noise = np.random.default_rng(seed).standard_normal(shape)
    blurred = ndimage.gaussian_filter(noise, (3, 3, 0)[: len(shape)])
    values = 0.5 + 0.3 * blurred / blurred.std() / 2 + 0.05 * noise
    return np.clip(values * full, 0, full).astype(dtype)


def disc(shape: tuple[int, int], radius: float) -> Array:
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = (y - shape[0] * 0.45) ** 2 + (x - shape[1] * 0.52) ** 2 < radius**2
    return inside.astype(np.uint8) * np.uint8(255)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Array, Array, Array]:
    """(base, overlay, mask) of an odd size, as b.tif, o.tif and m.tif."""
    shape = (301, 420)
    return (
        save(tmp_path / "b.tif", smooth(1, (*shape, 3))),
        save(tmp_path / "o.tif", smooth(2, (*shape, 3))),
        save(tmp_path / "m.tif", disc(shape, 90)),
    )


OUTPUT = ("-o", "out.ome.zarr", "--chunk", "64", "--shard", "128")


# --- operators


@pytest.mark.parametrize("operator", ["multiply", "screen", "darken", "lighten", "difference"])
def test_operator(operator: str, pair: tuple[Array, Array, Array], command: Command, tmp_path: Path) -> None:
    base, overlay, mask = (values.astype(float) for values in pair)
    flags = ("--mask", "m.tif", "--feather", "5px", "--opacity", "0.8", "--operator", operator)
    assert command("blend", "b.tif", "o.tif", *flags, *OUTPUT).code == 0
    weight = 0.8 * ndimage.gaussian_filter(mask / 255, 5, mode="mirror", truncate=4)[..., None]
    met = reference_modes.operator(operator, base, overlay, 255)
    expected = weight * met + (1 - weight) * base
    got = level_0(tmp_path / "out.ome.zarr").astype(float)
    assert np.abs(got - expected).max() <= 0.5 + 0.002 * 255
    assert np.abs(expected - (weight * overlay + (1 - weight) * base)).max() > 10
    far = weight[..., 0] < 2**-14
    np.testing.assert_array_equal(got[far], base[far])


def test_an_operator_on_a_canvas_with_alpha(command: Command, tmp_path: Path) -> None:
    """Over a transparent backdrop the layer is itself; over an opaque one it is what the operator makes of both."""
    base = save(tmp_path / "b.tif", smooth(3, (80, 90, 4)))
    base[:, :30, 3], base[:, 30:60, 3], base[:, 60:, 3] = 0, 128, 255
    save(tmp_path / "b.tif", base)
    overlay = save(tmp_path / "o.tif", smooth(4, (80, 90, 3))).astype(float)
    assert command("blend", "b.tif", "o.tif", "--operator", "multiply", "--opacity", "1", *OUTPUT).code == 0
    got = level_0(tmp_path / "out.ome.zarr").astype(float)
    alpha = base[..., 3:] / 255
    met = reference_modes.operator("multiply", base[..., :3].astype(float), overlay, 255)
    assert np.abs(got[..., :3] - ((1 - alpha) * overlay + alpha * met)).max() <= 0.51
    assert (got[..., 3] == 255).all()


def test_operators_are_refused_where_nothing_lies_below(
    pair: tuple[Array, Array, Array], command: Command, tmp_path: Path
) -> None:
    done = command("blend", "b.tif", "o.tif", "--operator", "screen", "--mode", "average", *OUTPUT)
    assert done.code == 2
    assert "operator screen" in done.error
    assert "mode average" in done.error
    done = command("blend", "b.tif", "o.tif", "--operator", "burn", *OUTPUT)
    assert done.code == 2
    assert not (tmp_path / "out.ome.zarr").exists()


# --- bands


@pytest.mark.parametrize(("dtype", "full", "allowed"), [("uint8", 255, 1), ("uint16", 65535, 1), ("float32", 1, 1e-5)])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_bands(dtype: str, full: float, allowed: float, count: int, command: Command, tmp_path: Path) -> None:
    """The whole image's sum over the bands; plateaus are their sources, bit for bit."""
    shape = (331, 620)
    base, overlay = (save(tmp_path / f"{n}.tif", smooth(k, (*shape, 3), full, dtype)) for k, n in ((1, "b"), (2, "o")))
    mask = save(tmp_path / "m.tif", disc(shape, 100))
    flags = ("--mask", "m.tif", "--feather", f"bands:{count}", "--opacity", "1")
    assert command("blend", "b.tif", "o.tif", *flags, *OUTPUT).code == 0
    got = level_0(tmp_path / "out.ome.zarr")
    expected = reference_modes.bands(base.astype(float), overlay, mask / 255, count)
    if full > 1:
        expected = np.rint(np.clip(expected, 0, full))
    assert np.abs(got - expected).max() <= allowed
    reach = 4 * (2 ** (count - 1) - 1)
    inside = ndimage.minimum_filter(mask, 2 * reach + 1, mode="mirror") > 0
    outside = ndimage.maximum_filter(mask, 2 * reach + 1, mode="mirror") == 0
    assert outside.any()
    assert inside.any() or count == 6
    np.testing.assert_array_equal(got[inside], overlay[inside])
    np.testing.assert_array_equal(got[outside], base[outside])


def test_bands_of_a_smaller_layer_start_at_its_own_corner(command: Command, tmp_path: Path) -> None:
    base, overlay = (
        save(tmp_path / "b.tif", smooth(1, (200, 260, 3))),
        save(tmp_path / "o.tif", smooth(2, (101, 90, 3))),
    )
    mask = save(tmp_path / "m.tif", disc((101, 90), 30))
    flags = ("--mask", "m.tif", "--feather", "bands:3", "--offset", "33,47", "--opacity", "0.7")
    assert command("blend", "b.tif", "o.tif", *flags, *OUTPUT).code == 0
    expected = base.astype(float)
    at = slice(33, 134), slice(47, 137)
    expected[at] = reference_modes.bands(expected[at], overlay, 0.7 * mask / 255, 3)
    assert np.abs(level_0(tmp_path / "out.ome.zarr") - np.clip(expected, 0, 255)).max() <= 1


def test_bands_are_refused_in_one_line(pair: tuple[Array, Array, Array], command: Command, tmp_path: Path) -> None:
    save(tmp_path / "a.tif", smooth(3, (301, 420, 4)))
    for flags, says in (
        (("b.tif", "o.tif", "--mode", "average"), "is for mode over, not average"),
        (("a.tif", "o.tif"), "needs a canvas without alpha"),
        (("b.tif", "o.tif", "--feather-side", "inside"), "has no inner side"),
    ):
        done = command("blend", *flags, "--mask", "m.tif", "--feather", "bands:4", *OUTPUT)
        assert done.code == 2
        assert "feather bands:4 of layer" in done.error
        assert says in done.error
    for value in ("bands:0", "bands:11", "bands:x", "bands:-2"):
        done = command("blend", "b.tif", "o.tif", "--mask", "m.tif", "--feather", value, *OUTPUT)
        assert done.code == 2
        assert "bands:" in done.error
    assert not (tmp_path / "out.ome.zarr").exists()


def test_a_level_has_as_many_bands_fewer(pair: tuple[Array, Array, Array], command: Command, tmp_path: Path) -> None:
    """What is composed at level 2 looks as the result's level 2 does."""
    flags = ("b.tif", "o.tif", "--mask", "m.tif", "--feather", "bands:5")
    assert command("blend", *flags, *OUTPUT, "--levels", "3").code == 0
    assert command("blend", *flags, "--level", "2", "-o", "small.ome.zarr", "--chunk", "64", "--shard", "128").code == 0
    stored = np.moveaxis(np.asarray(zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["2"]), 0, 2).astype(float)
    composed = level_0(tmp_path / "small.ome.zarr")
    inner = np.s_[:75, :105]
    assert np.abs(stored[inner] - composed[inner]).mean() < 1.5


# --- stack


def fluorescence(path: Path, seed: int, names: tuple[str, ...], shape: tuple[int, int] = (230, 310)) -> Array:
    """An OME-TIFF of uint16 channels (c, y, x) with these names."""
    pixels = np.stack([smooth(seed + i, shape, 4000, "uint16") for i in range(len(names))])
    metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(path, pixels, tile=(64, 64), metadata=metadata, photometric="minisblack", ome=True)
    return pixels


def test_stack(command: Command, tmp_path: Path) -> None:
    """Three slides as channels: one masked and feathered, one across the canvas's corner; names kept and unique."""
    first = fluorescence(tmp_path / "a.ome.tif", 1, ("DAPI", "CD3"))
    second = fluorescence(tmp_path / "b.ome.tif", 5, ("DAPI",))
    third = fluorescence(tmp_path / "c.ome.tif", 9, ("CD8", "CD20"), (120, 100))
    mask = save(tmp_path / "m.tif", disc((230, 310), 80)) / 255
    layers = (
        *("--layer", "{image: a.ome.tif}", "--layer", "{image: b.ome.tif, mask: m.tif, feather: 4px}"),
        *("--layer", "{image: c.ome.tif, offset: [90, -20], opacity: 0.5}"),
    )
    for out in ("out.ome.zarr", "out.ome.tif"):
        done = command(
            "blend", *layers, "--mode", "stack", "--background", "7", "-o", out, "--chunk", "64", "--shard", "128"
        )
        assert done.code == 0, done.err
    got = level_0(tmp_path / "out.ome.zarr")
    assert got.dtype == np.uint16
    expected = np.full((230, 310, 5), 7.0)
    expected[:, :, :2] = np.moveaxis(first, 0, 2)
    weight = ndimage.gaussian_filter(mask, 4, mode="mirror", truncate=4)
    expected[:, :, 2] = weight * second[0] + (1 - weight) * 7
    expected[90:210, :80, 3:] = 0.5 * np.moveaxis(third, 0, 2)[:, 20:] + 0.5 * 7
    assert np.abs(got - expected).max() <= 0.5 + 0.002 * 4000
    np.testing.assert_array_equal(got[:, :, :2], expected[:, :, :2])
    omero = zarr.open_group(tmp_path / "out.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]  # type: ignore[index,call-overload]
    names = ["DAPI", "CD3", "DAPI (2)", "CD8", "CD20"]
    assert [channel["label"] for channel in omero] == names
    assert len({channel["color"] for channel in omero}) == 5
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tif:
        np.testing.assert_array_equal(np.moveaxis(tif.asarray(), 0, 2), got)
        assert all(f'Name="{name}"' in str(tif.ome_metadata) for name in names)


def test_a_stack_of_unlike_colours_and_what_it_refuses(command: Command, tmp_path: Path) -> None:
    rgb = save(tmp_path / "he.tif", smooth(1, (90, 80, 3)))
    grey = save(tmp_path / "dapi.tif", smooth(2, (90, 80)))
    assert command("blend", "he.tif", "dapi.tif", "--mode", "stack", *OUTPUT).code == 0
    np.testing.assert_array_equal(level_0(tmp_path / "out.ome.zarr"), np.dstack([rgb, grey]))
    omero = zarr.open_group(tmp_path / "out.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]  # type: ignore[index,call-overload]
    assert [channel["label"] for channel in omero] == ["he red", "he green", "he blue", "dapi"]
    assert [channel["color"] for channel in omero][:3] == ["FF0000", "00FF00", "0000FF"]
    save(tmp_path / "wide.tif", smooth(3, (90, 80), 4000, "uint16"))
    for flags, says in (
        (("he.tif", "wide.tif"), "wide.tif is uint16, but"),
        (("he.tif", "dapi.tif", "--operator", "multiply"), "in mode stack nothing lies below"),
        (("he.tif", "dapi.tif", "--canvas", "{shape: [90, 80], channels: 3}"), "the stacked layers have 4"),
        (("he.tif", "dapi.tif", "--background", "1,2"), "background has 2 values; the canvas has 4 channels"),
    ):
        done = command("blend", *flags, "--mode", "stack", "-o", "no.ome.zarr")
        assert done.code in (2, 4)
        assert says in done.error
    assert command("seams", "he.tif", "dapi.tif", "--mode", "stack").code == 0
    assert command("preview", "he.tif", "dapi.tif", "--mode", "stack", "stack.png").code == 0


# --- match


def tissue(seed: int, shape: tuple[int, int] = (420, 560)) -> Array:
    """float64 (y, x, 3): half of it glass, stained spots of many tones."""
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter(rng.random(shape), 5)
    stain = np.clip((spots - np.median(spots)) / (spots.max() - np.median(spots)), 0, 1)[..., None]
    return np.asarray(240 - stain * np.array([90, 190, 110]) + rng.normal(0, 2, (*shape, 3)))


GAIN, SHIFT = np.array([0.9, 1.12, 1.0]), np.array([10.0, -8.0, 5.0])


@pytest.fixture
def toned(tmp_path: Path) -> tuple[Array, Array, Array]:
    """(base, overlay, mask): the overlay is the base in another tone, a tenth of the ring covered by other tissue."""
    base = save(tmp_path / "b.tif", np.clip(np.rint(tissue(1) * GAIN + SHIFT), 0, 255).astype(np.uint8))
    overlay = np.clip(np.rint((base - SHIFT) / GAIN), 0, 255).astype(np.uint8)
    y, x = np.mgrid[: base.shape[0], : base.shape[1]]
    sector = np.degrees(np.arctan2(y - 189, x - 291)) % 360 < 36
    other = np.clip(tissue(2), 0, 255).astype(np.uint8)
    overlay[sector] = other[sector]
    return base, save(tmp_path / "o.tif", overlay), save(tmp_path / "m.tif", disc(base.shape[:2], 110))


def told(path: Path) -> Any:
    """What a result says of its upper layer."""
    attributes: Any = zarr.open_group(path, mode="r").attrs["tiledblend"]
    return attributes["description"]["layers"][1], attributes["job"]["layers"][1]


def test_match_finds_a_known_gain_and_offset(
    toned: tuple[Array, Array, Array], command: Command, tmp_path: Path
) -> None:
    base, overlay, mask = toned
    flags = ("--mask", "m.tif", "--feather", "6px", "--match", "linear", "--match-ring", "40px")
    done = command("blend", "b.tif", "o.tif", *flags, *OUTPUT)
    assert done.code == 0
    described, fingerprint = told(tmp_path / "out.ome.zarr")
    assert described["match"]["by"] == "linear"
    assert described["match"]["ring"] == "40px"
    gain, offset = np.array(described["match"]["gain"]), np.array(described["match"]["offset"])
    np.testing.assert_allclose(gain, GAIN, rtol=0.01)
    np.testing.assert_allclose(offset, SHIFT, atol=1)
    assert fingerprint["match"] == {"gain": gain.tolist(), "offset": offset.tolist()}
    assert "match linear from" in done.err
    weight = ndimage.gaussian_filter(mask / 255, 6, mode="mirror", truncate=4)[..., None]
    expected = weight * reference_modes.tone(overlay.astype(float), gain, offset) + (1 - weight) * base
    assert np.abs(level_0(tmp_path / "out.ome.zarr") - np.clip(expected, 0, 255)).max() <= 0.5 + 0.002 * 255
    assert command("verify", "out.ome.zarr", "--against-inputs", "3", "--inputs").code == 0
    # The job that the result keeps has the numbers: it is not fitted again, and gives the same.
    numbers = f"{{gain: {gain.tolist()}, offset: {offset.tolist()}}}"
    layer = f"{{image: o.tif, mask: m.tif, feather: 6px, match: {numbers}}}"
    again = ("--layer", "{image: b.tif}", "--layer", layer, "-o", "again.ome.zarr", "--chunk", "64", "--shard", "64")
    assert command("blend", *again).code == 0
    np.testing.assert_array_equal(level_0(tmp_path / "again.ome.zarr"), level_0(tmp_path / "out.ome.zarr"))


def test_seams_compare_every_match(toned: tuple[Array, Array, Array], command: Command) -> None:
    done = command("seams", "b.tif", "o.tif", "--mask", "m.tif", "--feather", "6px", "--match", "all", "--json")
    assert done.code == 0
    seam = json.loads(done.out)["seams"][0]
    steps = {match["by"]: match for match in seam["matches"]}
    assert set(steps) == {"offset", "gain", "linear", "od"}
    assert steps["linear"]["hard"]["mean"] < seam["before"]["mean"]
    assert steps["linear"]["feathered"]["mean"] <= seam["after"]["mean"]
    text = command("seams", "b.tif", "o.tif", "--mask", "m.tif", "--match", "all").out
    assert "linear, hard edge" in text


def test_a_match_that_does_not_help_is_left_out(command: Command, tmp_path: Path) -> None:
    """The same image twice: nothing is to be matched, and that is said; the result is that without."""
    image = save(tmp_path / "b.tif", np.clip(tissue(5), 0, 255).astype(np.uint8))
    save(tmp_path / "o.tif", image)
    save(tmp_path / "m.tif", disc(image.shape[:2], 110))
    done = command("blend", "b.tif", "o.tif", "--mask", "m.tif", "--match", "linear", *OUTPUT)
    assert done.code == 0
    assert "match linear is left out: it makes the step across the edge no smaller" in done.err
    assert "match" not in told(tmp_path / "out.ome.zarr")[0]
    np.testing.assert_array_equal(level_0(tmp_path / "out.ome.zarr"), image)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("b.tif", "--match", "linear"), "nothing lies below it"),
        (("b.tif", "o.tif", "--match", "some"), "--match 'some' must be offset, gain, linear or od"),
        (("b.tif", "o.tif", "--match-ring", "9px"), "--match-ring 9px needs --match"),
        (("b.tif", "o.tif", "--match", "gain", "--match-ring", "8um"), "needs a pixel size"),
        (("b.tif", "o.tif", "--match", "gain", "--match-ring", "-8px"), "must be above 0"),
        (("b.tif", "o.tif", "--match", "{gain: [1, 2]}"), "is for 2 channels; the image has 3"),
        (("b.tif", "o.tif", "--match", "{gain: [0, 1, 1]}"), "must be above 0"),
        (("b.tif", "o.tif", "--match", "{od: 1.2, gain: 1}"), "od beside gain"),
        (("b.tif", "o.tif", "--match", "linear", "--mode", "stack"), "nothing lies below it"),
    ],
)
def test_wrong_matches(flags: tuple[str, ...], says: str, toned: Any, command: Command) -> None:
    done = command("blend", *flags, "--mask", "m.tif", "-o", "no.ome.zarr")
    assert done.code == 2
    assert says in done.error
