"""Zarr v2 and v3 arrays, sharded or not, and OME-Zarr 0.4 and 0.5 images, read through zarr-python.

A chunk that is not stored reads as the array's fill value: that is what zarr means by it, and zarr-python leaves out
chunks that hold nothing else. An incomplete copy looks the same, so they are counted and told; in a pyramid of
tiledblend's, which stores every chunk, they are refused unless that is allowed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tiledblend.errors import BadInputError, TiledblendError, one_line
from tiledblend.geometry import Region, ceil_div
from tiledblend.kernels.halve import names_alpha
from tiledblend.sources.arrays import check_dtype
from tiledblend.sources.axes import PlaneAxes, find_plane
from tiledblend.sources.base import Alpha, Level, Missed, RasterSource, SourceInfo, SourceSpec, Unstored
from tiledblend.sources.zarr.encoded import EncodedImage, encoded_level
from tiledblend.sources.zarr.inline_loop import run_inline
from tiledblend.sources.zarr.metadata import (
    ArrayFacts,
    ZarrNode,
    axis_names,
    list_children,
    ome_attributes,
    read_array_facts,
    read_document,
    read_node,
    series_of,
)
from tiledblend.sources.zarr.stored import SEEN, Listing, ObjectGrid, Seen, WatchedStore

if TYPE_CHECKING:
    from zarr import AsyncArray

MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "cm": 1e4,
    "meter": 1e6,
    "metre": 1e6,
    "m": 1e6,
    "inch": 25400.0,
}
RGB_NAMES = ({"r", "red"}, {"g", "green"}, {"b", "blue"})
RGB_COLORS = ("FF0000", "00FF00", "0000FF")
MAX_CHANNELS = 65536
MAX_LEVELS = 64
LARGEST_READ = 4096
MAX_CHUNKS_READ = 1 << 20
MOST_MISSED = 100_000
"""Objects that are remembered to lack chunks."""


@dataclasses.dataclass(frozen=True, slots=True)
class ZarrImage:
    """What the metadata says about one image: its arrays (finest first), axes, scale and channels.

    halving: the rule of a pyramid that tiledblend wrote.
    """

    format: str
    arrays: tuple[ZarrNode, ...]
    facts: tuple[ArrayFacts, ...]
    axes: PlaneAxes
    pixel_size_um: tuple[float, float] | None
    channel_names: tuple[str, ...]
    channel_colors: tuple[str, ...]
    notes: tuple[str, ...]
    documents: tuple[str, ...]
    halving: str | None = None


def open_zarr(spec: SourceSpec, *, mask: bool = False) -> ZarrSource:
    """The zarr array or OME-Zarr image at a local directory (`spec.level` and `spec.channels` are the caller's).

    Raises BadInputError: not an image, several planes without a selection, a plate, malformed or absurd metadata.
    """
    called = str(dataclasses.replace(spec, level=0, channels=None, plane=()))
    try:
        image = read_image(spec, called)
    except BadInputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BadInputError(f"{called}: malformed OME-Zarr metadata: {reason}") from error
    return ZarrSource(spec, image, mask=mask)


def read_image(spec: SourceSpec, called: str) -> ZarrImage:
    """The metadata of the image that `spec` names; `called` is its name in errors."""
    node = read_node(spec.path, called=called)
    if node.kind == "array":
        if spec.series not in (None, 0):
            raise BadInputError(f"{called}: a plain array is one image; it has no series {spec.series}")
        return _plain_image(node, spec, called)
    ome = ome_attributes(node)
    series = spec.series
    documents = list(node.files)
    if "bioformats2raw.layout" in ome and "multiscales" not in ome:
        child = os.path.join(node.path, str(series or 0))
        if "://" not in child and not os.path.isdir(child):
            raise BadInputError(f"{called}: has no series {series or 0}; it has {len(series_of(node))}")
        node, series = read_node(child, called=called), None
        ome = ome_attributes(node)
        documents += node.files
    if "multiscales" not in ome:
        raise BadInputError(f"{called}: {_why_no_image(node, ome)}")
    return _multiscale_image(node, ome, series, spec, called, documents)


def _why_no_image(node: ZarrNode, ome: Mapping[str, Any]) -> str:
    if "plate" in ome:
        return "a plate (HCS), not one image; give one field of a well, such as its A/1/0"
    if "well" in ome:
        return "a well of a plate, not one image; give one of its fields, such as its 0"
    children = list_children(node)
    hint = f"; give one of its members: {', '.join(children)}" if children else ""
    return f"a zarr group without OME-Zarr multiscales{hint}"


def _plain_image(node: ZarrNode, spec: SourceSpec, called: str) -> ZarrImage:
    facts = read_array_facts(node, called=called)
    names, how = axis_names(facts, called=called)
    axes = find_plane(names, facts.shape, spec.plane, called)
    return ZarrImage(f"zarr v{node.zarr_format}", (node,), (facts,), axes, None, (), (), (how,), node.files)


def _multiscale_image(
    node: ZarrNode, ome: Mapping[str, Any], series: int | None, spec: SourceSpec, called: str, documents: list[str]
) -> ZarrImage:
    multiscales = ome["multiscales"]
    index = series or 0
    if not isinstance(multiscales, list) or not 0 <= index < len(multiscales):
        raise BadInputError(f"{called}: has no series {index}; it has {len(multiscales)}")
    multiscale = multiscales[index]
    if len(multiscale["datasets"]) > MAX_LEVELS:
        raise BadInputError(f"{called}: its multiscales name {len(multiscale['datasets'])} datasets; it is damaged")
    arrays = [_level_node(node, str(dataset["path"]), called) for dataset in multiscale["datasets"]]
    if not arrays:
        raise BadInputError(f"{called}: its multiscales name no dataset")
    facts = [read_array_facts(array, called=called) for array in arrays]
    axes_documents = _axes(multiscale, len(facts[0].shape))
    names = [axis["name"] for axis in axes_documents]
    if len(names) != len(facts[0].shape):
        raise BadInputError(f"{called}: {len(names)} axes {names} for an array of shape {facts[0].shape}")
    axes = find_plane(names, facts[0].shape, spec.plane, called)
    count, notes = _usable_levels(facts, axes, called)
    size, size_notes = _pixel_size(multiscale, axes_documents, axes)
    channel_names, colors, channel_notes = _omero(ome, axes.channels(facts[0].shape))
    version = str(ome.get("version") or multiscale.get("version") or ("0.5" if node.zarr_format == 3 else "0.4"))
    documents += [file for array in arrays for file in array.files]
    return ZarrImage(
        f"OME-Zarr {version} (zarr v{arrays[0].zarr_format})",
        tuple(arrays[:count]),
        tuple(facts[:count]),
        axes,
        size,
        channel_names,
        colors,
        (*notes, *size_notes, *channel_notes),
        tuple(documents),
        _halving(node),
    )


def _halving(node: ZarrNode) -> str | None:
    own = node.attributes.get("tiledblend")
    rule = own.get("halving") if isinstance(own, dict) else None
    return rule if isinstance(rule, str) else None


def _level_node(group: ZarrNode, path: str, called: str) -> ZarrNode:
    parts = path.split("/")
    if os.path.isabs(path) or ".." in parts or not path.strip():
        raise BadInputError(f"{called}: dataset path {path!r} is not inside the image")
    node = read_node(os.path.join(group.path, *parts), called=called)
    if node.kind != "array":
        raise BadInputError(f"{called}: dataset {path!r} is a group, not an array")
    return node


def _axes(multiscale: Mapping[str, Any], ndim: int) -> list[Mapping[str, Any]]:
    """Axes as mappings: 0.4 and later give those, 0.3 gave names, before there were always t, c, z, y, x."""
    axes = multiscale.get("axes") or ([*"tczyx"] if ndim == 5 else [])
    return [axis if isinstance(axis, dict) else {"name": str(axis)} for axis in axes]


def _usable_levels(facts: Sequence[ArrayFacts], axes: PlaneAxes, called: str) -> tuple[int, list[str]]:
    """(how many levels, from the finest, are the same image, notes). A level smaller along z or t is another one."""
    first = facts[0]
    for count, level in enumerate(facts):
        if len(level.shape) != len(first.shape) or level.dtype != first.dtype:
            raise BadInputError(
                f"{called}: level {count} is {level.shape} of {level.dtype}, level 0 is {first.shape} of {first.dtype}"
            )
        (height, width), before = axes.yx(level.shape), axes.yx(facts[max(0, count - 1)].shape)
        if height > before[0] or width > before[1]:
            raise BadInputError(f"{called}: level {count} of {height} x {width} is larger than {before} before it")
        others = [axis for axis in range(len(first.shape)) if axis not in (axes.y, axes.x)]
        if any(level.shape[axis] != first.shape[axis] for axis in others):
            return count, [f"levels from {count} on are left out: shape {level.shape} against {first.shape}"]
    return len(facts), []


def _pixel_size(
    multiscale: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], axes: PlaneAxes
) -> tuple[tuple[float, float] | None, list[str]]:
    """((y, x) micrometres of level 0, notes): dataset scale times the multiscale's own, by each axis's unit."""
    scales = [1.0] * len(documents)
    found = False
    transformations = [*(multiscale["datasets"][0].get("coordinateTransformations") or ())]
    transformations += multiscale.get("coordinateTransformations") or ()
    for transformation in transformations:
        if transformation.get("type") == "scale" and len(transformation.get("scale") or ()) == len(scales):
            scales = [a * float(b) for a, b in zip(scales, transformation["scale"], strict=True)]
            found = True
    if not found:
        return None, []
    sizes = []
    for axis in (axes.y, axes.x):
        unit = documents[axis].get("unit")
        if unit is None:
            return None, ["scale without a unit: the pixel size is not known"]
        factor = MICROMETRES.get(str(unit).lower())
        if factor is None:
            return None, [f"unit {unit!r} is not a length: the pixel size is not known"]
        sizes.append(scales[axis] * factor)
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        return None, [f"scale {sizes} is no pixel size"]
    return (sizes[0], sizes[1]), []


def _omero(ome: Mapping[str, Any], channels: int) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """(names, RRGGBB colours, notes) of the `omero` block, which is optional and only for display."""
    omero = ome.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(entries, list) or not entries:
        return (), (), []
    if len(entries) != channels or not all(isinstance(entry, dict) for entry in entries):
        return (), (), [f"omero names {len(entries)} channels, the image has {channels}: names not used"]
    names = tuple(one_line(str(entry.get("label", ""))) for entry in entries)
    colors = tuple(str(entry.get("color", "")).lstrip("#").upper() for entry in entries)
    notes = []
    if any(colors) and not all(re.fullmatch("[0-9A-F]{6}", color) for color in colors):
        colors, notes = (), ["omero's colours are not RRGGBB: not used"]
    return (names if any(names) else ()), (colors if any(colors) else ()), notes


def _meaning(image: ZarrImage, dtype: np.dtype[Any], channels: int) -> tuple[bool, Alpha]:
    """(is RGB, alpha): by channel names or colours; a plain array's three interleaved channels are red, green, blue.

    A result of tiledblend says by its halving rule that it has alpha, of any dtype and any number of colours.
    """
    names = [name.strip().lower() for name in image.channel_names]
    by_name = len(names) >= 3 and all(name in known for name, known in zip(names, RGB_NAMES, strict=False))
    by_color = image.channel_colors[:3] == RGB_COLORS
    if channels > 1 and names_alpha(image.halving):
        return channels == 4 and (by_name or by_color), Alpha.STRAIGHT
    named_alpha = len(names) == 4 and (names[3] == "alpha" or (names[3] == "a" and by_name))
    if channels == 4 and dtype == np.uint8 and named_alpha and (by_name or by_color):
        return True, Alpha.STRAIGHT
    interleaved = not image.format.startswith("OME") and image.axes.channel == len(image.axes.names) - 1
    return channels == 3 and (by_name or by_color or interleaved), Alpha.NONE


class ZarrSource(RasterSource):
    """One 2-D image of a zarr store; each read decodes in the thread that asks."""

    def __init__(self, spec: SourceSpec, image: ZarrImage, *, mask: bool = False) -> None:
        self.spec = spec
        self._image = image
        self._mask = mask
        axes, facts = image.axes, image.facts
        self.dtype = _checked_dtype(facts[0].dtype, mask, str(spec))
        self.channels = axes.channels(facts[0].shape)
        if self.channels > MAX_CHANNELS:
            raise BadInputError(f"{spec}: {self.channels} channels, more than {MAX_CHANNELS}")
        for number, level in enumerate(facts):
            _require_few_chunks(level, axes, f"{spec}: level {number}")
        self.is_rgb, self.alpha = _meaning(image, self.dtype, self.channels)
        self.levels = tuple(_level(axes, level, self.dtype.itemsize) for level in facts)
        self.pixel_size_um = image.pixel_size_um
        self.info = _info(image)
        self._opened = [_modified(path) for path in image.documents]
        self._grids = [ObjectGrid(node, level, axes) for node, level in zip(image.arrays, facts, strict=True)]
        self._stores = [
            WatchedStore(node.path, grid) if "://" not in node.path else _remote_path(node.path, grid)
            for node, grid in zip(image.arrays, self._grids, strict=True)
        ]
        self._arrays = [
            _open_array(store, node, math.prod(level.chunk) * self.dtype.itemsize, str(spec))
            for store, node, level in zip(self._stores, image.arrays, facts, strict=True)
        ]
        self._listed_newest: int | None = None
        self._is_listed: dict[int, bool] = {}
        self._missed: dict[int, dict[tuple[int, str], tuple[Missed, bool]]] = {}
        """What each thread's reads found, by (level, key); True with a whole object, False with chunks of a shard."""

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """As `RasterSource.expect`: in a bucket, neighbouring chunks of a shard by merged range requests."""
        store = self._stores[level]
        return 0 if isinstance(store, WatchedStore) else store.store.expect(regions, fetch=fetch)

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        array, seen = self._arrays[level], list[Seen]()
        if self._grids[level].index is not None:
            self.expect([region], level)
        try:
            block = self._block(array, region, seen)
        except MemoryError as error:
            raise self._out_of_memory(region, level) or error from error
        for missing in seen:
            self._take_missing(missing, region, level)
        return self._image.axes.to_yxc(block.astype(self.dtype, copy=False))

    def encoded(self) -> EncodedImage:
        """As `RasterSource.encoded`."""
        image = self._image
        levels = (
            encoded_level(node, facts, image.axes, self.name, number)
            for number, (node, facts) in enumerate(zip(image.arrays, image.facts, strict=True))
        )
        return EncodedImage(tuple(levels), image.halving)

    def require_unchanged(self) -> None:
        """By the times of the metadata documents and of the chunks that were read; in a bucket by what reads found."""
        if any(store.store.has_changed for store in self._stores if not isinstance(store, WatchedStore)):
            raise self.changed()
        if self._opened != [_modified(path) for path in self._image.documents]:
            raise self.changed()
        newest = max((store.newest for store in self._stores if isinstance(store, WatchedStore)), default=0)
        if self._listed_newest is not None and newest > self._listed_newest:
            raise self.changed()

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """As `RasterSource.unstored`."""
        grid, listing = self._grids[level], self._listing(level)
        lacking = grid.lacking(self._image.arrays[level].path, listing) if listing is not None else None
        missing = missed + (0 if lacking is None else lacking.chunks)
        if missing == 0:
            return None
        where = None if lacking is None else grid.needed(*lacking.first, Region.of_shape(self.levels[level].shape))
        return Unstored(self.name, level, missing, grid.chunks, grid.fill, where, self._refuses_missing)

    def take_missed(self, *, of_all_threads: bool = False) -> list[Missed]:
        """As `RasterSource.take_missed`."""
        found = [self._missed.pop(thread, {}) for thread in (list(self._missed) if of_all_threads else [get_ident()])]
        known = {place: entry for of_thread in found for place, entry in of_thread.items()}
        return [missed for missed, is_object in known.values() if not self._is_counted(missed.level, is_object)]

    def _is_counted(self, level: int, is_object: bool) -> bool:
        """True for what `unstored` counts by itself: objects where there is a listing, chunks inside of some."""
        is_seen = is_object or self._grids[level].reads_indices(self._image.arrays[level].path)
        return is_seen and self._is_listed.get(level, False)

    @property
    def _refuses_missing(self) -> bool:
        return self._image.halving is not None and not self.spec.allow_sparse

    def _listing(self, level: int) -> Listing | None:
        found = self._grids[level].listing(self._image.arrays[level].path)
        self._is_listed[level] = found is not None
        return found

    def _take_missing(self, missing: Seen, region: Region, level: int) -> None:
        """Refuse or count chunks that a read found not to be stored."""
        grid = self._grids[level]
        coords = grid.coords(missing.key)
        if coords is None:
            return
        if self._refuses_missing and (chunk := grid.needed(coords, missing.index, region)) is not None:
            raise BadInputError(
                f"{self.name}: level {level}, region {region}: the chunk at {chunk} is not stored ({missing.key}) and "
                f"would read as fill value {grid.fill}, but tiledblend has stored every chunk of it; copy the image "
                "again, or pass --allow-sparse"
            )
        found, place = self._missed.setdefault(get_ident(), {}), (level, missing.key)
        if place not in found and len(found) < MOST_MISSED:
            count = int(grid.places(coords, missing.index).sum())
            found[place] = Missed(level, missing.key, count), missing.index is None

    def _block(self, array: AsyncArray[Any], region: Region, seen: list[Seen]) -> NDArray[Any]:
        async def watched() -> Any:
            SEEN.set(seen)
            return await array.getitem(self._image.axes.index(region))

        try:
            # A shard's damaged index may name places that overflow: the error is enough.
            with np.errstate(over="ignore"):
                return np.asarray(run_inline(watched))
        except ExceptionGroup as group:
            # Requests that went together: the first failure says it.
            raise group.exceptions[0] from None

    def _out_of_memory(self, region: Region, level: int) -> BadInputError | None:
        """A chunk's own header can claim any size, and its decoder believes it; None where memory is really short."""
        facts = self._image.facts[level]
        needed = (region.size * self.channels + math.prod(facts.chunk)) * self.dtype.itemsize
        if psutil.virtual_memory().available < 8 * needed + (1 << 28):
            return None
        return BadInputError(
            f"{self.name}: level {level}, region {region}: a chunk claims more memory than there is, "
            f"chunks of {facts.chunk} need {math.prod(facts.chunk) * self.dtype.itemsize} bytes; it is damaged"
        )

    def contents(self) -> Iterable[tuple[str, str]]:
        """The metadata documents, and every object of the plane on every level."""
        for path in self._image.documents:
            yield os.path.relpath(path, self.spec.path), path
        for node, grid in zip(self._image.arrays, self._grids, strict=True):
            folder = node.path.rstrip("/")
            for key in grid.keys(folder):
                yield os.path.relpath(f"{folder}/{key}", self.spec.path), f"{folder}/{key}"

    def fingerprint(self) -> dict[str, Any]:
        """Digest of the metadata documents, the latest time that one of them was changed, and what a listing of the
        chunks' objects says: how many bytes, and a digest of their names, sizes and times or ETags."""
        digest = hashlib.sha256(str(self.spec.plane).encode())
        modified = 0.0
        for path in self._image.documents:
            content = read_document(path)
            if content is None:
                raise BadInputError(f"{self.name}: {path} is not there any more; restore it and run again")
            # An object's time is not asked for: its bytes are in the digest.
            modified = modified if "://" in path else max(modified, os.stat(path).st_mtime)
            digest.update(f"{os.path.relpath(path, self.spec.path)} {len(content)}\n".encode())
            digest.update(content)
        listings = [self._listing(level) for level in range(len(self._grids))]
        known = [listing for listing in listings if listing is not None]
        objects, size, self._listed_newest = None, None, None
        if len(known) == len(listings):
            objects, size = [listing.digest for listing in known], sum(listing.size for listing in known)
            self._listed_newest = max(listing.newest for listing in known)
        for store, listing in zip(self._stores, listings, strict=True):
            if isinstance(store, WatchedStore):
                store.newest = 0
            elif listing is not None:
                store.store.renew(listing.digest)
        times = {"documents": modified, "objects": objects}
        return {"uri": self.spec.path, "size": size, "modified": times, "structure": digest.hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, self._mask)


def _require_few_chunks(facts: ArrayFacts, axes: PlaneAxes, called: str) -> None:
    """Raise BadInputError where a tile would be read from so many chunks that it takes minutes or more."""
    read = [axis for axis in (axes.y, axes.x, axes.channel) if axis is not None]
    sides = {axis: facts.shape[axis] if axis == axes.channel else min(facts.shape[axis], LARGEST_READ) for axis in read}
    count = math.prod(ceil_div(sides[axis], facts.chunk[axis]) for axis in read)
    if count > MAX_CHUNKS_READ:
        raise BadInputError(
            f"{called}: chunks of {facts.chunk} are {count:,} in {LARGEST_READ} x {LARGEST_READ} px, more than "
            f"{MAX_CHUNKS_READ:,}; store it again with larger chunks"
        )


def _modified(path: str) -> int | None:
    """Nanoseconds; None for what is missing and for objects by URL."""
    try:
        return os.stat(path).st_mtime_ns if "://" not in path else None
    except OSError:
        return None


def _checked_dtype(name: str, mask: bool, called: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError):
        raise BadInputError(f"{called}: dtype {name} is not one of an image") from None
    return check_dtype(dtype, mask=mask, source=called)


def _level(axes: PlaneAxes, facts: ArrayFacts, itemsize: int) -> Level:
    (height, width), (rows, columns) = axes.yx(facts.shape), axes.yx(facts.chunk)
    # Another chunk than the one that is being used, and itself as stored.
    return Level((height, width), (min(rows, height), min(columns, width)), 2 * math.prod(facts.chunk) * itemsize)


def _info(image: ZarrImage) -> SourceInfo:
    facts = image.facts[0]
    metadata: dict[str, Any] = {"chunk": list(facts.chunk)}
    if facts.shard:
        metadata["shard"] = list(facts.shard)
    return SourceInfo(
        format=image.format + (" sharded" if facts.shard else ""),
        axes="".join(image.axes.names) if all(len(n) == 1 for n in image.axes.names) else ",".join(image.axes.names),
        compression=facts.compression,
        channel_names=image.channel_names,
        channel_colors=image.channel_colors,
        notes=image.notes,
        metadata=metadata,
    )


def _open_array(store: Any, node: ZarrNode, chunk_bytes: int, called: str) -> AsyncArray[Any]:
    import zarr

    from tiledblend.sources.zarr.bounded import with_bounded_codecs

    try:
        opened = run_inline(lambda: zarr.AsyncArray.open(store, zarr_format=3 if node.zarr_format == 3 else 2))
        return with_bounded_codecs(opened, chunk_bytes)
    except TiledblendError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{called}: array {node.path} cannot be opened: {reason}") from error


def _remote_path(url: str, grid: ObjectGrid) -> Any:
    from tiledblend.sources.zarr.remote import zarr_path

    return zarr_path(url, grid)
