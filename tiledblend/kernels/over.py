"""Layers from the bottom to the top: out = w I + (1 - w) out (Porter and Duff 1984, over).

On a canvas with alpha colours are composited premultiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.blend import Contribution, Rule, unmultiplied, weight_of


def _over_strip(
    colours: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[np.float32] | None],
    ground: NDArray[np.float32],
    select: bool,
) -> NDArray[np.float32]:
    """select: float images keep NaN, infinities and signs of the layer that alone decides; integers are exact
    without."""
    total = ground
    for colour, weight in zip(colours, weights, strict=True):
        total = laid_over(total, colour, weight, select)
    return total


def laid_over(
    below: NDArray[np.float32], colour: NDArray[Any], weight: NDArray[np.float32] | None, select: bool
) -> NDArray[np.float32]:
    """One layer over what lies below it: samples and weights of one shape, weight None for 1; below may be broadcast.

    select: as of a strip.
    """
    if weight is None:
        return colour.astype(np.float32)
    below = np.broadcast_to(below, colour.shape)
    mixed = np.multiply(colour, weight, dtype=np.float32)
    mixed += (np.float32(1) - weight) * below
    if select:
        np.copyto(mixed, colour, where=weight == 1)
        np.copyto(mixed, below, where=weight == 0)
    return mixed


def _over_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], full: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = layers[0].colour.shape
    alpha = np.full(shape[:2], background[-1] / full, np.float32)
    premultiplied = np.broadcast_to(background[:-1] * (background[-1] / full), shape).astype(np.float32)
    for layer in layers:
        premultiplied, alpha = laid_over_alpha(premultiplied, alpha, layer.colour, weight_of(layer, shape[:2]))
    return unmultiplied(premultiplied, alpha, background), alpha


def laid_over_alpha(
    premultiplied: NDArray[np.float32], alpha: NDArray[np.float32], colour: NDArray[Any], weight: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One layer over what lies below it: colours (y, x, c), that below premultiplied by its alpha (y, x)."""
    rest = np.float32(1) - weight
    own = colour.astype(np.float32)
    mixed = own * weight[:, :, None] + premultiplied * rest[:, :, None]
    mixed = np.where((weight == 1)[:, :, None], own, mixed)
    premultiplied = np.where((weight == 0)[:, :, None], premultiplied, mixed)
    alpha = weight + rest * alpha
    return premultiplied, alpha


OVER = Rule(_over_strip, _over_alpha)
