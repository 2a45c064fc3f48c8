"""What the metadata of a zarr say about one image: OME-Zarr 0.1 to 0.6, and plain arrays."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tiledblend.errors import BadInputError, one_line
from tiledblend.sources.axes import PlaneAxes, find_plane
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.units import micrometres
from tiledblend.sources.zarr.collections import image_below, why_no_image
from tiledblend.sources.zarr.metadata import (
    ArrayFacts,
    ZarrNode,
    axis_names,
    inside,
    ome_attributes,
    read_array_facts,
    read_node,
)
from tiledblend.sources.zarr.transforms import Matrix, axis_order, chain

MAX_LEVELS = 64
KNOWN_VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")
_DRAFT = re.compile(r"0\.[1-6][.-]?(dev|rc|a|b|alpha|beta)[.-]?\w*")
"""Before a release, and spatialdata's own of 0.4 and 0.5, which differ in nothing that is read here."""
Window = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class ZarrImage:
    """What the metadata says about one image: its arrays (finest first), axes, scale and channels.

    origin_um: (y, x) of the centre of level 0's first pixel, where there is a pixel size. channel_windows: (low, high)
    of each channel, None where it states none; empty: no channel does. photometric: what some writer calls it.
    halving: the rule of a pyramid that tiledblend wrote. icc_profile: that it carries.
    """

    format: str
    arrays: tuple[ZarrNode, ...]
    facts: tuple[ArrayFacts, ...]
    axes: PlaneAxes
    documents: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None = None
    origin_um: tuple[float, float] | None = None
    channels: Channels = dataclasses.field(default_factory=lambda: Channels())
    notes: tuple[str, ...] = ()
    photometric: str | None = None
    halving: str | None = None
    icc_profile: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Channels:
    """names, colors (RRGGBB), windows ((low, high) or None): one each per channel, or empty."""

    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    windows: tuple[Window | None, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """An array's axis: what the metadata call it, its kind there, its unit."""

    name: str
    kind: str | None
    unit: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """axes: of the arrays. matrix: level 0's pixels to the image's own system; None: not stated. places: for each
    array axis, the matrix's row. notes: what was not understood."""

    axes: tuple[Axis, ...]
    matrix: Matrix | None
    places: tuple[int, ...]
    notes: tuple[str, ...]


def read_image(spec: SourceSpec, called: str, root: str) -> ZarrImage:
    """The metadata of the image that `spec` names; `called` is its name in errors. root: where its documents begin."""
    node = read_node(root, called=called)
    if node.kind == "array":
        if spec.series not in (None, 0):
            raise BadInputError(f"{called}: a plain array is one image; it has no series {spec.series}")
        return _plain_image(node, spec, called)
    ome, series = ome_attributes(node), spec.series
    documents = list(node.files)
    if "multiscales" not in ome and (found := image_below(node, ome, series, called)) is not None:
        node, read = found
        ome, series = ome_attributes(node), None
        documents += [*read, *node.files]
    if "multiscales" not in ome:
        raise BadInputError(f"{called}: {why_no_image(node, ome)}")
    return _multiscale_image(node, ome, series, spec, called, documents)


def _plain_image(node: ZarrNode, spec: SourceSpec, called: str) -> ZarrImage:
    facts = read_array_facts(node, called=called)
    names, how = axis_names(facts, called=called)
    axes = find_plane(names, facts.shape, spec.plane, called)
    return ZarrImage(f"zarr v{node.zarr_format}", (node,), (facts,), axes, node.files, notes=(how,))


def _multiscale_image(
    node: ZarrNode, ome: Mapping[str, Any], series: int | None, spec: SourceSpec, called: str, documents: list[str]
) -> ZarrImage:
    multiscale = _multiscale(ome, series or 0, called)
    arrays = [_level_node(node, str(dataset["path"]), called) for dataset in multiscale["datasets"]]
    if not arrays:
        raise BadInputError(f"{called}: its multiscales name no dataset")
    facts = [read_array_facts(array, called=called) for array in arrays]
    found = geometry(multiscale, facts[0], called)
    names, axis_notes = plane_names(found.axes)
    if len(names) != len(facts[0].shape):
        raise BadInputError(f"{called}: {len(names)} axes {list(names)} for an array of shape {facts[0].shape}")
    axes = find_plane(names, facts[0].shape, spec.plane, called)
    count, level_notes = _usable_levels(facts, axes, called)
    size, origin, size_notes = _pixel_size(found, axes)
    channels, channel_notes = _omero(ome, axes.channels(facts[0].shape))
    version, version_notes = _version(ome, multiscale, node)
    notes = (*version_notes, *found.notes, *axis_notes, *level_notes, *size_notes, *channel_notes)
    return ZarrImage(
        f"OME-Zarr {version} (zarr v{arrays[0].zarr_format})",
        tuple(arrays[:count]),
        tuple(facts[:count]),
        axes,
        (*documents, *(file for array in arrays for file in array.files)),
        size,
        origin,
        channels,
        notes,
        _photometric(node, ome, multiscale),
        _halving(node),
        icc_profile=_icc_profile(node),
    )


def _multiscale(ome: Mapping[str, Any], index: int, called: str) -> Mapping[str, Any]:
    multiscales = ome["multiscales"]
    if not isinstance(multiscales, list) or not 0 <= index < len(multiscales):
        raise BadInputError(f"{called}: has no series {index}; it has {len(multiscales)}")
    multiscale: Mapping[str, Any] = multiscales[index]
    if len(multiscale["datasets"]) > MAX_LEVELS:
        raise BadInputError(f"{called}: its multiscales name {len(multiscale['datasets'])} datasets; it is damaged")
    return multiscale


def _version(ome: Mapping[str, Any], multiscale: Mapping[str, Any], node: ZarrNode) -> tuple[str, tuple[str, ...]]:
    """(the version that the metadata state or follow, a note on one that was not there when this was written)."""
    stated = ome.get("version") or multiscale.get("version")
    if stated is None:
        has_systems = "coordinateSystems" in multiscale
        return "0.6" if has_systems else "0.5" if node.zarr_format == 3 else "0.4", ()
    version = one_line(str(stated))
    if version in KNOWN_VERSIONS or _DRAFT.fullmatch(version):
        return version, ()
    known = f"{KNOWN_VERSIONS[0]} to {KNOWN_VERSIONS[-1]}"
    return version, (f"OME-Zarr version {version} is not known ({known} are): read by what it has in common with them",)


def _icc_profile(node: ZarrNode) -> bytes | None:
    """Of a result of tiledblend."""
    own = node.attributes.get("tiledblend")
    text = own.get("icc_profile") if isinstance(own, dict) else None
    try:
        return base64.b64decode(text, validate=True) or None if isinstance(text, str) else None
    except ValueError:
        return None


def _halving(node: ZarrNode) -> str | None:
    own = node.attributes.get("tiledblend")
    rule = own.get("halving") if isinstance(own, dict) else None
    return rule if isinstance(rule, str) else None


def _photometric(node: ZarrNode, ome: Mapping[str, Any], multiscale: Mapping[str, Any]) -> str | None:
    for place in (multiscale, multiscale.get("metadata"), ome.get("omero"), ome, node.attributes):
        for key in ("photometric", "photometricInterpretation", "PhotometricInterpretation"):
            value = place.get(key) if isinstance(place, dict) else None
            if isinstance(value, str):
                return value
    return None


def _level_node(group: ZarrNode, path: str, called: str) -> ZarrNode:
    node = read_node(inside(group, path, called, "dataset path"), called=called)
    if node.kind != "array":
        raise BadInputError(f"{called}: dataset {path!r} is a group, not an array")
    return node


def geometry(multiscale: Mapping[str, Any], facts: ArrayFacts, called: str, level: int = 0) -> Geometry:
    """Axes and scale of a level: by `coordinateSystems` (0.6) or by `axes` (0.5 and before)."""
    count = len(facts.shape)
    stated = [*(multiscale["datasets"][level].get("coordinateTransformations") or ())]
    if isinstance(systems := multiscale.get("coordinateSystems"), list) and systems:
        given = _system(systems, stated)["axes"]
    else:
        given = multiscale.get("axes") or facts.names or ([*"tczyx"] if count == 5 else [])
        if not given:
            raise BadInputError(f"{called}: its multiscales name no axes for an array of shape {facts.shape}")
        # Further ones of 0.6 lead from the image's own system to others; those of 0.5 belong to every level.
        stated += [one for one in multiscale.get("coordinateTransformations") or () if "input" not in one]
    axes = tuple(axis_of(axis) for axis in given)
    order = tuple(range(len(axes)))
    if not stated or len(axes) != count:
        return Geometry(axes, None, order, ())
    try:
        matrix = chain(stated, count)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(str(error))
        return Geometry(axes, None, order, (f"{reason}: the pixel size is not known",))
    places = axis_order(matrix)
    if places is None:
        return Geometry(axes, None, order, ("its axes are turned or sheared: the pixel size is not known",))
    return Geometry(tuple(axes[place] for place in places), matrix, places, ())


def _system(systems: Sequence[Mapping[str, Any]], stated: Sequence[Any]) -> Mapping[str, Any]:
    """The system that the levels lie in: where the first one's transformation ends, or else the first."""
    output = stated[0].get("output") if stated and isinstance(stated[0], dict) else None
    name = output.get("name") if isinstance(output, dict) else output
    return next((system for system in systems if name is not None and system.get("name") == name), systems[0])


def axis_of(given: Any) -> Axis:
    """0.4 and later give mappings, 0.3 gave names, before there were always t, c, z, y, x."""
    if not isinstance(given, dict):
        return Axis(str(given), None, None)
    return Axis(str(given["name"]), given.get("type"), given.get("unit"))


def plane_names(axes: Sequence[Axis]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(a name of each axis as `find_plane` knows them, notes). The kind tells the channel; names are free."""
    names = [axis.name for axis in axes]
    lower = [name.lower() for name in names]
    channel = [place for place, axis in enumerate(axes) if axis.kind == "channel"]
    if len(channel) == 1 and "c" not in lower and "s" not in lower:
        names[channel[0]] = "c"
    space = [place for place, axis in enumerate(axes) if axis.kind == "space"]
    if len(space) < 2 or ("y" in lower and "x" in lower) or {"y", "x"} & {lower[place] for place in space}:
        return tuple(names), ()
    row, column = space[-2:]
    note = f"axes {names[row]}, {names[column]} are taken as y, x"
    names[row], names[column] = "y", "x"
    return tuple(names), (note,)


def _usable_levels(facts: Sequence[ArrayFacts], axes: PlaneAxes, called: str) -> tuple[int, list[str]]:
    """(how many levels, from the finest, are the same image, notes). A level smaller along z or t is another one."""
    first = facts[0]
    for count, level in enumerate(facts):
        if level.dtype != first.dtype or len(level.shape) != len(first.shape):
            why = f"{level.shape} of {level.dtype} against {first.shape} of {first.dtype}"
            return count, [f"levels from {count} on are left out: {why}"]
        (height, width), before = axes.yx(level.shape), axes.yx(facts[max(0, count - 1)].shape)
        if height > before[0] or width > before[1]:
            raise BadInputError(f"{called}: level {count} of {height} x {width} is larger than {before} before it")
        others = [axis for axis in range(len(first.shape)) if axis not in (axes.y, axes.x)]
        if any(level.shape[axis] != first.shape[axis] for axis in others):
            return count, [f"levels from {count} on are left out: shape {level.shape} against {first.shape}"]
    return len(facts), []


def _pixel_size(
    geometry: Geometry, axes: PlaneAxes
) -> tuple[tuple[float, float] | None, tuple[float, float] | None, list[str]]:
    """((y, x) micrometres of level 0, (y, x) of its first pixel's centre, notes), by each axis's unit."""
    if geometry.matrix is None:
        return None, None, []
    sizes, places = [], []
    for axis in (axes.y, axes.x):
        unit, row = geometry.axes[axis].unit, geometry.places[axis]
        if unit is None:
            return None, None, ["scale without a unit: the pixel size is not known"]
        factor = micrometres(unit)
        if factor is None:
            return None, None, [f"unit {one_line(str(unit))!r} is not a length: the pixel size is not known"]
        sizes.append(float(geometry.matrix[row, axis]) * factor)
        places.append(float(geometry.matrix[row, -1]) * factor)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None, None, [f"scale {sizes} is no pixel size"]
    origin = (places[0], places[1]) if all(map(math.isfinite, places)) else None
    return (sizes[0], sizes[1]), origin, []


def _omero(ome: Mapping[str, Any], channels: int) -> tuple[Channels, list[str]]:
    """(channels, notes) of the `omero` block, which is optional and only for display."""
    omero = ome.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(entries, list) or not entries:
        return Channels(), []
    if len(entries) != channels or not all(isinstance(entry, dict) for entry in entries):
        return Channels(), [f"omero names {len(entries)} channels, the image has {channels}: names not used"]
    labels = [entry.get("label") for entry in entries]
    names = tuple("" if label is None else one_line(str(label)) for label in labels)
    colors = tuple(_color(entry.get("color")) for entry in entries)
    windows = tuple(_window(entry.get("window")) for entry in entries)
    notes = []
    if any(colors) and not all(re.fullmatch("[0-9A-F]{6}", color) for color in colors):
        colors, notes = (), ["omero's colours are not RRGGBB: not used"]
    made = Channels(
        names if any(names) else (),
        colors if any(colors) else (),
        windows if any(w is not None for w in windows) else (),
    )
    return made, notes


def _color(given: Any) -> str:
    if isinstance(given, int) and not isinstance(given, bool):
        return f"{given & 0xFFFFFF:06X}"
    return "" if given is None else str(given).lstrip("#").upper()


def _window(given: Any) -> Window | None:
    """(start, end) of a window, or else its (min, max), where they are a range."""
    for low, high in (("start", "end"), ("min", "max")):
        try:
            found = float(given[low]), float(given[high])
        except (KeyError, TypeError, ValueError):
            continue
        if all(map(math.isfinite, found)) and found[0] < found[1]:
            return _plain(found[0]), _plain(found[1])
    return None


def _plain(value: float) -> float:
    """Whole numbers as such: what is carried is written as it was."""
    return int(value) if value.is_integer() else value
