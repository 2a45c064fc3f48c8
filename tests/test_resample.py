"""Resampling against OpenCV and numpy, and tile against whole."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.kernels.resample import Sampling, Scaled, ToSize, axis_taps

Array = NDArray[Any]
SIZES = [((20, 30), (50, 77)), ((50, 77), (20, 30)), ((7, 5), (7, 50)), ((64, 64), (32, 16)), ((1, 9), (4, 3))]


def whole(pixels: Array, shape: tuple[int, int], method: Any = "linear") -> Array:
    return sampled(pixels, ToSize(pixels.shape[:2], shape), Region.of_shape(shape), method)


def sampled(pixels: Array, sampling: Sampling, region: Region, method: Any = "linear") -> Array:
    needed = sampling.source_region(region, method)
    assert Region.of_shape(pixels.shape[:2]).contains(needed)
    return sampling.resample(pixels[needed.slices], region, method)


@pytest.mark.parametrize(("small", "large"), [((20, 30), (50, 77)), ((7, 5), (14, 50)), ((1, 9), (4, 30))])
@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_is_opencvs_bilinear(small: tuple[int, int], large: tuple[int, int], channels: int) -> None:
    pixels = np.random.default_rng(0).random((*small, channels)).astype(np.float32)
    expected = cv2.resize(pixels, large[::-1], interpolation=cv2.INTER_LINEAR).reshape(*large, channels)
    np.testing.assert_allclose(whole(pixels, large), expected, atol=2e-5)


@pytest.mark.parametrize(("large", "small"), [((50, 77), (20, 30)), ((64, 64), (32, 16)), ((33, 90), (32, 7))])
def test_shrinking_is_opencvs_area_average(large: tuple[int, int], small: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random((*large, 3)).astype(np.float32)
    expected = cv2.resize(pixels, small[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(whole(pixels, small), expected, atol=2e-5)


@pytest.mark.parametrize(("size", "to"), SIZES)
def test_each_axis_by_its_own_rule(size: tuple[int, int], to: tuple[int, int]) -> None:
    """One axis may grow while the other shrinks."""
    pixels = np.random.default_rng(0).random((*size, 2)).astype(np.float32)
    np.testing.assert_allclose(whole(pixels, to), reference.resized(pixels, to), atol=1e-5)
    labels = np.random.default_rng(0).integers(0, 99, size)
    np.testing.assert_array_equal(whole(labels, to, "nearest"), reference.resized(labels, to, nearest=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    to=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    method=st.sampled_from(["linear", "nearest"]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    data=st.data(),
)
def test_a_tile_is_that_part_of_the_whole(
    size: tuple[int, int], to: tuple[int, int], method: Any, dtype: str, data: st.DataObject
) -> None:
    pixels = (np.random.default_rng(size[0]).random((*size, 2)) * 255).astype(dtype)
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in to)
    tile = Region(y0, x0, *(data.draw(st.integers(a + 1, n)) for a, n in zip((y0, x0), to, strict=True)))
    got = sampled(pixels, ToSize(size, to), tile, method)
    np.testing.assert_array_equal(got, whole(pixels, to, method)[tile.slices])


scales = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(0.2, 7))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    scale=st.tuples(scales, scales),
    shift=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    method=st.sampled_from(["linear", "nearest"]),
    data=st.data(),
)
def test_any_scale_and_shift_tile_by_tile(
    size: tuple[int, int], scale: Any, shift: Any, method: Any, data: st.DataObject
) -> None:
    """A tile is that part of the whole, and the whole is what overlaps of intervals in float64 give."""
    pixels = (np.random.default_rng(size[0]).random((*size, 2)) * 255).astype(np.uint8)
    to, sampling = (30, 40), Scaled(scale, shift, size, (-3, 5))
    got = sampled(pixels, sampling, Region.of_shape(to), method)
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in to)
    tile = Region(y0, x0, *(data.draw(st.integers(a + 1, n)) for a, n in zip((y0, x0), to, strict=True)))
    np.testing.assert_array_equal(sampled(pixels, sampling, tile, method), got[tile.slices])
    if method == "nearest":
        return
    rows, columns = (weights(to[i], scale[i], shift[i] + o * scale[i], size[i]) for i, o in ((0, -3), (1, 5)))
    np.testing.assert_allclose(got, np.einsum("iy,jx,yxc->ijc", rows, columns, pixels), atol=0.01)


def weights(count: int, scale: float, shift: float, size: int) -> Array:
    """(count, size) share of each input pixel in each output pixel, by the definition."""
    out = np.zeros((count, size))
    for i in range(count):
        start, stop = i * scale + shift, (i + 1) * scale + shift
        if scale <= 1:
            # linear between centres: the pixel's centre, spread over one input pixel
            start, stop = (start + stop) / 2 - 0.5, (start + stop) / 2 + 0.5
        for j in range(int(np.floor(start)), int(np.ceil(stop))):
            out[i, np.clip(j, 0, size - 1)] += max(0, min(j + 1, stop) - max(j, start)) / (stop - start)
    return out


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 9), (9, 5), (1000, 999), (1, 7), (7, 1), (3, 1_000_000)])
def test_taps_sum_to_one_and_stay_inside(n: int, m: int) -> None:
    taps = axis_taps(0, min(m, 1000), n, m)
    np.testing.assert_allclose(taps.weight.sum(0), 1, atol=1e-6)
    assert taps.first >= 0
    assert taps.stop <= n
    assert ((taps.index >= 0) & (taps.index < taps.stop - taps.first)).all()


def test_same_size_is_the_identity() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    np.testing.assert_array_equal(whole(pixels, (9, 8)), pixels)


def test_nan_stays_where_it_has_weight() -> None:
    pixels = np.array([[1.0, 2.0, np.nan, 4.0]], np.float32)
    assert np.isnan(whole(pixels, (1, 4))).tolist() == [[False, False, True, False]]
    assert np.isnan(whole(pixels, (1, 2))).tolist() == [[False, True]]
