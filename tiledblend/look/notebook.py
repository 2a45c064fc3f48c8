"""Sources, composites and run reports as HTML for a notebook: facts, and a thumbnail where that is cheap."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from tiledblend.compose.composed import ComposedSource
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.errors import UsageError
from tiledblend.look.lines import amount, counted
from tiledblend.look.preview import picture_png, preview_level
from tiledblend.look.seams import feather_text
from tiledblend.run.report import RunReport
from tiledblend.sources import open_source
from tiledblend.sources.base import RasterSource

THUMBNAIL_PX = 320
MOST_PIXELS = 1 << 22
"""Of a source that are read for a thumbnail; more, and there is none."""

Rows = list[tuple[str, str]]


def html_of(shown: Any) -> str:
    """A table of facts and, where it takes no more than a few megapixels of each source, a picture.

    Never raises for what cannot be read: then there are facts only. Raises UsageError for other kinds of objects.
    """
    if isinstance(shown, RasterSource):
        return _html(Path(shown.spec.path).name, _source_rows(shown), _picture(shown))
    if isinstance(shown, Composite):
        return _html("Composite", _composite_rows(shown), _picture_of_composite(shown))
    if isinstance(shown, RunReport):
        return _html(shown.uri, _report_rows(shown), _picture_of_result(shown))
    raise UsageError(f"{type(shown).__name__} has no picture")


def _html(title: str, rows: Rows, picture: str) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(key)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for key, value in rows
    )
    table = f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{cells}</table>"
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">{table}{picture}</div>'


def _img(source: RasterSource) -> str:
    png, (height, width) = picture_png(source, THUMBNAIL_PX)
    data = base64.b64encode(png).decode()
    return f'<img alt="thumbnail" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


# --- pictures


def _picture(source: RasterSource) -> str:
    if isinstance(source, ComposedSource):
        return _picture_of_composite(source.composite)
    try:
        return _img(source) if _is_cheap(source) else ""
    except Exception:
        # A notebook's cell shows what can be shown; reading the source by itself says what is wrong.
        return ""


def _picture_of_composite(composite: Composite) -> str:
    try:
        return _img(ComposedSource(composite)) if all(map(_is_cheap_layer, composite.layers)) else ""
    except Exception:
        return ""


def _picture_of_result(report: RunReport) -> str:
    try:
        return _picture(open_source(report.uri)) if report.complete else ""
    except Exception:
        return ""


def _is_cheap_layer(layer: Layer) -> bool:
    if not _is_cheap(layer.image):
        return False
    if not isinstance(layer.mask, RasterSource):
        return True
    # An integer mask may be read wholly to tell what its values mean.
    height, width = layer.mask.shape
    decided = layer.mask_values != "auto" or layer.mask.dtype.kind in "bf"
    return _is_cheap(layer.mask) and (decided or height * width <= MOST_PIXELS)


def _is_cheap(source: RasterSource) -> bool:
    height, width = source.levels[preview_level(source, THUMBNAIL_PX)].shape
    return height * width <= MOST_PIXELS and source.info.format != "dask array"


# --- facts


def _source_rows(source: RasterSource) -> Rows:
    height, width = source.shape
    rows = [
        ("format", f"{source.info.format}, axes {source.info.axes}"),
        ("size", f"{width:,} × {height:,} px, {counted(len(source.levels), 'level', 'levels')}"),
        ("pixels", _pixels(source.channels, source.dtype.name, source.is_rgb)),
        ("pixel size", _pixel_size(source.pixel_size_um)),
    ]
    if names := source.info.channel_names:
        rows.append(("channels", ", ".join(names[:12]) + (", …" if len(names) > 12 else "")))
    return rows


def _composite_rows(composite: Composite) -> Rows:
    height, width = composite.shape
    rows = [
        ("canvas", f"{width:,} × {height:,} px"),
        ("pixels", _pixels(composite.channels, composite.dtype.name, bool(composite.grid.is_rgb))),
        ("pixel size", _pixel_size(composite.grid.pixel_size_um)),
        ("mode", composite.mode),
    ]
    return rows + [(f"layer {index}", _layer(layer)) for index, layer in enumerate(composite.layers)]


def _layer(layer: Layer) -> str:
    parts = [Path(layer.image.spec.path).name]
    if layer.mask is not None:
        parts.append(f"mask {'alpha' if layer.mask == 'alpha' else Path(layer.mask.spec.path).name}")
    if layer.feather != Feather():
        parts.append(f"feather {feather_text(layer.feather)}")
    if layer.opacity != 1:
        parts.append(f"opacity {layer.opacity:g}")
    if layer.operator != "normal":
        parts.append(layer.operator)
    return ", ".join(parts)


def _report_rows(report: RunReport) -> Rows:
    height, width = report.shape
    chunks = report.chunks
    return [
        ("size", f"{width:,} × {height:,} px, {counted(report.levels, 'level', 'levels')}"),
        ("pixels", _pixels(report.channels, report.dtype, False)),
        ("time", f"{report.seconds:,.1f} s"),
        ("chunks", f"{chunks['copied']:,} copied, {chunks['blended']:,} blended, {chunks['empty']:,} empty"),
        ("stored", f"{counted(report.objects, 'object', 'objects')}, {amount(report.bytes_written)}"),
        *([] if report.complete else [("state", "not complete: other parts are missing")]),
    ]


def _pixels(channels: int, dtype: str, is_rgb: bool) -> str:
    return f"{channels} channel{'s' if channels != 1 else ''} of {dtype}{', RGB' if is_rgb else ''}"


def _pixel_size(size: tuple[float, float] | None) -> str:
    return "not known" if size is None else f"{size[0]:.6g} × {size[1]:.6g} µm (y × x)"
