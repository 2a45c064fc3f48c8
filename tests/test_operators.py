"""The operators against the specification's own formulas in float64, and worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_modes
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledblend.kernels.operators import OPERATORS, Operator, operated


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_against_float64(operator: Operator, dtype: Any, full: float) -> None:
    rng = np.random.default_rng(1)
    below = (rng.random((40, 50, 3)) * full).astype(np.float32)
    layer = (rng.random((40, 50, 3)) * full).astype(dtype)
    below[0, :, :], layer[1, :, :] = full, full
    below[2, :, :], layer[3, :, :] = 0, 0
    alpha = rng.random((40, 50)).astype(np.float32)
    alpha[5], alpha[6] = 0, 1
    expected = reference_modes.operator(operator, below.astype(float), layer.astype(float), full)
    got = operated(operator, below, layer, full)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-6 * full
    a = alpha[..., None].astype(float)
    got = operated(operator, below, layer, full, alpha)
    assert np.abs(got - ((1 - a) * layer + a * expected)).max() <= 1e-6 * full


def test_worked_examples() -> None:
    """White and black are neutral where the specification says so."""
    below, layer = np.float32([[[0, 100, 255]]]), np.uint8([[[255, 255, 255]]])
    assert operated("multiply", below, layer, 255).ravel().tolist() == [0, 100, 255]
    assert operated("screen", below, layer * 0, 255).ravel().tolist() == [0, 100, 255]
    assert operated("darken", below, layer, 255).ravel().tolist() == [0, 100, 255]
    assert operated("lighten", below, layer, 255).ravel().tolist() == [255, 255, 255]
    assert operated("difference", below, layer, 255).ravel().tolist() == [255, 155, 0]
    assert operated("normal", below, layer, 255).ravel().tolist() == [255, 255, 255]


def test_nothing_shows_through_a_transparent_backdrop() -> None:
    below = np.float32([[[np.nan], [np.inf], [7]]])
    got = operated("multiply", below, np.float32([[[1], [2], [3]]]), 1, np.zeros((1, 3), np.float32))
    assert got.ravel().tolist() == [1, 2, 3]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    operator=st.sampled_from(OPERATORS),
    seed=st.integers(0, 999),
    y=st.integers(0, 30),
    x=st.integers(0, 30),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    with_alpha=st.booleans(),
)
def test_a_cut_is_that_part_of_the_whole(
    operator: Operator, seed: int, y: int, x: int, height: int, width: int, with_alpha: bool
) -> None:
    rng = np.random.default_rng(seed)
    below, layer = (rng.random((2, 40, 40, 3)) * 255).astype(np.float32)
    alpha = rng.random((40, 40)).astype(np.float32) if with_alpha else None
    whole = operated(operator, below, layer, 255, alpha)
    at = slice(y, y + height), slice(x, x + width)
    part = operated(operator, below[at], layer[at], 255, None if alpha is None else alpha[at])
    np.testing.assert_array_equal(part, whole[at])
