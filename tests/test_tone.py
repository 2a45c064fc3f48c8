"""Tone tables against float64, and fits that find what was done to an image, whatever covers a part of it."""

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
from tiledblend.kernels.tone import Tone
from tiledblend.kernels.tone_fit import KINDS, fit_tone

Array = NDArray[Any]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_gain_and_offset_against_float64(dtype: Any, white: float, channels: int) -> None:
    rng = np.random.default_rng(channels)
    pixels = (rng.random((30, 41, channels)) * white).astype(dtype)
    gain, offset = rng.uniform(0.5, 1.6, channels), rng.uniform(-0.1, 0.1, channels) * white
    tone = Tone(tuple(gain), tuple(offset))
    expected = reference_modes.tone(pixels.astype(float), gain, offset)
    for given_pixels in (pixels, pixels.astype(np.float32)):  # as stored, and as resampling hands it over
        got = tone.of(given_pixels, np.dtype(dtype))
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-6 * white
    np.testing.assert_array_equal(tone.of(pixels), tone.of(pixels.astype(np.float32)))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_optical_density_against_float64(dtype: Any, white: float) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, white + 1, (30, 41, 3), dtype)
    pixels[0], pixels[1] = 0, white
    tone, od = Tone(od=(0.7, 1.0, 1.9)), np.array([0.7, 1.0, 1.9])
    expected = reference_modes.tone(pixels.astype(float), od=od, white=white)
    assert np.abs(tone.of(pixels) - expected).max() <= 1e-6 * white
    assert (tone.of(pixels)[1] == white).all()
    np.testing.assert_array_equal(tone.of(pixels), tone.of(pixels.astype(np.float32), np.dtype(dtype)))
    between = 1 + rng.random((20, 20, 3)).astype(np.float32) * (white - 1)
    expected = reference_modes.tone(between.astype(float), od=od, white=white)
    assert np.abs(tone.of(between, np.dtype(dtype)) - expected).max() <= 0.5  # on the line between two entries


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    channels=st.sampled_from([1, 3, 7]),
    od=st.booleans(),
    resampled=st.booleans(),
    planar=st.booleans(),
    at=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)),
)
def test_a_cut_is_that_part_of_the_whole(
    seed: int, dtype: Any, channels: int, od: bool, resampled: bool, planar: bool, at: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max
    od = od and dtype is not np.float32
    pixels = (rng.random((40, 40, channels)) * white).astype(np.float32 if resampled else dtype)
    if planar:
        pixels = np.moveaxis(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), 0, 2)
    numbers = tuple(rng.uniform(0.4, 2, channels))
    tone = Tone(od=numbers) if od else Tone(numbers, tuple(rng.uniform(-0.1, 0.1, channels) * white))
    part = slice(at[0], at[0] + at[2]), slice(at[1], at[1] + at[3])
    whole = tone.of(pixels, np.dtype(dtype))
    np.testing.assert_array_equal(tone.of(pixels[part], np.dtype(dtype)), whole[part])


def test_wrong_numbers() -> None:
    for numbers in ({}, {"gain": (1.0,)}, {"gain": (1.0,), "offset": (0.0,), "od": (1.0,)}, {"od": (np.nan,)}):
        with pytest.raises(UsageError):
            Tone(**numbers)
    with pytest.raises(UsageError, match="above 0"):
        Tone((0.0,), (0.0,))
    with pytest.raises(UsageError, match="white point"):
        Tone(od=(1.5,)).of(np.zeros((1, 1, 1), np.float32))


# --- fits


def tissue(seed: int, side: int = 220) -> Array:
    """float64 (y, x, 3), 0 to 255: half of it glass, stained spots of many tones, noise."""
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter(rng.random((side, side)), 4)
    stain = np.clip((spots - np.median(spots)) / (spots.max() - np.median(spots)), 0, 1)[..., None]
    return np.asarray(244 - stain * np.array([90, 190, 110]) + rng.normal(0, 2, (side, side, 3)))


def pixels(values: Array, dtype: Any = np.uint8) -> Array:
    full = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    scaled = values * (full / 255)
    return scaled.astype(dtype) if full == 1 else np.clip(np.rint(scaled), 0, full).astype(dtype)


def flat(image: Array) -> Array:
    return image.reshape(-1, image.shape[2])


GAIN, OFFSET = np.array([0.9, 1.15, 1.0]), np.array([14.0, -9.0, 3.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("covering", ["nothing", "other tissue", "a dark fold", "noise", "white"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_known_gain_and_offset_are_found(dtype: Any, covering: str, seed: int) -> None:
    """Within 1 % and 1 level of 255, with a tenth of the layer covered by what is not there below."""
    layer = tissue(seed) * 0.9
    below = pixels(layer * GAIN + OFFSET, dtype)
    rng = np.random.default_rng(seed)
    cover = {
        "nothing": layer,
        "other tissue": tissue(seed + 50),
        "a dark fold": layer * 0.4,
        "noise": rng.uniform(0, 255, layer.shape),
        "white": np.full(layer.shape, 250.0),
    }[covering]
    layer[:22] = cover[:22]
    fit = fit_tone("linear", flat(pixels(layer, dtype)), flat(below), np.dtype(dtype))
    assert fit.tone is not None, fit.reason
    full = 1 if dtype is np.float32 else np.iinfo(dtype).max
    np.testing.assert_allclose(fit.tone.gain, GAIN, rtol=0.01)
    np.testing.assert_allclose(np.array(fit.tone.offset) * 255 / full, OFFSET, atol=1)


@pytest.mark.parametrize("by", ["offset", "gain", "od"])
def test_the_other_kinds_find_what_was_done(by: Any) -> None:
    layer = tissue(7) * 0.95
    expected = {"offset": 11.0, "gain": 0.83, "od": 1.4}[by]
    below = {
        "offset": layer + 11,
        "gain": layer * 0.83,
        "od": reference_modes.tone(pixels(layer).astype(float), od=1.4),
    }[by]
    covered = pixels(layer)
    covered[:22] = pixels(tissue(9))[:22]
    tone = fit_tone(by, flat(covered), flat(pixels(below)), np.dtype(np.uint8)).tone
    assert tone is not None
    if by == "offset":
        assert tone.gain == (1, 1, 1)
        np.testing.assert_allclose(tone.offset, expected, atol=0.5)
    else:
        np.testing.assert_allclose(tone.od if by == "od" else tone.gain, expected, rtol=0.01)
        assert not any(tone.offset)


def test_clipped_values_do_not_drive_a_fit() -> None:
    layer = tissue(3)
    below = pixels(layer * 1.3 - 10)  # white glass is cut at 255
    assert (below == 255).mean() > 0.3
    tone = fit_tone("linear", flat(pixels(layer)), flat(below), np.dtype(np.uint8)).tone
    assert tone is not None
    np.testing.assert_allclose(tone.gain, 1.3, rtol=0.01)
    np.testing.assert_allclose(tone.offset, -10, atol=1.5)


@pytest.mark.parametrize("by", KINDS)
def test_a_fit_does_not_depend_on_the_order_of_pairs(by: Any) -> None:
    layer, below = flat(pixels(tissue(4))), flat(pixels(tissue(4) * 0.9 + 5))
    mixed = np.random.default_rng(0).permutation(len(layer))
    assert fit_tone(by, layer, below, np.dtype(np.uint8)) == fit_tone(
        by, layer[mixed], below[mixed], np.dtype(np.uint8)
    )


def test_what_cannot_be_fitted_says_why() -> None:
    few = fit_tone("linear", np.full((10, 1), 9), np.full((10, 1), 9), np.dtype(np.uint8))
    assert few.tone is None
    assert "too few" in few.reason
    x = np.random.default_rng(0).integers(20, 200, (5000, 1))
    against = fit_tone("linear", x, 220 - x, np.dtype(np.uint8))
    assert against.tone is None
    assert "does not agree" in against.reason
    one_tone = fit_tone("linear", np.full((999, 1), 90), np.full((999, 1), 120), np.dtype(np.uint8))
    assert one_tone.tone == Tone((1.0,), (30.0,))
