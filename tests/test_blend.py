"""The blend formula, and the three classic recipes of mask-guided blending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import full_scale

import tiledblend as tb
from tiledblend.errors import BadInputError, UsageError
from tiledblend.kernels.average import AVERAGE
from tiledblend.kernels.blend import STRIP_SAMPLES, Contribution, blend_tile, to_dtype
from tiledblend.kernels.over import OVER

Array = NDArray[Any]

RULES = {"over": OVER, "average": AVERAGE}


def random_image(seed: int, shape: tuple[int, ...], dtype: Any = np.uint8) -> Array:
    pixels = np.random.default_rng(seed).random(shape) * full_scale(dtype)
    return pixels.astype(np.float32) if np.dtype(dtype).kind == "f" else np.rint(pixels).astype(dtype)


def random_weight(seed: int, shape: tuple[int, int]) -> Array:
    """Plateaus of 0 and 1 with everything between."""
    return np.clip(np.random.default_rng(seed).random(shape) * 2 - 0.5, 0, 1).astype(np.float32)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 7])),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    count=st.integers(1, 4),
    mode=st.sampled_from(["over", "average"]),
    planar=st.booleans(),
)
def test_formula(seed: int, shape: tuple[int, int, int], dtype: str, count: int, mode: Any, planar: bool) -> None:
    images = [random_image(seed + i, shape, dtype) for i in range(count)]
    weights = [random_weight(seed + 50 + i, shape[:2]) for i in range(count)]
    ground = np.arange(shape[2], dtype=np.float32)
    order = (lambda p: np.moveaxis(np.ascontiguousarray(np.moveaxis(p, 2, 0)), 0, 2)) if planar else (lambda p: p)
    layers = [Contribution(order(image), weight) for image, weight in zip(images, weights, strict=True)]
    done = blend_tile(layers, ground, np.dtype(dtype), RULES[mode])
    w = np.stack(weights)[..., None].astype(float)
    pixels = np.stack(images).astype(float)
    if mode == "over":
        expected = np.broadcast_to(ground.astype(float), shape)
        for one, image in zip(w, pixels, strict=True):
            expected = one * image + (1 - one) * expected
    else:
        total = w.sum(0)
        expected = np.where(total > 0, (w * pixels).sum(0) / np.where(total > 0, total, 1), ground)
    assert done.pixels.dtype == dtype
    assert np.abs(done.pixels - expected).max() <= (0.5 + 1e-6 * full_scale(dtype) if dtype != "float32" else 2e-6 * 7)
    assert done.background == int((w == 0).all(0).sum())


@pytest.mark.parametrize("mode", ["over", "average"])
def test_strips_do_not_show(mode: Any) -> None:
    """Work goes in strips of rows: any cut of the rows gives the same bits."""
    shape = (301, STRIP_SAMPLES // 300, 3)
    base, overlay, weight = random_image(1, shape), random_image(2, shape), random_weight(3, shape[:2])
    ground = np.zeros(3, np.float32)
    whole = blend_tile([Contribution(base), Contribution(overlay, weight)], ground, base.dtype, RULES[mode]).pixels
    for part in (slice(0, 1), slice(17, 150), slice(150, 301)):
        layers = [Contribution(base[part]), Contribution(overlay[part], weight[part])]
        np.testing.assert_array_equal(blend_tile(layers, ground, base.dtype, RULES[mode]).pixels, whole[part])


def test_rounding_is_half_to_even_and_clipped() -> None:
    assert to_dtype(np.float32([0.5, 1.5, 2.5, -3, 254.5, 255.5, 1e9]), np.dtype("uint8")).tolist() == [
        0, 2, 2, 0, 254, 255, 255,
    ]  # fmt: skip
    half = np.full((1, 2), 0.5, np.float32)
    base, overlay = np.array([[[0], [1]]], np.uint8), np.array([[[1], [2]]], np.uint8)
    done = blend_tile([Contribution(base), Contribution(overlay, half)], np.zeros(1, np.float32), base.dtype, OVER)
    assert done.pixels.ravel().tolist() == [0, 2]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rounding_in_one_pass_is_numpy_s(dtype: str) -> None:
    """At and right beside every whole and half number of the range, and beyond its upper end."""
    steps = np.arange(0, 2 * np.iinfo(dtype).max + 6, dtype=np.float32) / 2
    near = [steps, np.nextafter(steps, np.float32(np.inf)), np.nextafter(steps, np.float32(-np.inf))]
    values = np.stack(near)[:, :, None]
    done = blend_tile([Contribution(values)], np.zeros(1, np.float32), np.dtype(dtype), OVER)
    np.testing.assert_array_equal(done.pixels, np.clip(np.rint(values), 0, np.iinfo(dtype).max))


def test_weight_one_and_zero_keep_every_float() -> None:
    odd = np.array([[[np.nan], [np.inf], [-np.inf], [-0.0], [1e38]]], np.float32)
    plain = np.ones_like(odd)
    for mode in ("over", "average"):
        for weight in (0.0, 1.0):
            w = np.full(odd.shape[:2], weight, np.float32)
            for base, overlay in ((odd, plain), (plain, odd)):
                bottom = Contribution(base, 1 - w) if mode == "average" else Contribution(base)
                layers = [bottom, Contribution(overlay, w)]
                done = blend_tile(layers, np.zeros(1, np.float32), base.dtype, RULES[mode])
                expected = overlay if weight else base
                np.testing.assert_array_equal(done.pixels.view(np.uint32), expected.view(np.uint32))


def test_over_with_alpha_is_porter_and_duff() -> None:
    base = np.array([[[100, 0], [100, 0], [100, 0]]], np.float32)[..., :1]
    alpha = np.float32([[0.5, 0.0, 1.0]])
    weight = np.float32([[0.5, 0.5, 0.0]])
    layers = [Contribution(base, alpha, alpha, None), Contribution(base * 2, weight, None, weight)]
    done = blend_tile(layers, np.zeros(2, np.float32), np.dtype("float32"), OVER, has_alpha=True)
    expected_alpha = [0.75, 0.5, 1.0]
    expected = [(0.5 * 200 + 0.5 * 50) / 0.75, 200, 100]
    np.testing.assert_allclose(done.pixels[0, :, 1], expected_alpha, rtol=1e-6)
    np.testing.assert_allclose(done.pixels[0, :, 0], expected, rtol=1e-6)


def test_an_opaque_background_lies_under_transparent_pixels() -> None:
    pixels = np.array([[[200, 0], [200, 128]]], np.uint8)
    layer = tb.Layer(tb.from_array(pixels, axes="yxc", alpha=tb.Alpha.STRAIGHT))
    assert tb.to_array(tb.Composite([layer], background=(40, 255))).tolist() == [[[40, 255], [120, 255]]]
    assert tb.to_array(tb.Composite([layer])).tolist() == pixels.tolist()


def test_alpha_as_an_inverted_mask_counts_once() -> None:
    pixels = np.array([[[200, 0], [200, 255], [200, 51]]], np.uint8)
    layer = tb.Layer(tb.from_array(pixels, axes="yxc", alpha=tb.Alpha.STRAIGHT), "alpha", invert=True)
    assert tb.to_array(tb.Composite([layer]))[..., 1].tolist() == [[255, 0, 204]]


# tb.blend on arrays


@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx"])
@pytest.mark.parametrize("chunks", [5, 16, 100])
def test_blend_of_dask_arrays_equals_numpy(axes: Any, chunks: int) -> None:
    shape = {"yx": (30, 41), "yxc": (30, 41, 3), "cyx": (3, 30, 41)}[axes]
    base, overlay, weight = random_image(1, shape), random_image(2, shape), random_weight(3, (30, 41))
    whole = tb.blend(base, overlay, weight, axes=axes)
    lazy = tb.blend(da.from_array(base, chunks), da.from_array(overlay, 7), da.from_array(weight, 11), axes=axes)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == base.dtype
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), whole)
    w = weight[..., None] if axes == "yxc" else weight
    assert np.abs(whole - (w * overlay.astype(float) + (1 - w) * base)).max() <= 0.5 + 1e-4


def test_blend_refuses_what_does_not_match() -> None:
    base, weight = random_image(1, (4, 5, 3)), random_weight(1, (4, 5))
    with pytest.raises(BadInputError, match=r"\(4, 5, 3\) uint8.*\(4, 6, 3\) uint8"):
        tb.blend(base, random_image(1, (4, 6, 3)), weight, axes="yxc")
    with pytest.raises(BadInputError, match="uint16"):
        tb.blend(base, base.astype(np.uint16), weight, axes="yxc")
    with pytest.raises(BadInputError, match=r"weight is \(5, 4\)"):
        tb.blend(base, base, weight.T, axes="yxc")
    for wrong in (float("nan"), 2.0, -0.1):
        with pytest.raises(BadInputError, match="outside 0 to 1"):
            tb.blend(base, base, np.full_like(weight, wrong), axes="yxc")
    with pytest.raises(BadInputError, match="weight is uint8, not float"):
        tb.blend(base, base, np.full((4, 5), 255, np.uint8), axes="yxc")
    with pytest.raises(BadInputError, match="dtype int16 cannot be blended"):
        tb.blend(base.astype(np.int16), base.astype(np.int16), weight, axes="yxc")
    with pytest.raises(UsageError, match="axes"):
        tb.blend(base, base, weight, axes="yx")
    with pytest.raises(UsageError, match="mode"):
        tb.blend(base, base, weight, axes="yxc", mode="under")  # type: ignore[arg-type]


# The three classic recipes; their formula is M I1 + (1 - M) I2, I1 the overlay, I2 the base.


def save(path: Path, pixels: Array) -> str:
    assert cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels)
    return str(path)


def grown(pixels: Array, shape: tuple[int, int]) -> Array:
    """Resized as OpenCV does it; its own arithmetic on uint8 is rounded, ours is not."""
    area = pixels.shape[0] > shape[0]
    return cv2.resize(
        pixels.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR
    )


def test_recipe_a_binary_mask_images_resized_to_its_size(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    cv2.circle(mask, (40, 30), 20, 255, -1)
    base, overlay = random_image(1, (30, 40, 3)), random_image(2, (120, 160, 3))
    layers = [
        tb.Layer(tb.open(save(tmp_path / "base.png", base)), fit="canvas"),
        tb.Layer(
            tb.open(save(tmp_path / "overlay.png", overlay)), tb.open(save(tmp_path / "mask.png", mask)), fit="canvas"
        ),
    ]
    got = tb.to_array(tb.Composite(layers, canvas=tb.Canvas(mask.shape)))
    m = mask[..., None] / 255
    expected = m * grown(overlay, mask.shape) + (1 - m) * grown(base, mask.shape)
    assert np.abs(got - expected).max() <= 1


def test_recipe_b_grey_mask_smoothed_by_5_x_5(tmp_path: Path) -> None:
    mask = random_image(5, (50, 70))
    base, overlay = random_image(1, (50, 70, 3)), random_image(2, (50, 70, 3))
    layers = [
        tb.Layer(tb.open(save(tmp_path / "base.png", base))),
        tb.Layer(
            tb.open(save(tmp_path / "overlay.png", overlay)),
            tb.open(save(tmp_path / "mask.png", mask)),
            feather=tb.Feather.ksize(5),
        ),
    ]
    m = cv2.GaussianBlur(mask.astype(np.float64), (5, 5), 0)[..., None] / 255
    assert np.abs(tb.to_array(tb.Composite(layers)) - (m * overlay + (1 - m) * base)).max() <= 1


def test_recipe_c_alpha_of_an_rgba_image(tmp_path: Path) -> None:
    base, overlay = random_image(1, (50, 70, 3)), random_image(2, (50, 70, 4))
    layers = [
        tb.Layer(tb.open(save(tmp_path / "base.png", base))),
        tb.Layer(tb.open(save(tmp_path / "overlay.png", overlay)), "alpha"),
    ]
    m = overlay[..., 3:] / 255
    expected = m * overlay[..., :3] + (1 - m) * base
    assert np.abs(tb.to_array(tb.Composite(layers)) - expected).max() <= 1
    # Alpha that is not named as the mask multiplies the weight: the same here.
    layers[1] = tb.Layer(tb.open(str(tmp_path / "overlay.png")))
    assert np.abs(tb.to_array(tb.Composite(layers)) - expected).max() <= 1


def test_weighted_merge_of_four_images() -> None:
    images = [random_image(i, (20, 30, 3)) for i in range(4)]
    masks = [random_image(i + 9, (20, 30)) for i in range(4)]
    layers = [
        tb.Layer(tb.from_array(i, axes="yxc"), tb.from_array(m, axes="yx", mask=True), opacity=o)
        for i, m, o in zip(images, masks, (1, 0.5, 0.25, 1), strict=True)
    ]
    w = np.stack(masks)[..., None] / 255 * np.reshape([1, 0.5, 0.25, 1], (4, 1, 1, 1))
    expected = (w * np.stack(images)).sum(0) / w.sum(0)
    assert np.abs(tb.to_array(tb.Composite(layers, mode="average")) - expected).max() <= 1
