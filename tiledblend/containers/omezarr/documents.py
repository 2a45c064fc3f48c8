"""OME-Zarr metadata of a result: versions 0.6 and 0.5 (zarr v3), and 0.4 (zarr v2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.windows import dtype_window
from tiledblend.errors import UsageError

_RGB = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"), ("alpha", "FFFFFF"))
# Colour-blind-safe and distinct when added up; further channels start again.
PALETTE = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF", "FF8000")

SYSTEM = "physical"
"""What the coordinate system of an 0.6 image is called, which all levels lie in."""


def dump(document: dict[str, Any]) -> bytes:
    """The stored bytes of a metadata document; the same for the same content.

    >>> dump({"a": 1})
    b'{\\n  "a": 1\\n}\\n'
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Half a character, of a file's name in another encoding, is written as JSON has it.
    return text.encode(errors="backslashreplace")


def array_documents(layout: ArrayLayout) -> dict[str, bytes]:
    """Key and content of every level's metadata."""
    return {layout.array_key(level): dump(layout.array_metadata(level)) for level in range(layout.grid.levels)}


def root_documents(layout: ArrayLayout, attributes: dict[str, Any]) -> dict[str, bytes]:
    """Key and content of the root group's metadata, the one that makes the group visible last."""
    if layout.sharded:
        return {"zarr.json": dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})}
    return {".zattrs": dump(attributes), ".zgroup": dump({"zarr_format": 2})}


def with_manifest(attributes: dict[str, Any], manifest_sha256: str | None) -> dict[str, Any]:
    """Root attributes that name this manifest; None for the form that the manifest itself holds."""
    return {**attributes, "tiledblend": {**attributes["tiledblend"], "manifest_sha256": manifest_sha256}}


def read_attributes(store: ObjectStore) -> dict[str, Any] | None:
    """Attributes of the root group in `store`, either version; None if there is no readable one."""
    try:
        if (group := store.get("zarr.json")) is not None:
            attributes = json.loads(group)["attributes"]
        elif store.size(".zgroup") is not None:
            attributes = json.loads(store.get(".zattrs") or b"")
        else:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def result_layout(attributes: dict[str, Any] | None) -> ArrayLayout | None:
    """The layout in root attributes that tiledblend wrote; None for anyone else's."""
    try:
        return ArrayLayout.from_dict((attributes or {})["tiledblend"]["layout"])
    except (UsageError, KeyError, TypeError, ValueError):
        return None


ROOT_KEYS = ("zarr.json", ".zattrs", ".zgroup")


def root_attributes(layout: ArrayLayout, image: ImageMetadata) -> dict[str, Any]:
    """The group's attributes: OME-NGFF 0.6 https://ngff.openmicroscopy.org/0.6/, 0.5 or 0.4, and our own."""
    own = {**(image.tiledblend or {}), "layout": layout.as_dict(), "manifest_sha256": None}
    if image.icc_profile is not None:
        own["icc_profile"] = base64.b64encode(image.icc_profile).decode("ascii")
    version = layout.output.ome_zarr
    axes: dict[str, Any] = {"axes": _axes(image.pixel_size_um)}
    if version == "0.6":
        axes = {"coordinateSystems": [{"name": SYSTEM, **axes}]}
    multiscale = {
        "name": image.name,
        **axes,
        "datasets": [_dataset(level, image, version) for level in range(layout.grid.levels)],
        "type": "mean",
        "metadata": {"description": "each pixel is the mean of 2 x 2 pixels of the level above, rounded half up"},
    }
    omero: dict[str, Any] = {
        "name": image.name,
        "channels": _channels(layout, image),
        "rdefs": {"model": "color", "defaultT": 0, "defaultZ": 0},
    }
    if version != "0.4":
        return {"ome": {"version": version, "multiscales": [multiscale], "omero": omero}, "tiledblend": own}
    return {
        "multiscales": [{"version": "0.4", **multiscale}],
        "omero": {"id": 1, "version": "0.4", **omero},
        "tiledblend": own,
    }


def _axes(pixel_size_um: tuple[float, float] | None) -> list[dict[str, str]]:
    unit = {"unit": "micrometer"} if pixel_size_um else {}
    return [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", **unit},
        {"name": "x", "type": "space", **unit},
    ]


def _dataset(level: int, image: ImageMetadata, version: str) -> dict[str, Any]:
    size_y, size_x = image.pixel_size_um or (1.0, 1.0)
    y, x = image.origin_um or (0.0, 0.0)
    factor, shift = float(2**level), (2**level - 1) / 2
    steps = [
        {"type": "scale", "scale": [1.0, size_y * factor, size_x * factor]},
        {"type": "translation", "translation": [0.0, y + size_y * shift, x + size_x * shift]},
    ]
    path = str(level)
    if version == "0.6":
        ends = {"input": {"path": path}, "output": {"name": SYSTEM}}
        return {"path": path, "coordinateTransformations": [{"type": "sequence", "transformations": steps, **ends}]}
    return {"path": path, "coordinateTransformations": steps}


def _channels(layout: ArrayLayout, image: ImageMetadata) -> list[dict[str, Any]]:
    count = layout.channels
    names, colors = _names_and_colors(layout, image)
    low, high = dtype_window(layout.dtype)
    given = image.windows or (None,) * count
    if len(given) != count:
        raise UsageError(f"{len(given)} display windows for {count} channels; give one per channel or none")
    windows = [window or (low, high) for window in given]
    return [
        {
            "active": True,
            "color": color,
            "label": name,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": {"min": min(low, start), "max": max(high, end), "start": start, "end": end},
        }
        for name, color, (start, end) in zip(names, colors, windows, strict=True)
    ]


def default_channels(count: int, *, is_rgb: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, colours as RRGGBB) of channels that have none of their own.

    >>> default_channels(3, is_rgb=True)
    (('red', 'green', 'blue'), ('FF0000', '00FF00', '0000FF'))
    """
    if is_rgb and count in (3, 4):
        return tuple(name for name, _ in _RGB[:count]), tuple(color for _, color in _RGB[:count])
    return tuple(f"channel {i}" for i in range(count)), tuple(PALETTE[i % len(PALETTE)] for i in range(count))


def _names_and_colors(layout: ArrayLayout, image: ImageMetadata) -> tuple[Sequence[str], Sequence[str]]:
    count = layout.channels
    names, colors = default_channels(count, is_rgb=bool(layout.is_rgb))
    for given, what in ((image.channel_names, "names"), (image.channel_colors, "colours")):
        if given and len(given) != count:
            raise UsageError(f"{len(given)} channel {what} for {count} channels; give one per channel or none")
    chosen = tuple(_hex_color(color) for color in image.channel_colors)
    return image.channel_names or names, chosen or colors


def _hex_color(color: str) -> str:
    text = color.removeprefix("#").upper()
    if len(text) not in (6, 8) or set(text) - set("0123456789ABCDEF"):
        raise UsageError(f"channel colour {color!r} is not of the form RRGGBB")
    return text[:6]
