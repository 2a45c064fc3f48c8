"""What a source is, for people: the facts behind `tiledblend info`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tiledblend.errors import BadInputError, one_line
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.opening import make_spec, open_source, recognise
from tiledblend.sources.profiles import profile_name
from tiledblend.sources.tiff.encoded import NotKept, tiles_of

# Names that scanners and tifffile give to the pictures beside a slide's own image.
BESIDE_THE_SLIDE = ("label", "macro", "thumbnail", "overview", "map")

_MOST_CLASSES = 30


def describe(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One mapping per image found at `path`: every series of a TIFF, of an OME-Zarr, or the one there is.

    Keys: path, series, name, layer and mask (whether it can be one), problem (why not a layer, or None); and when its
    metadata could be read: format, axes, dtype, shape (y, x), channels, is_rgb, alpha, levels (shape and tile each),
    pixel_size_um, origin_um, compression, passes, channel_names, channel_windows, icc, icc_name, notes, metadata.
    Values are JSON types; no pixel is read.

    Raises BadInputError when nothing is there or it is no image.
    """
    asked = make_spec(path)
    absolute, kind = asked.path, recognise(asked.path)
    if asked.series is not None:
        return [_entry(absolute, asked.series, "")]
    if kind == "tiff":
        return [_entry(absolute, series, name) for series, name in _tiff_series(absolute)]
    if kind in ("zarr", "archive"):
        return [_entry(where, series, "") for where, series in _zarr_images(absolute, is_archive=kind == "archive")]
    return [_entry(absolute, None, "")]


def _tiff_series(path: str) -> list[tuple[int | None, str]]:
    from tiledblend.sources.tiff.source import list_series

    try:
        return [(series.index, series.name or "") for series in list_series(path)] or [(None, "")]
    except BadInputError:
        # Too broken to list: opening it says why, in one line.
        return [(None, "")]


def _zarr_images(path: str, *, is_archive: bool) -> list[tuple[str, int | None]]:
    from tiledblend.sources.zarr.collections import series_of
    from tiledblend.sources.zarr.metadata import list_children, ome_attributes, read_node
    from tiledblend.sources.zarr.root import root_of

    root = (root_of(path) if is_archive else None) or path
    node = read_node(root, called=path)
    if node.kind == "array":
        return [(path, None)]
    series = series_of(node)
    if series:
        return [(path, index if len(series) > 1 else None) for index in series]
    ome = ome_attributes(node)
    children = [] if "plate" in ome or "well" in ome else list_children(node)
    return [(os.path.join(root, child), None) for child in children] or [(path, None)]


def _entry(path: str, series: int | None, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": path, "series": series, "name": name, "layer": True, "mask": True, "problem": None}
    try:
        entry |= _facts(open_source(path, series=series))
    except BadInputError as error:
        entry |= {"layer": False, "problem": _without_path(str(error), path)}
        try:
            entry |= _facts(open_source(path, series=series, mask=True))
        except BadInputError:
            entry["mask"] = False
    problem = _beside_the_slide(name, series) or entry.pop("stated_problem", None)
    entry.pop("stated_problem", None)
    return entry | {"layer": False, "problem": problem} if problem else entry


def _beside_the_slide(name: str, series: int | None) -> str | None:
    if series and name.lower() in BESIDE_THE_SLIDE:
        return f"the {name.lower()} picture that a scanner keeps beside the slide's image"
    return None


def _without_path(message: str, path: str) -> str:
    """The reason in an error's line, without the leading name of the source."""
    if not message.startswith(path):
        return message
    rest = message[len(path) :]
    return rest.partition(": ")[2] or rest


def _facts(source: RasterSource) -> dict[str, Any]:
    info = dataclasses.asdict(source.info)
    info["metadata"] |= source.summary()
    return {
        "format": info["format"],
        "axes": info["axes"],
        "dtype": source.dtype.name,
        "shape": list(source.shape),
        "channels": source.channels,
        "is_rgb": source.is_rgb,
        "alpha": source.alpha.value,
        "levels": [{"shape": list(level.shape), "tile": list(level.tile)} for level in source.levels],
        "pixel_size_um": None if source.pixel_size_um is None else list(source.pixel_size_um),
        "origin_um": None if source.origin_um is None else list(source.origin_um),
        "compression": info["compression"],
        "channel_names": list(info["channel_names"]),
        "channel_windows": [None if window is None else list(window) for window in info["channel_windows"]],
        "icc": source.icc_digest,
        "icc_name": profile_name(source.icc_profile) if source.icc_profile else None,
        "passes": _passes(source),
        "notes": [*info["notes"], *info["asides"]],
        "metadata": info["metadata"] | ({"magnification": source.magnification} if source.magnification else {}),
        "stated_problem": info["problem"],
    }


def _passes(source: RasterSource) -> dict[str, Any]:
    """{"tiles": whether stored tiles can pass into an OME-TIFF as they are, "problem": why not}."""
    try:
        tiles_of(source, 0)
    except NotKept as error:
        return {"tiles": False, "problem": _without_path(str(error).replace(source.name, "it"), source.name)}
    return {"tiles": True, "problem": None}


def render_info(entries: Sequence[dict[str, Any]]) -> str:
    """The entries of `describe` as text for a terminal, a few lines for each image."""
    return "\n".join(_paragraph(entry) for entry in entries)


def _paragraph(entry: dict[str, Any]) -> str:
    title = entry["path"]
    if entry["series"] is not None:
        title += f", series {entry['series']}" + (f" ({entry['name']})" if entry["name"] else "")
    rows = [*_fact_rows(entry), ("usable as", _usable(entry))]
    rows += [("note", note) for note in entry.get("notes", ())]
    return "\n".join([one_line(title), *(f"  {key:<12}{one_line(value)}" for key, value in rows)])


def _fact_rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    if "format" not in entry:
        return []
    if "by_class" in entry["metadata"]:
        return _outline_rows(entry)
    height, width = entry["shape"]
    size = entry["pixel_size_um"]
    rows = [
        ("format", f"{entry['format']}, axes {entry['axes']}, {entry['compression']}"),
        ("size", f"{height:,} x {width:,} px (y x x), {height * width / 1e6:,.1f} Mpx"),
        ("pixels", f"{entry['dtype']}, {_channels(entry)}"),
        ("pixel size", "not known" if size is None else f"{size[0]:.6g} x {size[1]:.6g} µm (y x x)"),
        ("levels", f"{len(entry['levels'])}: {_levels(entry)}"),
    ]
    if (origin := entry["origin_um"]) is not None and any(origin):
        rows.insert(4, ("place", f"{origin[0]:.10g}, {origin[1]:.10g} µm (y, x): the first pixel's centre"))
    if "reader" in entry["metadata"]:
        rows.insert(1, ("reader", entry["metadata"]["reader"]))
    if "magnification" in entry["metadata"]:
        rows.append(("objective", f"{entry['metadata']['magnification']:g}x"))
    if entry["passes"]["tiles"]:
        rows.append(("tiles", "can pass into an OME-TIFF as they are (--compression keep)"))
    elif entry["format"].lower().find("tif") >= 0:
        rows.append(("tiles", f"cannot pass into an OME-TIFF as they are: {entry['passes']['problem']}"))
    if entry["icc"]:
        rows.append(("ICC profile", f"{entry['icc_name']} ({entry['icc'][:12]})"))
    return rows


def _outline_rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    found = entry["metadata"]
    rows = [("format", f"{entry['format']}, coordinates in level-0 pixels")]
    if found["bounds"] is not None:
        y0, x0, y1, x1 = found["bounds"]
        rows.append(("bounds", f"y {y0:g} to {y1:g}, x {x0:g} to {x1:g}"))
    rows.append(("outlines", f"{found['outlines']:,}"))
    many = list(found["by_class"].items())
    rows += [
        ("class", f"{name}: {of['outlines']:,}, {of['area_px'] / 1e6:,.6g} Mpx") for name, of in many[:_MOST_CLASSES]
    ]
    if len(many) > _MOST_CLASSES:
        rows.append(("class", f"and {len(many) - _MOST_CLASSES:,} more (--json lists all)"))
    return rows


def _channels(entry: dict[str, Any]) -> str:
    count = entry["channels"]
    text = f"{count} channel" + ("s" if count != 1 else "")
    if entry["is_rgb"]:
        text += " RGB"
    if entry["alpha"] != Alpha.NONE.value:
        text += f" with {entry['alpha']} alpha"
    names = entry["channel_names"]
    return text + (f" ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})" if any(names) else "")


def _levels(entry: dict[str, Any]) -> str:
    levels = entry["levels"]
    shapes = ", ".join(f"{level['shape'][0]}x{level['shape'][1]}" for level in levels)
    return f"{shapes}; tile {levels[0]['tile'][0]}x{levels[0]['tile'][1]}"


def _usable(entry: dict[str, Any]) -> str:
    if entry["layer"]:
        return "layer, mask"
    return f"{'mask only' if entry['mask'] else 'nothing'}: {entry['problem']}"
