"""Chunks of a zarr as they are stored: found by index, read in few requests, checked, never decoded here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.archive import open_archive, split_member
from tiledblend.bytes.encoding import CRC_BYTES, ChunkEncoding
from tiledblend.bytes.ranges import ByteReader, open_bytes
from tiledblend.errors import BadInputError
from tiledblend.sources.axes import PlaneAxes
from tiledblend.sources.zarr.metadata import ArrayFacts, ZarrNode

CRC_OF_CHECKED = 0x48674BC7
ABSENT = (1 << 64) - 1
Place = tuple[int, int, int]
"""(row, column, group) of a chunk in a level: group is the channel, or 0 where a chunk holds all channels."""


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """data: the compressor's bytes. has_checksum: then their crc32c, which is right."""

    data: bytes
    has_checksum: bool


@dataclass(frozen=True, slots=True)
class _Shards:
    """inner: chunks along each axis of a shard. index_at_end: else at the start."""

    inner: tuple[int, ...]
    index_at_end: bool

    @property
    def index_bytes(self) -> int:
        return 16 * math.prod(self.inner) + CRC_BYTES


@dataclass(frozen=True, slots=True)
class EncodedLevel:
    """The stored chunks of one level of an image.

    encoding: of every chunk. folder: path or URL of the array. Picklable, holds no handle.
    """

    encoding: ChunkEncoding
    folder: str
    name: str
    number: int
    _axes: PlaneAxes
    _facts: ArrayFacts
    _key: tuple[str, str]
    _shards: _Shards | None
    _has_checksum: bool

    def read(self, places: Iterable[Place]) -> dict[Place, EncodedChunk]:
        """The chunks at these places that are stored; one that is missing (all fill value) is left out.

        Neighbours inside a shard are read together. Raises BadInputError naming the chunk for a wrong checksum, an
        index that is damaged, and bytes that are not there.
        """
        objects: dict[tuple[int, ...], list[tuple[Place, int]]] = {}
        for place in places:
            of_object, inside = self._locate(place)
            objects.setdefault(of_object, []).append((place, inside))
        found: dict[Place, EncodedChunk] = {}
        for of_object, wanted in objects.items():
            path = self._path(of_object)
            reader = _open_stored(path)
            if reader is not None:
                for place, data in self._of_object(reader, wanted):
                    found[place] = self._checked(place, path, data)
        return found

    def _locate(self, place: Place) -> tuple[tuple[int, ...], int]:
        """(index of the stored object along each axis, number of the chunk inside it)."""
        index = [0] * len(self._facts.shape)
        index[self._axes.y], index[self._axes.x] = place[0], place[1]
        if self._axes.channel is not None:
            index[self._axes.channel] = place[2]
        for axis, position in self._axes.fixed:
            index[axis] = position
        if self._shards is None:
            return tuple(index), 0
        inner = self._shards.inner
        number = 0
        for position, count in zip(index, inner, strict=True):
            number = number * count + position % count
        return tuple(position // count for position, count in zip(index, inner, strict=True)), number

    def _path(self, of_object: Sequence[int]) -> str:
        prefix, separator = self._key
        return f"{self.folder.rstrip('/')}/{prefix}{separator.join(map(str, of_object))}"

    def _of_object(self, reader: ByteReader, wanted: Sequence[tuple[Place, int]]) -> Iterator[tuple[Place, bytes]]:
        if self._shards is None:
            if reader.size > self._most_bytes():
                raise self._damaged(wanted[0][0], reader.uri, f"has {reader.size} bytes")
            yield wanted[0][0], reader.pread(0, reader.size)
            return
        index = self._read_index(reader, self._shards, wanted[0][0])
        places: list[Place] = []
        ranges: list[tuple[int, int]] = []
        for place, number in wanted:
            offset, length = (int(v) for v in index[number])
            if offset == length == ABSENT:
                continue
            if offset + length > reader.size or length > self._most_bytes():
                raise self._damaged(place, reader.uri, f"is said to have {length} bytes at {offset}")
            places.append(place)
            ranges.append((offset, length))
        # Readers by URL join neighbours into one request; in a file each chunk is a system call of its own.
        yield from zip(places, reader.pread_many(ranges), strict=True)

    def _read_index(self, reader: ByteReader, shards: _Shards, place: Place) -> NDArray[np.uint64]:
        size = shards.index_bytes
        if reader.size < size:
            raise self._damaged(
                place, reader.uri, f"lies in a shard of {reader.size} bytes, its index alone has {size}"
            )
        stored = reader.pread(reader.size - size if shards.index_at_end else 0, size)
        if not _is_right(stored):
            raise self._damaged(place, reader.uri, "lies in a shard whose index fails its checksum")
        return np.frombuffer(stored, "<u8", 2 * math.prod(shards.inner)).reshape(-1, 2)

    def _checked(self, place: Place, path: str, data: bytes) -> EncodedChunk:
        if self._has_checksum and not _is_right(data):
            raise self._damaged(place, path, "fails its checksum (crc32c)")
        return EncodedChunk(data, self._has_checksum)

    def damaged(self, place: Place, what: str) -> BadInputError:
        """The error of a chunk that turned out not to be one."""
        return self._damaged(place, self._path(self._locate(place)[0]), what)

    def _damaged(self, place: Place, path: str, what: str) -> BadInputError:
        row, column, group = place
        side = self.encoding.side
        of_channel = f", channel {group}" if self._axes.channel is not None and self.encoding.channels == 1 else ""
        return BadInputError(
            f"{self.name}: level {self.number}: chunk {row}, {column}{of_channel} "
            f"at [{row * side}:{(row + 1) * side}, {column * side}:{(column + 1) * side}] {what} in {path}; restore it"
        )

    def _most_bytes(self) -> int:
        raw = self.encoding.channels * self.encoding.side**2 * np.dtype(self.encoding.dtype).itemsize
        return 2 * raw + (1 << 16)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The levels of an image whose chunks can be had as they are stored (None: this level's cannot).

    halving: the rule (`kernels.halve.halving_rule`) by which each level was made from the one before it, where
    tiledblend wrote the image; its chunks are then padded with zeros. None: somebody else's.
    """

    levels: tuple[EncodedLevel | None, ...]
    halving: str | None


def encoded_level(node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes, name: str, number: int) -> EncodedLevel | None:
    """How an array's chunks are stored; None for anything that is not plain enough to be passed on."""
    try:
        return _v3(node, facts, axes, name, number) if node.zarr_format == 3 else _v2(node, facts, axes, name, number)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


class _UnusualError(ValueError):
    """Something that this module does not know how to pass on."""


def _v3(node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes, name: str, number: int) -> EncodedLevel:
    document = node.document
    if facts.edges is not None:
        raise _UnusualError("rectilinear chunks")
    if document.get("storage_transformers"):
        raise _UnusualError("storage transformers")
    codecs, shards = _codecs(document["codecs"]), None
    if facts.shard is not None:
        ((outer, configuration),) = codecs
        if outer != "sharding_indexed":
            raise _UnusualError(outer)
        _require_plain_index(configuration)
        inner = tuple(s // c for s, c in zip(facts.shard, facts.chunk, strict=True))
        shards = _Shards(inner, configuration.get("index_location", "end") == "end")
        codecs = _codecs(configuration["codecs"])
    order, codec, has_checksum = _pipeline(codecs, len(facts.shape), np.dtype(facts.dtype).itemsize)
    encoding = _encoding(facts, axes, order, codec)
    return EncodedLevel(encoding, node.path, name, number, axes, facts, _v3_key(document), shards, has_checksum)


def _require_plain_index(configuration: Mapping[str, Any]) -> None:
    index = _codecs(configuration["index_codecs"])
    if index != [("bytes", {"endian": "little"}), ("crc32c", {})]:
        raise _UnusualError("shard index")


def _v3_key(document: Mapping[str, Any]) -> tuple[str, str]:
    ((name, configuration),) = _codecs([document["chunk_key_encoding"]])
    if name not in ("default", "v2"):
        raise _UnusualError(name)
    separator = configuration.get("separator", "/" if name == "default" else ".")
    return (f"c{separator}", separator) if name == "default" else ("", separator)


def _pipeline(
    codecs: Sequence[tuple[str, Mapping[str, Any]]], ndim: int, itemsize: int
) -> tuple[tuple[int, ...], str, bool]:
    """(axes in the order of the raw bytes, compressor, whether crc32c comes last)."""
    left = list(codecs)
    order = tuple(range(ndim))
    if left[0][0] == "transpose":
        order = tuple(int(axis) for axis in left.pop(0)[1]["order"])
    name, configuration = left.pop(0)
    if name != "bytes" or (itemsize > 1 and configuration.get("endian", "little") != "little"):
        raise _UnusualError(name)
    has_checksum = bool(left) and left[-1][0] == "crc32c"
    if has_checksum:
        left.pop()
    if len(left) > 1:
        raise _UnusualError("more than one compressor")
    return order, _compressor(*left[0], itemsize) if left else "none", has_checksum


def _v2(node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes, name: str, number: int) -> EncodedLevel:
    document = node.document
    stored = np.dtype(document["dtype"])
    if document.get("filters") or document.get("order", "C") != "C" or stored != stored.newbyteorder("<"):
        raise _UnusualError("filters or order")
    codec = "none"
    if (compressor := document.get("compressor")) is not None:
        settings = {key: value for key, value in compressor.items() if key != "id"}
        codec = _compressor(compressor["id"], settings, stored.itemsize)
    encoding = _encoding(facts, axes, tuple(range(len(facts.shape))), codec)
    key = "", document.get("dimension_separator", ".")
    return EncodedLevel(encoding, node.path, name, number, axes, facts, key, None, False)


def _compressor(name: str, configuration: Mapping[str, Any], itemsize: int) -> str:
    """ "name:level" as `store.spec.Codec` writes it."""
    if name == "zstd" and not configuration.get("checksum", False):
        return f"zstd:{configuration['level']}"
    if name == "gzip":
        return f"gzip:{configuration['level']}"
    if name == "blosc" and configuration["cname"] in ("lz4", "zstd"):
        by_byte = configuration["shuffle"] in ("shuffle", 1)
        if by_byte and configuration.get("blocksize", 0) == 0 and configuration.get("typesize", itemsize) == itemsize:
            return f"blosc-{configuration['cname']}:{configuration['clevel']}"
    raise _UnusualError(name)


def _encoding(facts: ArrayFacts, axes: PlaneAxes, order: Sequence[int], codec: str) -> ChunkEncoding:
    names = {axes.y: "y", axes.x: "x"}
    channels = 1
    if axes.channel is not None:
        channels = facts.chunk[axes.channel]
        if channels > 1:
            if channels != facts.shape[axes.channel]:
                raise _UnusualError("some of the channels in a chunk")
            names[axes.channel] = "c"
    side_y, side_x = axes.yx(facts.chunk)
    others_are_thin = all(facts.chunk[axis] == 1 for axis, _ in axes.fixed)
    if side_y != side_x or sorted(order) != list(range(len(facts.shape))) or not others_are_thin:
        raise _UnusualError("chunk")
    return ChunkEncoding(facts.dtype, side_y, channels, tuple(names[axis] for axis in order if axis in names), codec)


def _codecs(entries: Sequence[Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(e, {}) if isinstance(e, str) else (e["name"], e.get("configuration") or {}) for e in entries]


def _open_stored(path: str) -> ByteReader | None:
    """A stored object, or None where there is none."""
    if (found := split_member(path)) is not None:
        return open_bytes(path) if found[1] in open_archive(found[0]).members else None
    if "://" not in path:
        return open_bytes(path) if os.path.isfile(path) else None
    from tiledblend.bytes.remote import stored_state

    return open_bytes(path) if stored_state(path) is not None else None


def _is_right(data: bytes) -> bool:
    """True for bytes that end in their own crc32c, little-endian: together they have always the same crc32c."""
    import google_crc32c

    return len(data) >= CRC_BYTES and int(google_crc32c.value(data)) == CRC_OF_CHECKED
