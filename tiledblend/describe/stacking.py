"""The canvas of stacked layers: their colour channels one after another, with names, colours and display windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from tiledblend.containers.omezarr.documents import PALETTE, default_channels
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.layers import Layer
from tiledblend.errors import BadInputError


def stacked_canvas(given: Canvas, layers: Sequence[Layer]) -> Canvas:
    """The canvas with what it leaves open taken from the layers. Raises BadInputError for another channel count."""
    channels = sum(layer.colours for layer in layers)
    if given.channels not in (None, channels):
        raise BadInputError(
            f"canvas has {given.channels} channels, but the stacked layers have {channels}; leave channels out"
        )
    base = layers[0].image
    return replace(
        given,
        channels=channels,
        has_alpha=False,
        dtype=given.dtype or base.dtype.name,
        is_rgb=(len(layers) == 1 and base.is_rgb) if given.is_rgb is None else given.is_rgb,
        channel_names=given.channel_names or _unique([name for layer in layers for name in _names(layer)]),
        channel_colors=given.channel_colors or tuple(_colors(layers)),
        channel_windows=given.channel_windows or tuple(window for layer in layers for window in _windows(layer)),
    )


def _names(layer: Layer) -> Sequence[str]:
    """The image's own, else its file's, with each channel's."""
    image, count = layer.image, layer.colours
    if len(image.info.channel_names) >= count:
        return image.info.channel_names[:count]
    stem = PurePosixPath(image.spec.path).name.split(".")[0] or image.name
    if count == 1:
        return (stem,)
    return [f"{stem} {name}" for name in default_channels(count, is_rgb=image.is_rgb)[0]]


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names; one that was there before gets a number.

    >>> _unique(["DAPI", "CD3", "DAPI", "DAPI"])
    ('DAPI', 'CD3', 'DAPI (2)', 'DAPI (3)')
    """
    done: list[str] = []
    for name in names:
        unique, number = name, 1
        while unique in done:
            number += 1
            unique = f"{name} ({number})"
        done.append(unique)
    return tuple(done)


def _colors(layers: Sequence[Layer]) -> Iterator[str]:
    number = 0
    for layer in layers:
        image, count = layer.image, layer.colours
        own = image.info.channel_colors
        if len(own) < count:
            rgb = default_channels(count, is_rgb=True)[1] if image.is_rgb else ()
            own = rgb or tuple(PALETTE[(number + i) % len(PALETTE)] for i in range(count))
        yield from own[:count]
        number += count


def _windows(layer: Layer) -> Sequence[tuple[float, float] | None]:
    own = layer.image.info.channel_windows
    return own[: layer.colours] if len(own) >= layer.colours else (None,) * layer.colours
