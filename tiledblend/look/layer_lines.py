"""A plan's layers as lines: what each is, where it lies, how its edge looks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tiledblend.errors import one_line

if TYPE_CHECKING:
    from tiledblend.run.layers import LayerPlan


def layers_text(layers: Iterable[LayerPlan]) -> list[str]:
    """Three or so lines per layer, bottom first."""
    return [line for number, layer in enumerate(layers) for line in _lines(number, layer)]


def _lines(number: int, layer: LayerPlan) -> list[str]:
    told = [_what(layer), _where(layer)]
    if layer.mask is not None:
        told.append(_mask(layer))
    if layer.bands is not None:
        told.append(f"blended in {layer.bands} bands")
    if any(layer.feather_px):
        told.append(_edge(layer))
    if layer.opacity != 1:
        told.append(f"opacity {layer.opacity:g}")
    if layer.operator != "normal":
        told.append(f"operator {layer.operator}")
    return [f"{f'layer {number}' if i == 0 else '':<9}{one_line(text)}" for i, text in enumerate(told)]


def _what(layer: LayerPlan) -> str:
    size = layer.pixel_size_um
    um = "pixel size not known" if size is None else f"{_pair(size)} um/px"
    series = "" if layer.series is None else f" #{layer.series}"
    return f"{_name(layer.image)}{series}: {layer.shape[0]:,} x {layer.shape[1]:,} px (y x x), {um}"


def _where(layer: LayerPlan) -> str:
    y0, x0, y1, x1 = layer.place
    text = f"lies on y {y0:,} to {y1:,}, x {x0:,} to {x1:,}: {_share(layer.covers)} of the canvas"
    if layer.on_canvas < 1:
        text += f"; {_share(layer.on_canvas)} of the layer is on it"
    return text if layer.alone is None else f"{text}; decides alone on {_share(layer.alone)}"


def _mask(layer: LayerPlan) -> str:
    parts = [f"{'outside' if layer.invert else 'inside'} of mask {_name(layer.mask or '')}"]
    if layer.classes:
        parts.append(f"class {' and '.join(layer.classes)}")
    if layer.threshold is not None:
        parts.append(f"at or above {layer.threshold:g}")
    elif layer.values != "auto":
        parts.append(f"values {layer.values}")
    if layer.grow:
        parts.append(f"grown by {layer.grow}")
    return ", ".join(parts)


def _edge(layer: LayerPlan) -> str:
    """A feather is a sigma: it looks some three times as wide."""
    in_um = "" if layer.feather_um is None else f" ({_pair(layer.feather_um)} um)"
    wide = "" if layer.edge_um is None else f" ({_pair(layer.edge_um)} um)"
    within = f"from 5 to 95 % within {_pair(layer.edge_px)} px{wide}"
    return f"feather {_pair(layer.feather_px)} px{in_um}: an edge goes {within}"


def _pair(values: tuple[float, float]) -> str:
    """One number where both are the same to four digits."""
    first, second = (f"{value:.4g}" for value in values)
    return first if first == second else f"{first} x {second}"


def _share(part: float) -> str:
    return f"{100 * part:.1f} %" if part >= 0.0005 or part == 0 else "under 0.1 %"


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path
