"""Micrometres: offsets, layers of unlike resolution, stated pixel sizes; what is refused and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from test_equivalence import assert_same_bits, examples, fused, whole_array

import tiledblend as tb
from tiledblend.compose.scene import decide
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.lengths import Length
from tiledblend.describe.levels import at_level
from tiledblend.errors import BadInputError, UsageError

Size = tuple[float, float]


def slide(shape: tuple[int, int], um: Size | None, seed: int = 0, name: str = "slide", dtype: str = "uint8") -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(dtype)
    return tb.from_array(pixels, axes="yxc", pixel_size_um=um, name=name)


def placed(
    over: Any, um: Size | None = (0.5, 0.5), shape: tuple[int, int] = (100, 120), **options: Any
) -> tb.Composite:
    return tb.Composite([tb.Layer(slide(shape, um, name="base")), tb.Layer(over, **options)])


# --- offsets


@pytest.mark.parametrize(
    ("given", "exact", "whole"),
    [
        ((3, -4), (3, -4), (3, -4)),
        (("12um", "30um"), (24, 60), (24, 60)),
        (("-12.2um", "7px"), (-24.4, 7), (-24, 7)),
        (("0.75 µm", "1.25um"), (1.5, 2.5), (2, 3)),
        ((Length(1, "um"), Length(2)), (2, 2), (2, 2)),
        (("1um", 5), (2, 5), (2, 5)),
    ],
)
def test_offsets_in_pixels_or_micrometres(given: Any, exact: Any, whole: Any) -> None:
    composite = placed(slide((90, 80), None), offset=given)
    layer = composite.layers[1]
    assert composite.exact_offset(layer) == pytest.approx(exact)
    assert composite.offset(layer) == whole
    assert (composite.frame(layer).y0, composite.frame(layer).x0) == whole


def test_an_offset_along_anisotropic_pixels() -> None:
    composite = placed(slide((90, 80), None), (0.5, 0.25), offset=("10um", "10um"))
    assert composite.offset(composite.layers[1]) == (20, 40)


def test_a_rounded_offset_is_noted() -> None:
    composite = placed(slide((90, 80), (0.25, 0.25)), offset=("0.6um", "3um"))
    notes = tb.plan(composite, OutputSpec(16, 16)).notes
    assert any("offset 1.200, 6.000 px (y, x) is rounded to 1, 6" in note for note in notes)
    assert any("0.25 x 0.25 um" in note and "--fit physical" in note for note in notes)


@pytest.mark.parametrize("offset", [(1.5, 2), ("1", None), ("far", "away"), (1, 2, 3), "12um", ("1um", "infum")])
def test_wrong_offsets(offset: Any) -> None:
    with pytest.raises(UsageError, match=r"offset|length"):
        tb.Layer(slide((9, 9), None), offset=offset)


def test_micrometres_need_a_pixel_size() -> None:
    with pytest.raises(UsageError, match="offset 3um needs a pixel size, and the canvas has none"):
        placed(slide((9, 9), None), None, offset=("3um", "3um"))


# --- fit: physical


def test_twice_the_resolution_is_the_mean_of_two_by_two() -> None:
    over = slide((200, 240), (0.25, 0.25), 1)
    got = tb.to_array(placed(over, fit="physical"))
    pixels = np.asarray(over.read(tb.Region(0, 0, 200, 240)))
    expected = cv2.resize(pixels.astype(np.float32), (120, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(got - expected).max() <= 0.51


def test_half_the_resolution_is_opencvs_bilinear() -> None:
    over = slide((50, 60), (1.0, 1.0), 1)
    got = tb.to_array(placed(over, fit="physical"))
    pixels = np.asarray(over.read(tb.Region(0, 0, 50, 60)))
    expected = cv2.resize(pixels.astype(np.float32), (120, 100), interpolation=cv2.INTER_LINEAR)
    assert np.abs(got - expected).max() <= 0.51


def test_anisotropic_pixels_and_an_exact_offset() -> None:
    """Canvas 0.5 x 0.5 um, layer 1 x 0.25 um, its corner at (10, 7.1) um: no rounding, the pixels are resampled."""
    over = slide((20, 160), (1.0, 0.25), 3)
    composite = placed(over, fit="physical", offset=("10um", "7.1um"))
    assert composite.frame(composite.layers[1]) == tb.Region(20, 14, 60, 95)
    got = tb.to_array(composite).astype(float)
    pixels = np.asarray(over.read(tb.Region(0, 0, 20, 160))).astype(float)
    # a canvas pixel well inside: rows 30..31 are half a layer row each, columns are 14.2 + x / 2
    column, row = 50, 30
    start = (column - 14.2) * 2
    first = int(start)
    shares = [first + 1 - start, 1, start - first]
    across = sum(s * pixels[:, first + i] for i, s in enumerate(shares)) / 2
    centre = (row + 0.5 - 20) / 2 - 0.5
    low = int(np.floor(centre))
    expected = across[low] * (1 - (centre - low)) + across[low + 1] * (centre - low)
    np.testing.assert_allclose(got[row, column], expected, atol=0.51)


def test_equal_pixel_sizes_stay_bit_for_bit() -> None:
    over = slide((100, 120), (0.5, 0.5), 5)
    got = tb.to_array(placed(over, fit="physical"))
    np.testing.assert_array_equal(got, over.read(tb.Region(0, 0, 100, 120)))


def test_sizes_and_pixel_sizes_that_disagree_are_refused_with_both_fields() -> None:
    with pytest.raises(BadInputError, match=r"200 x 260 pixels of 0\.25 x 0\.25 um cover 50 x 65 .* cover 50 x 60 um"):
        placed(slide((200, 260), (0.25, 0.25)), fit="physical")
    # a scanner's rounding is no disagreement, and a stated offset needs none
    placed(slide((201, 241), (0.2497, 0.2497)), fit="physical")
    placed(slide((200, 260), (0.25, 0.25)), fit="physical", offset=(0, 0))
    with pytest.raises(BadInputError, match="disagree"):
        placed(slide((100, 120), (0.25, 0.25)), fit="physical")


def test_unknown_pixel_sizes_are_refused_until_stated() -> None:
    over = slide((200, 240), None, name="over")
    with pytest.raises(BadInputError, match=r"fit physical needs the pixel sizes .* and over has none"):
        placed(over, fit="physical")
    with pytest.raises(BadInputError, match="the canvas has none"):
        placed(slide((200, 240), (1, 1)), None, fit="physical")
    stated = placed(over, fit="physical", pixel_size_um=0.25)
    assert stated.frame(stated.layers[1]) == tb.Region(0, 0, 100, 120)
    with pytest.raises(UsageError, match="pixel size"):
        tb.Layer(over, pixel_size_um=(0.0, 1.0))


def test_other_sizes_without_offset_or_fit_name_the_way_out() -> None:
    with pytest.raises(BadInputError, match=r"200 x 240 .* 100 x 120, as base is; .*--fit physical to place it by"):
        placed(slide((200, 240), (0.25, 0.25)))


def test_a_mask_of_the_canvas_is_one_to_one_whatever_its_metadata_says() -> None:
    """Masks are placed by their shape alone."""
    cover = np.zeros((100, 120), bool)
    cover[10:20, 30:50] = True
    mask = tb.from_array(cover, axes="yx", mask=True, pixel_size_um=(99.0, 3.0))
    got = tb.to_array(placed(slide((200, 240), (0.25, 0.25), 1), mask=mask, mask_frame="canvas", fit="physical"))
    base = np.asarray(slide((100, 120), None).read(tb.Region(0, 0, 100, 120)))
    assert ((got != base).any(axis=2) == cover).mean() > 0.999
    np.testing.assert_array_equal(got[~cover], base[~cover])


@examples(60)
@given(
    ratio=st.tuples(st.floats(0.3, 4), st.floats(0.3, 4)),
    offset=st.tuples(st.floats(-30, 60), st.floats(-30, 60)),
    sigma=st.sampled_from([0.0, 3.0, 11.0]),
    mask=st.sampled_from(["none", "layer", "small", "canvas", "labels"]),
    chunk=st.sampled_from([16, 32]),
    lazy_chunk=st.sampled_from([13, 50]),
    level=st.sampled_from([0, 0, 1, 2]),
    seed=st.integers(0, 99),
)
def test_whole_lazy_and_fused_are_the_same_bits(
    ratio: Size, offset: Size, sigma: float, mask: str, chunk: int, lazy_chunk: int, level: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    options: dict[str, Any] = {}
    if mask != "none":
        size = {"small": (-(-shape[0] // 4), -(-shape[1] // 4)), "canvas": (100, 120)}.get(mask, shape)
        values = rng.integers(0, 5, size).astype(np.uint8) if mask == "labels" else rng.random(size) > 0.4
        options = {"mask": tb.from_array(values, axes="yx", mask=True)}
        options |= {"mask_values": tb.Labels((2, 3))} if mask == "labels" else {}
        options |= {"mask_frame": "canvas"} if mask == "canvas" else {}
    try:
        composite = placed(
            slide(shape, (ratio[0] / 2, ratio[1] / 2), seed, dtype=str(rng.choice(["uint8", "uint8"]))),
            fit="physical",
            offset=tuple(Length(v, "um") for v in offset),
            feather=tb.Feather.px(sigma),
            **options,
        )
    except BadInputError:  # it lies wholly outside
        return
    composite = at_level(composite, level)
    scene = decide(composite)
    whole, background = whole_array(scene)
    levels, stats = fused(scene, OutputSpec(chunk, 2 * chunk, levels=1).grid(composite.shape))
    assert_same_bits(levels[0], whole)
    assert stats.background == background
    lazy = tb.to_dask(composite, chunk=lazy_chunk).compute(scheduler="synchronous")
    assert_same_bits(np.moveaxis(lazy, 0, 2), whole)


def test_the_border_of_a_resampled_layer_fades_as_any_layers() -> None:
    """At the same place as a layer of whole pixels, to the error of the table."""
    white, coarse = (
        tb.from_array(np.full((n, n, 1), 255, np.uint8), axes="yxc", pixel_size_um=um)
        for n, um in ((40, (0.5, 0.5)), (20, (1.0, 1.0)))
    )
    base = tb.Layer(tb.from_array(np.zeros((90, 90, 1), np.uint8), axes="yxc", pixel_size_um=(0.5, 0.5)))
    options: dict[str, Any] = {"feather": tb.Feather.px(6), "fit": "physical", "offset": (20, 31)}
    one, other = (tb.to_array(tb.Composite([base, tb.Layer(image, **options)])) for image in (white, coarse))
    assert one.max() > 250
    assert np.abs(one.astype(int) - other).max() <= 1


# --- the command


def write(path: Path, shape: tuple[int, int], um: float | None, seed: int = 0, dpi: float | None = None) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64)}
    if um:
        options |= {"resolution": (1e4 / um, 1e4 / um), "resolutionunit": "CENTIMETER"}
    if dpi:
        options |= {"resolution": (dpi, dpi), "resolutionunit": "INCH"}
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_a_printers_resolution_is_no_pixel_size(dpi: float, command: Command, tmp_path: Path) -> None:
    write(tmp_path / "a.tif", (64, 64), None, dpi=dpi)
    assert json.loads(command("info", "a.tif", "--json").out)["images"][0]["pixel_size_um"] is None
    ran = command("blend", "a.tif", "a.tif", "--offset", "3um,4um", "-o", "x.png")
    assert (ran.code, "needs a pixel size" in ran.error) == (2, True)
    assert command("blend", "a.tif", "a.tif", "--offset", "3um,4um", "--mpp", 0.5, "-o", "x.png").code == 0


def test_flags(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "base.tif", (100, 120), 0.5)
    write(tmp_path / "over.tif", (200, 240), 0.25, 1)
    write(tmp_path / "nothing.tif", (200, 240), None, 1)
    refused = command("blend", "base.tif", "over.tif", "-o", "x.tif")
    assert (refused.code, "--fit physical" in refused.error) == (4, True)
    ran = command("blend", "base.tif", "over.tif", "--fit", "physical", "-o", "x.tif")
    assert ran.code == 0, ran.err
    ran = command("blend", "base.tif", "nothing.tif", "--fit", "physical", "-o", "y.tif")
    assert (ran.code, "pixel_size_um" in ran.error) == (4, True)
    sizes = ("--pixel-size-um", "0.5,0.25")
    assert command("blend", "base.tif", "nothing.tif", "--fit", "physical", *sizes, "-o", "y.tif").code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), tifffile.imread(tmp_path / "y.tif"))
    ran = command("blend", "base.tif", "base.tif", "--offset", "12um,-6um", "-o", "z.tif")
    assert ran.code == 0, ran.err
    base = tifffile.imread(tmp_path / "base.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "z.tif")[24:, :108], base[:76, 12:])
    # --pixel-size-um wins over the file: 1 um is 12 px at 12 um
    ran = command("blend", "base.tif", "base.tif", "--offset", "12um,0um", "--pixel-size-um", 1, "-o", "w.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "w.tif")[12:], base[:88])
    assert command("blend", "base.tif", "--pixel-size-um", "1,2", "-o", "v.tif").code == 2
