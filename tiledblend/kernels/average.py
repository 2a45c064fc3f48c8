"""The weighted mean of layers: sum(w I) / sum(w), alpha like a colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.blend import Contribution, Rule, unmultiplied, weight_of


def _average_strip(
    colours: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[np.float32] | None],
    ground: NDArray[np.float32],
    select: bool,
) -> NDArray[np.float32]:
    total = np.zeros(colours[0].shape, np.float32)
    weight_sum = np.zeros(colours[0].shape, np.float32)
    alone = np.full(colours[0].shape, -1, np.int16) if select else None
    for i, (colour, weight) in enumerate(zip(colours, weights, strict=True)):
        w = np.ones(colour.shape, np.float32) if weight is None else weight
        term = np.multiply(colour, w, dtype=np.float32)
        if alone is not None:
            np.copyto(term, np.float32(0), where=w == 0)
            alone[w != 0] = np.where(alone[w != 0] == -1, i, -2)
        total += term
        weight_sum += w
    nothing = weight_sum == 0
    np.copyto(weight_sum, np.float32(1), where=nothing)
    total /= weight_sum
    np.copyto(total, ground, where=nothing)
    if alone is not None:
        for i, colour in enumerate(colours):
            np.copyto(total, colour, where=alone == i)
    return total


def _average_alpha(
    layers: Sequence[Contribution], background: NDArray[np.float32], full: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = layers[0].colour.shape
    total = np.zeros(shape, np.float32)
    weight_sum = np.zeros(shape[:2], np.float32)
    alpha_sum = np.zeros(shape[:2], np.float32)
    for layer in layers:
        weight = weight_of(layer, shape[:2])
        term = layer.colour.astype(np.float32) * weight[:, :, None]
        # The first term is taken as it is, so that a negative zero survives.
        grown = np.where((weight_sum == 0)[:, :, None], term, total + term)
        total = np.where((weight == 0)[:, :, None], total, grown)
        weight_sum += weight
        alpha_sum += weight if layer.alpha is None else weight * layer.alpha
    # Alpha is averaged as a colour channel is.
    colour = unmultiplied(total, weight_sum, background)
    nothing = weight_sum == 0
    alpha = alpha_sum / np.where(nothing, np.float32(1), weight_sum)
    return colour, np.where(nothing, background[-1] / full, alpha).astype(np.float32)


AVERAGE = Rule(_average_strip, _average_alpha)
