"""Halving against the integer and float formulas, pixel by pixel in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiledblend.kernels.halve import halve_tile, is_planar

Array = NDArray[Any]


def quads(pixels: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels under each output pixel, missing neighbours replicated."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return padded[0::2, 0::2], padded[0::2, 1::2], padded[1::2, 0::2], padded[1::2, 1::2]


def planar(pixels: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), 0, 2)


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 3, 4, 7]))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9999), shape=SHAPES, dtype=st.sampled_from(["uint8", "uint16"]), is_plane=st.booleans())
def test_integers(seed: int, shape: tuple[int, int, int], dtype: str, is_plane: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    a, b, c, d = (q.astype(np.uint32) for q in quads(pixels))
    got = halve_tile(planar(pixels) if is_plane else pixels)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, (a + b + c + d + 2) >> 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9999), shape=SHAPES, is_plane=st.booleans())
def test_floats(seed: int, shape: tuple[int, int, int], is_plane: bool) -> None:
    pixels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    a, b, c, d = quads(pixels)
    got = halve_tile(planar(pixels) if is_plane else pixels)
    np.testing.assert_array_equal(got, ((a + b) + (c + d)) / np.float32(4))
    assert got.dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(8, 8, 4), (7, 5, 4), (1, 1, 4), (9, 2, 2)])
def test_alpha_weighs_colours(dtype: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    full = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    pixels = rng.random(shape) * full
    pixels[..., -1] *= rng.integers(0, 2, shape[:2])
    pixels = pixels.astype(dtype)
    four = np.stack([q.astype(float) for q in quads(pixels)])
    alpha = four[..., -1:]
    total = alpha.sum(0)
    colour = (four[..., :-1] * alpha).sum(0) / np.where(total > 0, total, 1)
    got = halve_tile(pixels, has_alpha=True).astype(float)
    rounding = 0.5 if full > 1 else 1e-6
    assert np.abs(got[..., :-1] - colour).max() <= rounding + 1e-9
    assert np.abs(got[..., -1:] - total / 4).max() <= rounding + 1e-9


def test_hidden_colours_do_not_show() -> None:
    pixels = np.array([[[9, 9, 9, 255], [200, 0, 0, 0]]], np.uint8)
    assert halve_tile(pixels, has_alpha=True).tolist() == [[[9, 9, 9, 128]]]
    hidden = np.array([[[0.5, 1.0], [np.inf, 0.0]]], np.float32)
    assert halve_tile(hidden, has_alpha=True).tolist() == [[[0.5, 0.5]]]


def test_the_extremes() -> None:
    for dtype in ("uint8", "uint16"):
        top = np.iinfo(dtype).max
        assert (halve_tile(np.full((6, 6, 3), top, dtype)) == top).all()
        assert (halve_tile(np.full((5, 5, 4), top, dtype), has_alpha=True) == top).all()
    assert np.isnan(halve_tile(np.array([[[np.inf], [-np.inf]]], np.float32))).all()


def test_memory_order_is_kept() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert is_planar(halve_tile(planar(pixels)))
    assert not is_planar(halve_tile(pixels))
