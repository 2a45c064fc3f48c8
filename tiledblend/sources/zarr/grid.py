"""Which objects hold which chunks of a plane of a zarr array, and which of them are stored, by a listing.

zarr gives the fill value for a chunk that is not there, be it never written or lost in an incomplete copy.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.archive import open_archive, open_member, split_member
from tiledblend.geometry import Region, ceil_div
from tiledblend.sources.axes import PlaneAxes
from tiledblend.sources.zarr.metadata import ArrayFacts, ZarrNode

MOST_LISTED = 100_000
"""Objects of a directory that are listed: a second or so."""
MOST_LISTED_REMOTE = 20_000
"""Of a bucket: twenty requests."""
MOST_INDICES = 10_000
"""Shards of a directory whose indices are read to count what they lack: 0.3 s in memory."""
ENTRY_BYTES = 16
ABSENT_ENTRY = b"\xff" * ENTRY_BYTES

Coords = tuple[int, ...]
"""Index of a stored object (a chunk, or a shard of chunks) along each axis of an array."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of one plane of an array. newest: modification time in ns, 0 in a bucket. digest: of their names,
    sizes and times or ETags. present: by `ObjectGrid.counts`, the plane's fixed axes of length 1."""

    size: int
    newest: int
    digest: str
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lacking:
    """Chunks of one plane that are not stored. first: an object that lacks one, with its index as in `Seen`."""

    chunks: int
    first: tuple[Coords, bytes | None]


class ObjectGrid:
    """How the chunks of one plane of an array lie in stored objects.

    inner: chunks along each axis of an object (ones without shards). index: of a shard, as of `_shard_index`.
    has_plain_index: it is little-endian pairs (offset, length) as they are.
    """

    def __init__(self, node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes) -> None:
        self._facts, self._axes = facts, axes
        outer = facts.shard or facts.chunk
        self._outer = outer
        self.inner = tuple(o // c for o, c in zip(outer, facts.chunk, strict=True))
        self._fixed = {axis: position // outer[axis] for axis, position in axes.fixed}
        self._places = {axis: position // facts.chunk[axis] for axis, position in axes.fixed}
        whole = tuple(ceil_div(size, o) for size, o in zip(facts.shape, outer, strict=True))
        self.counts = tuple(1 if axis in self._fixed else count for axis, count in enumerate(whole))
        self._whole = whole
        self._prefix, self._separator = _key_style(node)
        self.index = _shard_index(node, math.prod(self.inner)) if facts.shard else None
        self.has_plain_index = facts.shard is not None and _has_plain_index(node)
        self.fill = str(node.document.get("fill_value", 0))

    @property
    def objects(self) -> int:
        """Objects that hold the plane."""
        return math.prod(self.counts)

    @property
    def chunks(self) -> int:
        """Chunks that hold the plane."""
        shape, chunk = self._facts.shape, self._facts.chunk
        return math.prod(ceil_div(shape[a], chunk[a]) for a in range(len(shape)) if a not in self._fixed)

    @property
    def chunk_bytes(self) -> int:
        """Of a decoded chunk."""
        return math.prod(self._facts.chunk) * np.dtype(self._facts.dtype).itemsize

    @property
    def most_bytes(self) -> int:
        """No sound object is larger."""
        raw = math.prod(self._outer) * np.dtype(self._facts.dtype).itemsize
        return 2 * raw + (ENTRY_BYTES + 64) * math.prod(self.inner) + (1 << 16)

    def coords(self, key: str) -> Coords | None:
        """The object of a key below the array's folder; None for what holds nothing of the plane."""
        if not key.startswith(self._prefix):
            return None
        parts = key[len(self._prefix) :].split(self._separator)
        if len(parts) != len(self._whole) or not all(part.isdecimal() and part.isascii() for part in parts):
            return None
        found = tuple(map(int, parts))
        if any(c >= n for c, n in zip(found, self._whole, strict=True)):
            return None
        return found if all(found[axis] == at for axis, at in self._fixed.items()) else None

    def _holds_keys(self, folder: str) -> bool:
        """True for a folder below the array's, such as c/3, that keys go through. Others may be links in a circle."""
        if self._separator != "/" or not f"{folder}/".startswith(self._prefix):
            return False
        parts = f"{folder}/".removeprefix(self._prefix).split("/")[:-1]
        whole = zip(parts, self._whole, strict=False)
        return len(parts) < len(self._whole) and all(p.isdecimal() and p.isascii() and int(p) < n for p, n in whole)

    def places(self, coords: Coords, index: bytes | None) -> NDArray[np.bool_]:
        """True for each chunk of the plane that the object lacks, False beyond the array's end: shape `inner`.

        index: of the shard; None: the object itself is not stored.
        """
        lacks = np.ones(self.inner, bool)
        if index is not None:
            entries = np.frombuffer(index, np.uint8, ENTRY_BYTES * math.prod(self.inner))
            lacks = (entries.reshape(*self.inner, ENTRY_BYTES) == 0xFF).all(axis=-1)
        shape, chunk = self._facts.shape, self._facts.chunk
        for axis, count in enumerate(self.inner):
            numbers = coords[axis] * count + np.arange(count)
            valid = numbers == self._places[axis] if axis in self._places else numbers * chunk[axis] < shape[axis]
            lacks &= valid.reshape([-1 if a == axis else 1 for a in range(len(self.inner))])
        return lacks

    def needed(self, coords: Coords, index: bytes | None, region: Region) -> Region | None:
        """The first chunk with pixels of `region` that an object lacks, as pixels of the level; None: it has them."""
        chunk, (axis_y, axis_x) = self._facts.chunk, (self._axes.y, self._axes.x)
        for place in np.argwhere(self.places(coords, index)):
            at = [coords[axis] * self.inner[axis] + int(place[axis]) for axis in (axis_y, axis_x)]
            y, x = at[0] * chunk[axis_y], at[1] * chunk[axis_x]
            found = Region(y, x, y + chunk[axis_y], x + chunk[axis_x])
            if not (found & region).is_empty:
                return found & Region.of_shape(self._axes.yx(self._facts.shape))
        return None

    def key(self, coords: Coords) -> str:
        """Of an object, below the array's folder: the way back from `coords`."""
        return self._prefix + self._separator.join(map(str, coords))

    def chunks_of(self, region: Region) -> dict[str, list[int]]:
        """Numbers (C order) of the chunks inside each object, by its key, that hold pixels of a region of the level."""
        whole = region & Region.of_shape(self._axes.yx(self._facts.shape))
        spans = {self._axes.y: (whole.y0, whole.y1), self._axes.x: (whole.x0, whole.x1)}
        along: list[range] = []
        for axis, (size, chunk) in enumerate(zip(self._facts.shape, self._facts.chunk, strict=True)):
            first, end = spans.get(axis, (0, size))
            place = self._places.get(axis)
            along.append(range(first // chunk, ceil_div(end, chunk)) if place is None else range(place, place + 1))
        found: dict[str, list[int]] = {}
        for index in product(*along):
            outer = tuple(i // n for i, n in zip(index, self.inner, strict=True))
            inside = tuple(i % n for i, n in zip(index, self.inner, strict=True))
            number = int(np.ravel_multi_index(inside, self.inner))
            found.setdefault(self.key(outer), []).append(number)
        return found

    def listing(self, path: str) -> Listing | None:
        """The plane's objects below an array's folder; None where there are too many, or no listing can be had."""
        most = MOST_LISTED if "://" not in path else MOST_LISTED_REMOTE
        if self.objects > most:
            return None
        present = np.zeros(self.counts, bool)
        total, newest, size, entries = 0, 0, 0, _entries(path, self._holds_keys)
        if entries is None:
            return None
        for number, (key, length, version) in enumerate(entries):
            if number > 4 * most:
                return None
            coords = self.coords(key)
            if coords is None:
                continue
            present[tuple(0 if axis in self._fixed else c for axis, c in enumerate(coords))] = True
            digest = hashlib.blake2b(f"{key} {length} {version}".encode(), digest_size=16).digest()
            total += int.from_bytes(digest, "little")  # a sum: in whatever order they are listed
            size += length
            newest = max(newest, version if isinstance(version, int) else 0)
        return Listing(size, newest, f"{total % (1 << 128):032x}", present)

    def keys(self, path: str) -> Iterator[str]:
        """Keys of the plane's objects that are stored below an array's folder, however many.

        Where a server cannot list, it is asked for every object that there may be.
        """
        entries = _entries(path, self._holds_keys)
        if entries is None:
            from tiledblend.bytes.remote import only_stored

            return only_stored(path, self._possible_keys())
        return (key for key, *_ in entries if self.coords(key) is not None)

    def _possible_keys(self) -> Iterator[str]:
        along = (range(count) for count in self.counts)
        for place in product(*along):
            yield self.key(tuple(self._fixed.get(axis, c) for axis, c in enumerate(place)))

    def reads_indices(self, path: str) -> bool:
        """True when `lacking` counts what stored shards lack: where that is a short read each, of not too many."""
        return self.has_plain_index and "://" not in path and self.objects <= MOST_INDICES

    def lacking(self, path: str, listing: Listing) -> Lacking | None:
        """The chunks of a listed plane that are not stored; None: all are. path: the array's folder."""
        missing = 0
        first: tuple[Coords, bytes | None] | None = None
        if not listing.present.all():
            chunks = np.ones((), np.int64)
            for axis, count in enumerate(self.counts):
                chunks = np.multiply.outer(chunks, self._chunks_along(axis, count))
            missing = int(chunks[~listing.present].sum())
            first = self._coords(np.unravel_index(int(np.argmin(listing.present)), self.counts)), None
        if self.reads_indices(path):
            for place in np.argwhere(listing.present):
                coords = self._coords(place)
                index = self._stored_index(os.path.join(path, self.key(coords)))
                count = 0 if index is None or ABSENT_ENTRY not in index else int(self.places(coords, index).sum())
                missing += count
                if count and (first is None or coords < first[0]):
                    first = coords, index
        return None if first is None else Lacking(missing, first)

    def _coords(self, place: Iterable[Any]) -> Coords:
        """Of a place in `counts`."""
        return tuple(self._fixed.get(axis, int(c)) for axis, c in enumerate(place))

    def _stored_index(self, file: str) -> bytes | None:
        """Of a shard; None where it cannot be had: whoever reads the shard tells why."""
        assert self.index is not None
        size, at_end = self.index
        if split_member(file) is not None:
            reader = open_member(file)
            return reader.pread(reader.size - size if at_end else 0, size) if reader.size >= size else None
        try:
            with open(file, "rb", buffering=0) as shard:
                if at_end:
                    shard.seek(-size, os.SEEK_END)
                index = shard.read(size)
        except OSError:
            return None
        return index if len(index) == size else None

    def _chunks_along(self, axis: int, count: int) -> NDArray[np.int64]:
        """How many of its chunks each object has inside the array, along an axis."""
        if axis in self._fixed:
            return np.ones(1, np.int64)
        whole, inner = ceil_div(self._facts.shape[axis], self._facts.chunk[axis]), self.inner[axis]
        return np.minimum(inner, whole - inner * np.arange(count))


def _key_style(node: ZarrNode) -> tuple[str, str]:
    """(prefix, separator) of an array's chunk keys."""
    if node.zarr_format == 2:
        return "", str(node.document.get("dimension_separator", "."))
    entry = node.document["chunk_key_encoding"]
    name = entry if isinstance(entry, str) else entry["name"]
    configuration = {} if isinstance(entry, str) else entry.get("configuration") or {}
    separator = str(configuration.get("separator", "." if name == "v2" else "/"))
    return ("", separator) if name == "v2" else (f"c{separator}", separator)


def _shard_index(node: ZarrNode, entries: int) -> tuple[int, bool]:
    """(bytes, at the end) of a shard's index."""
    names, is_at_end = [name for name, _ in _index_codecs(node)], _sharding(node).get("index_location", "end") == "end"
    return ENTRY_BYTES * entries + 4 * names.count("crc32c"), is_at_end


def _has_plain_index(node: ZarrNode) -> bool:
    codecs = _index_codecs(node)
    return [name for name, _ in codecs] in (["bytes"], ["bytes", "crc32c"]) and codecs[0][1] != "big"


def _index_codecs(node: ZarrNode) -> list[tuple[str, str]]:
    """(name, endianness) of each codec of a shard's index."""
    codecs = _sharding(node).get("index_codecs") or ["bytes", "crc32c"]
    entries: list[dict[str, Any]] = [{"name": codec} if isinstance(codec, str) else codec for codec in codecs]
    return [(str(entry.get("name")), (entry.get("configuration") or {}).get("endian", "little")) for entry in entries]


def _sharding(node: ZarrNode) -> Any:
    return next(
        codec["configuration"]
        for codec in node.document["codecs"]
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed"
    )


def _entries(path: str, holds_keys: Callable[[str], bool]) -> Iterator[tuple[str, int, int | str]] | None:
    """(key, size, modification time in ns or ETag) of every object below a folder; None where a server cannot list."""
    if (found := split_member(path)) is not None:
        return ((name, one.size, f"{one.crc:08x}") for name, one in open_archive(found[0]).below(found[1]))
    if "://" not in path:
        return _files(path, "", holds_keys)
    from tiledblend.bytes.remote import list_objects

    return list_objects(path)


def _files(folder: str, prefix: str, holds_keys: Callable[[str], bool]) -> Iterator[tuple[str, int, int]]:
    """What is no regular file (a pipe, a device) is no stored object."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir():
                if holds_keys(prefix + entry.name):
                    yield from _files(entry.path, f"{prefix}{entry.name}/", holds_keys)
                continue
            found = entry.stat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            yield prefix + entry.name, found.st_size, found.st_mtime_ns
