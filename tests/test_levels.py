"""A composite at a coarser level: the same bits on every path, close to that level of the full result, and cheap."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from conftest import Command
from drawn import Case, cases
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyramids import Pyramid, halved_levels
from test_equivalence import assert_same_bits, examples, fused, pyramid, whole_array

import tiledblend as tb
from tiledblend.compose.composed import ComposedSource
from tiledblend.compose.scene import decide
from tiledblend.demo.tissue import Slides
from tiledblend.describe.levels import at_level, at_pixel_size, reduced
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.halve import halve_tile


@examples(70)
@given(
    case=cases(odd_floats=True),
    factor=st.sampled_from([2.0, 2.0, 4.0, 8.0, 1.3, 2.7]),
    levels=st.sampled_from([1, 2, 4]),
    lazy_chunk=st.sampled_from([3, 13, 40]),
)
def test_whole_lazy_and_fused_are_the_same_bits(case: Case, factor: float, levels: int, lazy_chunk: int) -> None:
    composite = reduced(with_levels(case.composite, levels), factor)
    assert composite.shape == tuple(int(np.ceil(n / factor - 1e-9)) for n in case.composite.shape)
    grid = case.output.grid(composite.shape)
    scene = decide(composite)
    whole, background = whole_array(scene)
    got, stats = fused(scene, grid)
    for level, expected in zip(got, pyramid(whole, grid.levels, composite.has_alpha), strict=True):
        assert_same_bits(level, expected)
    assert stats.background == background
    lazy = tb.to_dask(composite, chunk=lazy_chunk).compute(scheduler="synchronous")
    assert_same_bits(np.moveaxis(lazy, 0, 2), whole)


def with_levels(composite: tb.Composite, count: int) -> tb.Composite:
    """Its images as pyramids."""

    def image(source: Any) -> Pyramid:
        pixels = np.array(source.read(Region.of_shape(source.shape)))
        with np.errstate(all="ignore"):
            levels = halved_levels(pixels, count, source.alpha is not tb.Alpha.NONE)
        return Pyramid(levels, alpha=source.alpha)

    layers = [replace(layer, image=image(layer.image)) for layer in composite.layers]
    return tb.Composite(layers, composite.mode, composite.background, replace(composite.full, is_rgb=None))


def smooth(shape: tuple[int, int], phase: float) -> Any:
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(x / 37 + phase) + np.cos(y / (51 + c) - phase) for c in range(3)]
    return np.rint(127 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def disc(shape: tuple[int, int]) -> Any:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - 0.5 * shape[0]) ** 2 + (x - 0.45 * shape[1]) ** 2 < (0.3 * shape[0]) ** 2).astype(np.uint8) * 255


def slides_of(shape: tuple[int, int], levels: int, **over: Any) -> tb.Composite:
    """Two pyramids and a disc mask at 1/4 on a ragged canvas, and a smaller layer at an odd offset."""
    mask = tb.from_array(disc((-(-shape[0] // 4), -(-shape[1] // 4))), axes="yx", mask=True)
    stack = [
        tb.Layer(Pyramid(halved_levels(smooth(shape, 0), levels), pixel_size_um=(0.5, 0.5))),
        tb.Layer(Pyramid(halved_levels(smooth(shape, 2), levels)), mask, feather=tb.Feather.px(24), **over),
        tb.Layer(Pyramid(halved_levels(smooth((301, 203), 4), levels)), offset=(73, 401), feather=tb.Feather.um(10)),
    ]
    return tb.Composite(stack)


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_close_to_that_level_of_the_full_result(levels: int, level: int) -> None:
    composite = slides_of((701, 903), levels)
    full = tb.to_array(composite)
    for _ in range(level):
        full = halve_tile(full, has_alpha=False)
    got = tb.to_array(at_level(composite, level))
    assert got.shape == full.shape
    off = np.abs(got.astype(int) - full.astype(int))
    assert off.max() <= 6, off.max()
    assert off.mean() < 0.6


def test_sources_are_read_at_their_own_level() -> None:
    composite = slides_of((1024, 1024), 4)
    tb.to_array(at_level(composite, 3))
    for layer in composite.layers:
        assert isinstance(layer.image, Pyramid)
        assert set(layer.image.reads) == {3}
    # no level 4: the coarsest there is, averaged
    tb.to_array(at_level(composite, 5))
    assert set(composite.layers[0].image.reads) == {3}  # type: ignore[attr-defined]
    # 3 um per pixel is 6 x: level 2, and 1.5 x of area average
    tb.to_array(at_pixel_size(composite, 3.0))
    assert set(composite.layers[0].image.reads) == {2, 3}  # type: ignore[attr-defined]


def test_lengths_scale_with_the_canvas() -> None:
    composite = slides_of((800, 800), 4)
    small = at_level(composite, 2)
    assert small.shape == (200, 200)
    assert small.grid.pixel_size_um == (2.0, 2.0)
    assert [small.kernel(layer).sigmas for layer in small.layers] == [(0, 0), (6, 6), (5, 5)]
    assert at_pixel_size(composite, 2.0) == small
    assert at_level(at_level(composite, 1), 1) == small
    assert small.full == composite.full
    five = tb.Layer(composite.layers[0].image, feather=tb.Feather.ksize(5))
    assert at_level(tb.Composite([five]), 1).kernel(five).sigma == pytest.approx(0.55)


def test_a_layer_keeps_its_exact_place() -> None:
    """At an offset that is no multiple of the level: the mean of what the full canvas has there."""
    base = np.zeros((64, 64, 1), np.uint8)
    over = np.random.default_rng(1).integers(0, 256, (23, 29, 1), np.uint8)
    layers = [
        tb.Layer(tb.from_array(base, axes="yxc")),
        tb.Layer(tb.from_array(over, axes="yxc"), offset=(10, 13)),
    ]
    composite = tb.Composite(layers)
    got = tb.to_array(at_level(composite, 2))[..., 0]
    full = tb.to_array(composite)[..., 0].reshape(16, 4, 16, 4).mean((1, 3))
    inner = np.s_[3:8, 4:10]  # pixels that the layer covers whole: 10 to 33 by 13 to 42
    assert np.abs(got[inner] - full[inner]).max() <= 0.51
    assert (got[:2] == 0).all()
    assert (got[:, 11:] == 0).all()


@pytest.mark.parametrize("source", ["polygons", "labels"])
def test_masks_of_every_kind_at_every_level(source: str, tmp_path: Path) -> None:
    """Outlines by the pixel-centre rule of the level; labels never mixed."""
    shape = (400, 480)
    over = tb.from_array(np.full((*shape, 3), 200, np.uint8), axes="yxc")
    if source == "polygons":
        path = tmp_path / "a.geojson"
        ring = [[40.0, 80.0], [440.0, 80.0], [440.0, 320.0], [40.0, 320.0], [40.0, 80.0]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
        layer = tb.Layer(over, tb.open(path, mask=True))
    else:
        labels = np.full(shape, 4, np.uint16)
        labels[80:320, 40:440] = 2
        layer = tb.Layer(over, tb.from_array(labels, axes="yx", mask=True), mask_values=tb.Labels((2,)))
    composite = tb.Composite([tb.Layer(tb.from_array(np.zeros((*shape, 3), np.uint8), axes="yxc")), layer])
    for level in range(4):
        got = tb.to_array(at_level(composite, level))[..., 0]
        f = 2**level
        expected = np.zeros(got.shape)
        expected[80 // f : 320 // f, 40 // f : 440 // f] = 200
        np.testing.assert_array_equal(got, expected)


def test_a_composite_is_a_source_at_every_level() -> None:
    composite = slides_of((1100, 900), 3)
    source = ComposedSource(composite)
    assert [level.shape for level in source.levels] == [(1100, 900), (550, 450), (275, 225)]
    region = Region(100, 50, 200, 220)
    for level in range(3):
        whole = tb.to_array(at_level(composite, level))
        assert_same_bits(np.ascontiguousarray(source.read(region, level)), whole[region.slices])
    assert source.pixel_size_um == (0.5, 0.5)
    assert source.fingerprint() != ComposedSource(at_level(composite, 1)).fingerprint()
    flat = tb.Composite([tb.Layer(tb.from_array(np.zeros((9, 9, 3), np.uint8), axes="yxc"))])
    assert pickle.loads(pickle.dumps(ComposedSource(flat))).levels == ComposedSource(flat).levels


def test_refusals() -> None:
    composite = slides_of((700, 900), 1)
    with pytest.raises(UsageError, match=r"level 11 must be from 0 to 10 for a canvas of 700 x 900"):
        at_level(composite, 11)
    assert at_level(composite, 10).shape == (1, 1)
    with pytest.raises(UsageError, match=r"0\.2 um per pixel is finer than the canvas's 0\.5"):
        at_pixel_size(composite, 0.2)
    unknown = tb.Composite([tb.Layer(tb.from_array(np.zeros((9, 9, 3), np.uint8), axes="yxc"))])
    with pytest.raises(UsageError, match="has no pixel size"):
        at_pixel_size(unknown, 2)


# --- the command


def test_blend_at_a_level(slides: Slides, command: Command, tmp_path: Path) -> None:
    size = tb.open(slides.base).pixel_size_um
    assert size is not None
    flags = (slides.base, slides.overlay, "--mask", slides.mask, "--feather", "8um")
    assert command("blend", *flags, "-o", "full.png").code == 0
    ran = command("blend", *flags, "--level", 2, "-o", "a.tif")
    assert ran.code == 0, ran.err
    small, full = tifffile.imread(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "full.png")).astype(float)
    mean = full.reshape(250, 4, 250, 4, 3).mean((1, 3))
    assert small.shape == (250, 250, 3)
    assert np.abs(small - mean).mean() < 1.5
    ran = command("blend", *flags, "--mpp", 4 * size[0], "-o", "b.tif")
    assert ran.code == 0, ran.err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), small)
    assert command("blend", *flags, "--mpp", 0.01, "-o", "c.tif").code == 2
    ran = command("plan", *flags, "--level", 1, "--json")
    assert json.loads(ran.out)["shape"] == [500, 500]


def test_mpp_states_a_pixel_size_where_none_is_known(command: Command, tiledblend: Command, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((64, 80, 3), np.uint8), photometric="rgb")
    assert "needs a pixel size" in command("blend", "b.tif", "b.tif", "--feather", "4um", "-o", "x.png").error
    ran = tiledblend("blend", "b.tif", "b.tif", "--feather", "4um", "--mpp", "0.5", "-o", "x.ome.zarr")
    assert ran.code == 0, ran.err
    scales = zarr.open_group(tmp_path / "x.ome.zarr", mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    assert scales[0]["coordinateTransformations"][0]["scale"][-2:] == [0.5, 0.5]


def test_preview_of_a_composite(slides: Slides, command: Command, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"layers:\n  - image: {slides.base}\n  - {{image: {slides.overlay}, mask: {slides.mask}, feather: 8um}}\n"
    )
    ran = command("preview", "--job", job, "p.png", "--max-size", 240, "--no-scale-bar", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["level"] == 1
    flags = (slides.base, slides.overlay, "--mask", slides.mask, "--feather", "8um")
    assert command("preview", *flags, "q.png", "--max-size", 240, "--no-scale-bar").code == 0
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("p.png", "q.png")]
    assert pictures[0].shape == (240, 240, 3)
    np.testing.assert_array_equal(*pictures)
    assert command("preview", "a", "b", "c", "d.png").code == 2
