"""Tiles for eyes: a view of a composite, cut into squares of a level, coloured, as PNG. Nothing here knows of HTTP."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.composed import CanvasViews, ComposedSource, canvas_views
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.look.edges import COLOURS, edge_lines
from tiledblend.look.preview import FAINTEST_GREY, channel_colours
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha, RasterSource

TILE = 512
"""Side in pixels of a tile."""
CACHE_BYTES = 256 << 20
"""Of pixels that are kept for the next look at them."""
LINE_PX = 3
MOST_OVERLAP = 8
_PERCENTILES = (0.1, 99.9)

Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Channel:
    """How a channel is drawn: `low` black, `high` in its full colour (RRGGBB), channels added."""

    index: int
    colour: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if len(self.colour) != 6 or set(self.colour.upper()) - set("0123456789ABCDEF"):
            raise UsageError(f"colour {self.colour!r} is not of the form RRGGBB")
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            raise UsageError(f"display range {self.low} to {self.high} must be finite")


@dataclass(frozen=True, slots=True)
class View:
    """One picture to choose. id: in addresses. name: for people. kind: what it shows."""

    id: str
    name: str
    kind: Literal["result", "image", "weight", "edge"]
    source: RasterSource
    colour: str = ""


class Gallery:
    """All there is to see of a result or a planned composite, on one canvas, and its tiles.

    title, note: for people. shape: (y, x) of level 0. levels: each half the one before, rounded up.
    views: to choose from, the result first; edges: to be laid over them.
    """

    def __init__(self, title: str, views: Sequence[View], edges: Sequence[View], note: str | None = None) -> None:
        self.title, self.note = title, note
        self.views, self.edges = tuple(views), tuple(edges)
        self.source = self.views[0].source
        self._by_id = {view.id: view for view in (*self.views, *self.edges)}
        self._cache = _PixelCache(CACHE_BYTES)
        self._channels: tuple[Channel, ...] | None = None

    @classmethod
    def of_composite(cls, composite: Composite) -> Gallery:
        """What blend would make, rendered where it is looked at."""
        names = [Path(layer.image.spec.path).name for layer in reversed(composite.layers)]
        title = names[0] if len(names) == 1 else f"planned: {' over '.join(names)}"
        return cls(title, *_views(canvas_views(composite)))

    @classmethod
    def of_result(cls, uri: str, composite: Composite | None, note: str | None = None) -> Gallery:
        """A stored result, and what it was made from where that is known."""
        stored = Composite([Layer(open_source(uri))])
        result = View("result", "result", "result", ComposedSource(stored, uri))
        if composite is None:
            return cls(Path(uri).name, [result], [], note)
        views, edges = _views(canvas_views(composite))
        return cls(Path(uri).name, [result, *views[1:]], edges, note)

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of level 0."""
        return self.source.shape

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.source.levels)

    @property
    def has_channels(self) -> bool:
        """False for 8-bit RGB, which is shown as it is."""
        return not (self.source.is_rgb and self.source.dtype == np.uint8)

    def channels(self) -> tuple[Channel, ...]:
        """The result's channels as they are drawn at first: 8-bit grey as it is, others (a mask of 0 and 1, too)
        stretched between the 0.1 and 99.9 percentiles of the coarsest level."""
        if self._channels is None:
            level = self.levels - 1
            pixels = self.source.read(Region.of_shape(self.source.levels[level].shape), level)
            self._channels = _first_channels(pixels, self.source)
        return self._channels

    def tile(
        self,
        view_id: str,
        level: int,
        row: int,
        column: int,
        channels: Sequence[Channel] | None = None,
        overlap: int = 0,
    ) -> bytes:
        """A PNG of TILE x TILE pixels or less at the image's right and lower ends.

        channels: those drawn, None for all as they are drawn at first; no matter for 8-bit RGB, weights and edges.
        overlap: pixels of the tiles that adjoin, added on their sides: room for smoothing.
        Raises UsageError for what is not there, BadInputError where pixels cannot be read.
        """
        view = self._by_id.get(view_id)
        if view is None or not 0 <= level < self.levels:
            raise UsageError(f"no view {view_id!r} of level {level}")
        bounds = Region.of_shape(view.source.levels[level].shape)
        region = Region(row * TILE, column * TILE, (row + 1) * TILE, (column + 1) * TILE) & bounds
        if row < 0 or column < 0 or region.is_empty:
            raise UsageError(f"no tile {row}, {column} on level {level}")
        if not 0 <= overlap <= MOST_OVERLAP:
            raise UsageError(f"overlap {overlap} must be from 0 to {MOST_OVERLAP}")
        return _png(self._picture(view, level, region.grow(overlap) & bounds, channels))

    def _picture(self, view: View, level: int, region: Region, channels: Sequence[Channel] | None) -> Pixels:
        if view.kind == "edge":
            around = region.grow(LINE_PX + 1) & Region.of_shape(view.source.levels[level].shape)
            lines = edge_lines(self._pixels(view, level, around)[:, :, 0], view.colour, LINE_PX)
            return lines[region.shift(-around.y0, -around.x0).slices]
        pixels = self._pixels(view, level, region)
        if view.kind == "weight" or not self.has_channels:
            return pixels
        return coloured(pixels, self.channels() if channels is None else channels, view.source)

    def _pixels(self, view: View, level: int, region: Region) -> Pixels:
        """Of any region, from whole tiles, each of which is read once and kept."""
        bounds = Region.of_shape(view.source.levels[level].shape)
        out: Pixels = np.empty((*region.shape, view.source.channels), view.source.dtype)
        for y in range(region.y0 // TILE * TILE, region.y1, TILE):
            for x in range(region.x0 // TILE * TILE, region.x1, TILE):
                tile = Region(y, x, y + TILE, x + TILE) & bounds
                part = tile & region
                pixels = self._cache.get((view.id, level, tile), partial(view.source.read, tile, level))
                out[part.shift(-region.y0, -region.x0).slices] = pixels[part.shift(-y, -x).slices]
        return out


def _views(views: CanvasViews) -> tuple[list[View], list[View]]:
    layers = views.result.composite.layers
    shown = [View("result", "result", "result", views.result)]
    shown += [View(f"image-{i}", _called(i, layers), "image", source) for i, source in enumerate(views.images)]
    shown += [
        View(f"weight-{i}", f"mask of {_place(i, layers)}", "weight", source)
        for i, source in enumerate(views.weights)
        if source is not None
    ]
    lines = [(i, source) for i, source in enumerate(views.edges) if source is not None]
    edges = [
        View(f"edge-{i}", f"edge of {_place(i, layers)}", "edge", source, COLOURS[n % len(COLOURS)])
        for n, (i, source) in enumerate(lines)
    ]
    return (shown[:1] if len(layers) == 1 and not lines else shown), edges


def _called(index: int, layers: Sequence[Layer]) -> str:
    return f"{_place(index, layers)}: {Path(layers[index].image.spec.path).name}"


def _place(index: int, layers: Sequence[Layer]) -> str:
    """base, overlay: the words of two layers; else layer and its number."""
    return ("base", "overlay")[index] if len(layers) == 2 else f"layer {index}"


def _first_channels(pixels: Pixels, source: RasterSource) -> tuple[Channel, ...]:
    count = source.channels - (source.alpha is not Alpha.NONE)
    colours = [f"{r:02X}{g:02X}{b:02X}" for r, g, b in np.rint(channel_colours(source, count) * 255).astype(int)]
    is_grey = count == 1 and source.dtype == np.uint8 and pixels[..., 0].max() >= FAINTEST_GREY
    ranges = [(0.0, 255.0)] if is_grey else [_range(pixels[..., c]) for c in range(count)]
    return tuple(Channel(c, colours[c], *ranges[c]) for c in range(count))


def _range(values: Pixels) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, _PERCENTILES))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (min(0.0, low), max(1.0, high))


def coloured(pixels: Pixels, channels: Sequence[Channel], source: RasterSource) -> Pixels:
    """uint8 RGB, or RGBA where the source has alpha: the channels' values between low and high in their colours, added.

    Elementwise but for the sum over channels: neighbouring tiles meet without a seam.
    """
    count = source.channels - (source.alpha is not Alpha.NONE)
    total = np.zeros((*pixels.shape[:2], 3), np.float32)
    for channel in channels:
        if not 0 <= channel.index < count:
            raise UsageError(f"channel {channel.index} must be from 0 to {count - 1}")
        span = channel.high - channel.low or 1.0
        value = (pixels[:, :, channel.index].astype(np.float32) - np.float32(channel.low)) / np.float32(span)
        value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
        for i in range(3):
            share = int(channel.colour[2 * i : 2 * i + 2], 16)
            if share:
                total[:, :, i] += value * np.float32(share)
    picture = np.clip(np.rint(total), 0, 255).astype(np.uint8)
    if source.alpha is Alpha.NONE:
        return picture
    full = 1.0 if source.dtype.kind == "f" else float(np.iinfo(source.dtype).max)
    alpha = np.rint(np.clip(pixels[:, :, -1:] * np.float32(255 / full), 0, 255)).astype(np.uint8)
    return np.concatenate([picture, alpha], axis=2)


def _png(picture: Pixels) -> bytes:
    """Lossless; fast rather than small: it goes to the same machine."""
    channels = picture.shape[2]
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
    plain = np.ascontiguousarray(picture)
    data = plain if order is None else cv2.cvtColor(plain, order)
    done, encoded = cv2.imencode(".png", data, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return encoded.tobytes()


class _PixelCache:
    """The tiles looked at last, up to a number of bytes. Who asks for one that is being read waits for it."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[Any, Pixels] = OrderedDict()
        self._reading: dict[Any, Future[Pixels]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, read: Callable[[], Pixels]) -> Pixels:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            known = self._reading.get(key)
            future: Future[Pixels] = known or self._reading.setdefault(key, Future())
        if known is not None:
            return known.result()
        try:
            pixels = np.ascontiguousarray(read())
        except BaseException as error:
            self._forget(key, None)
            future.set_exception(error)
            raise
        self._forget(key, pixels)
        future.set_result(pixels)
        return pixels

    def _forget(self, key: Any, pixels: Pixels | None) -> None:
        """Nobody waits for this one any more; keep it, if it was read."""
        with self._lock:
            del self._reading[key]
            if pixels is None:
                return
            self._kept[key] = pixels
            self._bytes += pixels.nbytes
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
