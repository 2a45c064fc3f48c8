"""How a layer's colours meet those below it: the separable blend modes of W3C Compositing and Blending Level 1.

https://www.w3.org/TR/compositing-1/#blendingseparable: B(Cb, Cs) with Cb the backdrop's colour and Cs the layer's.
Where the backdrop has alpha, Cs becomes (1 - ab) Cs + ab B(Cb, Cs) before it is composited (section 10). Full scale is
the dtype's maximum, 1 for floats. Every operation is elementwise in float32 in one order: the same bits for every cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tiledblend.kernels.blend import Contribution, Rule, unmultiplied, weight_of
from tiledblend.kernels.over import laid_over, laid_over_alpha

Operator = Literal["normal", "multiply", "screen", "darken", "lighten", "difference"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

Colours = NDArray[np.float32]


def operated(
    operator: Operator,
    below: Colours,
    layer: NDArray[Any],
    full: float,
    backdrop_alpha: NDArray[np.float32] | None = None,
) -> Colours:
    """float32 colours of a layer (y, x, c) as they are composited over what lies below, by its operator.

    below, layer: in units of full scale `full`. backdrop_alpha: float32 (y, x) in [0, 1]; None: the backdrop is opaque.

    >>> below, layer = np.float32([[[100]]]), np.uint8([[[51]]])
    >>> [operated(name, below, layer, 255).item() for name in ("multiply", "screen", "difference")]
    [20.0, 131.0, 49.0]
    """
    own = layer.astype(np.float32)
    if operator == "normal":
        return own
    # Float images may hold NaN and infinities: they come through as IEEE 754 says, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        mixed = _FORMULAS[operator](below, own, np.float32(full))
        if backdrop_alpha is None:
            return mixed
        alpha = backdrop_alpha[:, :, None]
        weighted: Colours = (np.float32(1) - alpha) * own + alpha * mixed
    # What is hidden may be infinite or NaN: it must not come back as 0 x NaN.
    return np.where(alpha == 0, own, weighted)


def _multiply(below: Colours, layer: Colours, full: np.float32) -> Colours:
    return below * layer / full


def _screen(below: Colours, layer: Colours, full: np.float32) -> Colours:
    return below + layer - below * layer / full


def _difference(below: Colours, layer: Colours, full: np.float32) -> Colours:
    return np.abs(below - layer)


_FORMULAS: dict[str, Callable[[Colours, Colours, np.float32], Colours]] = {
    "multiply": _multiply,
    "screen": _screen,
    "darken": lambda below, layer, full: np.minimum(below, layer),
    "lighten": lambda below, layer, full: np.maximum(below, layer),
    "difference": _difference,
}


def operating(operators: Sequence[Operator], full: float) -> Rule:
    """The rule by which layers with these operators, bottom first, lie one over the other."""

    def strip(
        colours: Sequence[NDArray[Any]],
        weights: Sequence[NDArray[np.float32] | None],
        ground: NDArray[np.float32],
        select: bool,
    ) -> NDArray[np.float32]:
        total = ground
        for operator, colour, weight in zip(operators, colours, weights, strict=True):
            total = laid_over(total, operated(operator, total, colour, full), weight, select)
        return total

    def alpha(
        layers: Sequence[Contribution], background: NDArray[np.float32], scale: np.float32
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        shape = layers[0].colour.shape
        alpha = np.full(shape[:2], background[-1] / scale, np.float32)
        premultiplied = np.broadcast_to(background[:-1] * (background[-1] / scale), shape).astype(np.float32)
        for operator, layer in zip(operators, layers, strict=True):
            below = unmultiplied(premultiplied, alpha, background)
            colour = operated(operator, below, layer.colour, full, alpha)
            premultiplied, alpha = laid_over_alpha(premultiplied, alpha, colour, weight_of(layer, shape[:2]))
        return unmultiplied(premultiplied, alpha, background), alpha

    return Rule(strip, alpha)
