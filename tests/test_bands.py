"""Multi-band blending against float64, cut by cut against whole, and where one image alone is to be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_modes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.bands import Bands, Patch, blend_bands, reach_of

Array = NDArray[Any]


def two_images(seed: int, shape: tuple[int, int], channels: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    full = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    smooth = ndimage.gaussian_filter(rng.random((2, *shape, channels)), (0, 3, 3, 0))
    span = np.ptp(smooth) or 1
    pixels = 0.5 * rng.random((2, *shape, channels)) + 0.5 * (smooth - smooth.min()) / span
    return tuple((pixels * full).astype(dtype))  # type: ignore[return-value]


def weight_of(seed: int, shape: tuple[int, int], kind: str) -> Array:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    if kind == "disc":
        centre, radius = rng.random(2) * shape, (0.1 + 0.5 * rng.random()) * min(shape)
        return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2).astype(np.float32)
    if kind == "step":
        return (x >= shape[1] // 2).astype(np.float32) * np.float32(0.7)
    if kind == "noise":
        return rng.random(shape).astype(np.float32)
    return np.full(shape, float(kind == "ones"), np.float32)


def whole(count: int, below: Array, layer: Array, weight: Array, domain: Region) -> Array:
    patch = Patch(layer, below.astype(np.float32), weight, domain, domain)
    return blend_bands(Bands(count), patch, domain, whole_levels=layer.dtype == np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(97, 120), (64, 65), (130, 96)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("dtype", "allowed"), [(np.uint8, 0.2), (np.uint16, 0.05), (np.float32, 2e-6)])
def test_against_float64(count: int, shape: tuple[int, int], channels: int, dtype: Any, allowed: float) -> None:
    for origin in ((0, 0), (1, 6), (7, 3)):
        for kind in ("disc", "step", "noise"):
            below, layer = two_images(count, shape, channels, dtype)
            weight = weight_of(count, shape, kind)
            expected = reference_modes.bands(below.astype(float), layer, weight, count, origin)
            got = whole(count, below, layer, weight, Region.of_shape(shape).shift(*origin))
            assert np.abs(got - expected).max() <= allowed, (origin, kind)


def test_opencvs_own_pyramid_is_the_same_inside() -> None:
    """`cv2.pyrDown` and `cv2.pyrUp` on float64, as its tutorial of pyramid blending has it; their borders differ at
    odd sides, so an even one is compared."""
    import cv2

    below, layer = two_images(5, (128, 256), 3, np.uint8)
    weight = weight_of(5, (128, 256), "disc")
    gauss, weights = [layer.astype(float) - below], [weight.astype(float)]
    for _ in range(4):
        gauss.append(cv2.pyrDown(gauss[-1]))
        weights.append(cv2.pyrDown(weights[-1]))
    total = weights[-1][..., None] * gauss[-1]
    for fine, coarse, w in zip(gauss[-2::-1], gauss[:0:-1], weights[-2::-1], strict=True):
        total = w[..., None] * (fine - cv2.pyrUp(coarse)) + cv2.pyrUp(total)
    got = whole(5, below, layer, weight, Region.of_shape((128, 256)))
    assert np.abs(got - (below + total)).max() <= 0.2


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    origin=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    count=st.integers(1, 7),
    channels=st.sampled_from([1, 3, 5]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    kind=st.sampled_from(["disc", "step", "noise", "ones", "zeros"]),
    planar=st.booleans(),
    data=st.data(),
)
def test_a_cut_is_that_part_of_the_whole(
    seed: int,
    shape: tuple[int, int],
    origin: tuple[int, int],
    count: int,
    channels: int,
    dtype: Any,
    kind: str,
    planar: bool,
    data: st.DataObject,
) -> None:
    below, layer = two_images(seed, shape, channels, dtype)
    if planar:
        layer = np.moveaxis(np.ascontiguousarray(np.moveaxis(layer, 2, 0)), 0, 2)
    weight, domain, bands = weight_of(seed, shape, kind), Region.of_shape(shape).shift(*origin), Bands(count)
    expected = whole(count, below, layer, weight, domain)
    y0, x0 = (data.draw(st.integers(a, b - 1)) for a, b in ((domain.y0, domain.y1), (domain.x0, domain.x1)))
    part = Region(y0, x0, data.draw(st.integers(y0 + 1, domain.y1)), data.draw(st.integers(x0 + 1, domain.x1)))
    # No more is handed over than the kernel says that it needs.
    needed = reach_of(bands, part, domain)
    at = needed.shift(-origin[0], -origin[1]).slices
    patch = Patch(layer[at].copy(), below[at].astype(np.float32), weight[at].copy(), needed, domain)
    got = blend_bands(bands, patch, part, whole_levels=dtype is np.uint8)
    inner = expected[part.shift(-origin[0], -origin[1]).slices]
    np.testing.assert_array_equal(got.view(np.uint32), inner.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_plateaus_are_their_images(dtype: Any, count: int) -> None:
    """Of floats with NaN and infinities too, and over what is no whole number below."""
    shape = (300, 500)
    below, layer = two_images(3, shape, 3, dtype)
    wide = below.astype(np.float32) + np.float32(0.3)
    if dtype is np.float32:
        layer[5, 490], layer[7, 480], wide[9, 3] = np.nan, np.inf, np.nan
    weight = (np.arange(500) >= 250).astype(np.float32)[None].repeat(300, 0)
    got = whole(count, wide, layer, weight, Region.of_shape(shape))
    reach = Bands(count).reach_px
    np.testing.assert_array_equal(got[:, 250 + reach :], layer[:, 250 + reach :].astype(np.float32))
    np.testing.assert_array_equal(got[:, : 250 - reach], wide[:, : 250 - reach])
    assert reach == 0 or (got[:, 250 + reach // 2] != layer[:, 250 + reach // 2]).any()


def test_the_reach_is_no_smaller_than_stated() -> None:
    """One pixel more of the weight changes a pixel `reach_px` away, and none beyond."""
    for count in (2, 3, 5):
        reach, shape = Bands(count).reach_px, (4 * Bands(count).reach_px + 9,) * 2
        below, layer = np.zeros((*shape, 1)), np.full((*shape, 1), 60000, np.uint16)
        rng = np.random.default_rng(0)
        layer = (layer * rng.random(layer.shape)).astype(np.uint16)
        changed = np.zeros(shape, bool)
        for at in (2 * reach, 2 * reach + 1):
            one = np.zeros(shape, np.float32)
            one[at, at] = 1
            changed[:] = (whole(count, below, layer, one, Region.of_shape(shape)) != 0)[:, :, 0]
            rows, columns = np.nonzero(changed)
            assert max(abs(rows - at).max(), abs(columns - at).max()) <= reach


def test_wrong_counts() -> None:
    for count in (0, -1, 11):
        with pytest.raises(UsageError, match="bands:1 to bands:10"):
            Bands(count)
