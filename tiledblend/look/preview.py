"""Small pictures of large images: a PNG of a result or of any source, and several side by side with captions."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiledblend.bytes.new_file import refuse_existing, write_new
from tiledblend.compose.composed import CanvasViews, WeightSource, canvas_views
from tiledblend.containers.omezarr.documents import default_channels
from tiledblend.describe.composite import Composite
from tiledblend.errors import BadInputError, RefusedError, UsageError
from tiledblend.geometry import Region, ceil_div, is_square
from tiledblend.kernels.contrast import display_range
from tiledblend.look.changes import CHANGED_COLOUR, changed_mask
from tiledblend.look.edges import COLOURS, edge_lines, with_lines
from tiledblend.look.scalebar import MIN_HEIGHT, ScaleBar, fitting_bar, with_scale_bar
from tiledblend.run.changes import compare
from tiledblend.run.origin import origin_of
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha, RasterSource

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

MAX_SIZE = 8192
FAINTEST_GREY = 16
"""An 8-bit image of one channel that has no such value is a mask or labels: it is stretched to be seen."""
_BLOCK = 2048  # side of what is read at once
_MARGIN = 12
_CAPTION = 26


def preview(
    source: RasterSource | Composite | str | os.PathLike[str],
    out_png: str | os.PathLike[str],
    max_size: int = 1024,
    *,
    scale_bar: bool = True,
    seams: bool = False,
    weights: bool = False,
    changed: str | os.PathLike[str] | None = None,
    inputs: bool = False,
) -> dict[str, Any]:
    """Write a PNG whose longer side is at most `max_size`; never enlarged, never over an existing file.

    source: a result, any image, or a composite that was never written. scale_bar: draw one where the pixel size is
    known. seams: draw the layers' edges. weights: a second picture for each layer's weight, beside the first. Both
    need a composite, or a result whose inputs are still there. changed: an older result; a line is drawn round what
    differs from it in `source`, which is a result too.
    need a composite, or a result whose inputs are still there; inputs: wherever they lie, else beside the result only.

    Returns {"path", "shape", "level", "bytes", "scale_bar_um" (None: not drawn)}. Raises BadInputError, RefusedError,
    StorageError, UsageError.

    >>> import tempfile, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> preview(tb.Composite([tb.Layer(image)]), tempfile.mkdtemp() + "/small.png", max_size=200)["shape"]
    [150, 200]
    """
    _check_png(out_png)
    views: CanvasViews | None = None
    if isinstance(source, Composite):
        views = canvas_views(source)
        source = views.result
    else:
        source = _opened(source)
        if seams or weights:
            views = _views_of_result(source.spec.path, inputs=inputs)
    level = preview_level(source, max_size)
    picture = thumbnail(source, max_size)
    if seams and views:
        picture = _with_edges(picture, views, max_size)
    if changed is not None:
        picture = _with_changed(picture, changed, source)
    bar = picture_bar(source, picture.shape[:2]) if scale_bar else None
    if bar is not None:
        picture = with_scale_bar(picture, bar)
    if weights and views:
        shown = [weight for weight in views.weights if weight is not None]
        captions = [f"weight of {Path(weight.layer.image.spec.path).name}" for weight in shown]
        maps = [thumbnail(weight, max_size) for weight in shown]
        picture = _sheet([("result", picture), *zip(captions, maps, strict=True)])
    size = write_new(out_png, _png(picture))
    return {
        "path": str(out_png),
        "shape": list(picture.shape[:2]),
        "level": level,
        "bytes": size,
        "scale_bar_um": None if bar is None else bar.length_um,
    }


def _views_of_result(name: str, *, inputs: bool) -> CanvasViews:
    origin = origin_of(name, inputs=inputs)
    if origin is None:
        raise UsageError(f"{name}: is no result of tiledblend, so it has no layers whose edges or weights can be drawn")
    if origin.composite is None:
        raise (RefusedError if origin.withheld else BadInputError)(f"{name}: {origin.note}")
    return canvas_views(origin.composite)


def _with_changed(picture: Pixels, older: str | os.PathLike[str], source: RasterSource) -> Pixels:
    height, width = picture.shape[:2]
    inside = changed_mask(compare(older, source.spec.path), (height, width))
    # A border, so that what reaches the picture's end is closed there too.
    lines = edge_lines(np.pad(inside, 1), CHANGED_COLOUR, max(2, round(max(height, width) / 400)))
    return with_lines(picture, lines[1:-1, 1:-1])


def _with_edges(picture: Pixels, views: CanvasViews, max_size: int) -> Pixels:
    width = max(1, round(max(picture.shape[:2]) / 500))
    edges = [edge for edge in views.edges if edge is not None]
    for number, edge in enumerate(edges):
        weight = thumbnail(edge, max_size)[:, :, 0]
        picture = with_lines(picture, edge_lines(weight, COLOURS[number % len(COLOURS)], width))
    return picture


def picture_png(
    source: RasterSource,
    max_size: int,
    edges_of: CanvasViews | None = None,
    pixel_size_um: tuple[float, float] | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """(PNG, (height, width)) of a source for a page: with a scale bar, and the layers' edges when they are given.

    pixel_size_um: (y, x) where it is known and the source, such as a PNG, does not say it.
    """
    picture = thumbnail(source, max_size)
    if edges_of is not None:
        picture = _with_edges(picture, edges_of, max_size)
    if (bar := picture_bar(source, picture.shape[:2], pixel_size_um)) is not None:
        picture = with_scale_bar(picture, bar)
    return bytes(_png(picture)), (picture.shape[0], picture.shape[1])


def picture_bar(
    source: RasterSource, shape: tuple[int, ...], pixel_size_um: tuple[float, float] | None = None
) -> ScaleBar | None:
    """The scale bar of a picture of `source` that is (height, width) px large; None where its pixel size is not known
    or the picture is too small for one."""
    height, width = shape
    size = source.pixel_size_um or pixel_size_um
    if size is None or height < MIN_HEIGHT:
        return None
    return fitting_bar(size[1] * source.shape[1] / width, width, square=is_square(size))


def panel(
    pictures: Sequence[tuple[str, RasterSource | str | os.PathLike[str]]],
    out_png: str | os.PathLike[str],
    height: int = 512,
) -> dict[str, Any]:
    """Write a PNG of several images side by side, each `height` px high or less, with its caption below.

    pictures: (caption, source) from left to right. Returns {"path", "shape", "bytes"}.

    >>> import tempfile, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> sorted(panel([("base", image), ("again", image)], tempfile.mkdtemp() + "/both.png"))
    ['bytes', 'path', 'shape']
    """
    _check_png(out_png)
    picture = _sheet([(caption, _fitted(_opened(source), height)) for caption, source in pictures])
    size = write_new(out_png, _png(picture))
    return {"path": str(out_png), "shape": list(picture.shape[:2]), "bytes": size}


def _sheet(parts: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Pictures from left to right on white, captions below."""
    width = sum(part.shape[1] + _MARGIN for _, part in parts) + _MARGIN
    sheet = Image.new("RGB", (width, max(part.shape[0] for _, part in parts) + 2 * _MARGIN + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    left = _MARGIN
    for caption, part in parts:
        sheet.paste(Image.fromarray(part), (left, _MARGIN))
        box = (left - 1, _MARGIN - 1, left + part.shape[1], _MARGIN + part.shape[0])
        draw.rectangle(box, outline=(200, 200, 200))
        shown = _fitted_caption(caption, part.shape[1], font)
        draw.text((left + 1, _MARGIN + part.shape[0] + 6), shown, fill=(40, 40, 40), font=font)
        left += part.shape[1] + _MARGIN
    return np.asarray(sheet)


def _fitted_caption(caption: str, width: int, font: Any) -> str:
    """The caption, its middle left out where it would run into the next one."""
    shown, kept = caption, len(caption)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{caption[: kept // 2]}…{caption[len(caption) - (kept - kept // 2) :]}"
    return shown


def _fitted(source: RasterSource, height: int) -> Pixels:
    """Thumbnail of at most `height`; a smaller image is enlarged to it without smoothing, so that masks line up."""
    rows, columns = source.shape
    picture = thumbnail(source, max(1, round(height * max(1.0, columns / rows))))
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def preview_level(source: RasterSource, max_size: int) -> int:
    """The coarsest level that still has `max_size` pixels on its longer side; 0 when none has."""
    if not 1 <= max_size <= MAX_SIZE:
        raise UsageError(f"preview size {max_size} must be from 1 to {MAX_SIZE} pixels")
    enough = [index for index, level in enumerate(source.levels) if max(level.shape) >= max_size]
    return max(enough, default=0)


def thumbnail(source: RasterSource, max_size: int = 1024) -> Pixels:
    """uint8 RGB (h, w, 3) for eyes, longer side at most `max_size`, area-averaged from a pyramid level.

    8-bit RGB and weights as they are; deeper RGB and every other channel stretched between its 0.1 and 99.9
    percentiles; channels in their own colours, added; alpha over white. Memory: a few blocks of 2048 px, whatever the
    image's size.
    """
    level = preview_level(source, max_size)
    mean = _reduced(source, level, max_size)
    if source.alpha is Alpha.NONE:
        return _coloured(mean, source)
    return _over_white(mean, source)


def _over_white(mean: Floats, source: RasterSource) -> Pixels:
    full = 1.0 if source.dtype.kind == "f" else float(np.iinfo(source.dtype).max)
    alpha = np.clip(mean[:, :, -1:] / full, 0, 1)
    colours = mean[:, :, :-1]
    if source.alpha is Alpha.PREMULTIPLIED:
        colours = colours / np.maximum(alpha, 1e-6)
    picture = _coloured(colours, source) * alpha + 255 * (1 - alpha)
    return _rounded(picture)


def _rounded(values: Floats) -> Pixels:
    return np.asarray(np.rint(values), np.uint8)


def _reduced(source: RasterSource, level: int, max_size: int) -> Floats:
    """Area average of a level: float32 (h, w, c), longer side at most `max_size`. NaN counts as 0."""
    rows, columns = source.levels[level].shape
    factor = max(1, int(max(rows, columns) / max_size + 1e-9))
    step = factor * max(1, _BLOCK // factor)
    coarse = np.zeros((ceil_div(rows, factor), ceil_div(columns, factor), source.channels), np.float32)
    for y in range(0, rows, step):
        for x in range(0, columns, step):
            region = Region(y, x, min(y + step, rows), min(x + step, columns))
            block = _area_mean(_finite(source.read(region, level)), factor)
            coarse[y // factor :, x // factor :][: block.shape[0], : block.shape[1]] = block
    # From level 0, whose sides are not rounded: pictures of one canvas are equally large, from whatever levels.
    scale = min(1.0, max_size / max(source.shape))
    size = max(1, round(source.shape[0] * scale)), max(1, round(source.shape[1] * scale))
    return coarse if coarse.shape[:2] == size else _resized(coarse, size)


def _finite(pixels: NDArray[Any]) -> Floats:
    return np.nan_to_num(pixels.astype(np.float32), nan=0, posinf=0, neginf=0)


def _area_mean(block: Floats, factor: int) -> Floats:
    size = ceil_div(block.shape[0], factor), ceil_div(block.shape[1], factor)
    return block if factor == 1 else _resized(block, size)


def _resized(block: Floats, size: tuple[int, int]) -> Floats:
    # plane by plane: OpenCV's area average is slow or wrong for more than four channels
    planes = [
        cv2.resize(np.ascontiguousarray(block[:, :, c]), (size[1], size[0]), interpolation=cv2.INTER_AREA)
        for c in range(block.shape[2])
    ]
    return np.stack(planes, axis=-1).astype(np.float32)


def _coloured(mean: Floats, source: RasterSource) -> Pixels:
    """RGB of colour channels (alpha left out)."""
    channels = mean.shape[2]
    if source.is_rgb and channels == 3:
        if source.dtype == np.uint8:
            return _rounded(np.clip(mean, 0, 255))
        return _rounded(255 * _stretched(mean))
    is_weight = isinstance(source, WeightSource)
    if channels == 1 and source.dtype == np.uint8 and (is_weight or mean.max() >= FAINTEST_GREY):
        return np.repeat(_rounded(np.clip(mean, 0, 255)), 3, axis=2)
    colours = channel_colours(source, channels)
    picture = np.zeros((*mean.shape[:2], 3), np.float32)
    for channel in range(channels):
        picture += _stretched(mean[:, :, channel])[:, :, None] * colours[channel]
    return _rounded(255 * np.clip(picture, 0, 1))


def _stretched(values: Floats) -> Floats:
    low, high = display_range(values)
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), np.float32)


def channel_colours(source: RasterSource, channels: int) -> Floats:
    """One RGB colour in 0..1 per channel: the image's own when it names them, else those that a result of it
    would be stored with; one is white."""
    named = source.info.channel_colors
    if channels == 1 and not named:
        return np.ones((1, 3), np.float32)
    _, stored = default_channels(channels, is_rgb=source.is_rgb)
    chosen = [named[c] if c < len(named) and _is_hex(named[c]) else stored[c] for c in range(channels)]
    rgb = [[int(colour.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4)] for colour in chosen]
    return np.asarray(rgb, np.float32)


def _is_hex(colour: str) -> bool:
    digits = colour.lstrip("#")
    return len(digits) in (6, 8) and all(d in "0123456789abcdefABCDEF" for d in digits)


def _opened(source: RasterSource | str | os.PathLike[str]) -> RasterSource:
    return source if isinstance(source, RasterSource) else open_source(source, mask=True)


def _check_png(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"{path}: a preview is a PNG; name it .png")
    refuse_existing(path)


def _png(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
