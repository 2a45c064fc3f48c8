"""Reading pixels back from stored objects, before there is metadata: for the upper levels and checks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers.omezarr.codecs import crc32c, decode
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.errors import StorageError, VerificationError
from tiledblend.geometry import Region


class ShardIndex:
    """Where the chunks of a stored shard are; the inverse of what `TileWriter` writes."""

    def __init__(self, layout: ArrayLayout, level: int) -> None:
        self.side = layout.grid.level_shard(level) // layout.grid.chunk
        self.shape = layout.channel_groups, self.side, self.side, 2

    @cached_property
    def nbytes(self) -> int:
        """Length of the stored index with its checksum."""
        return int(np.prod(self.shape)) * 8 + 4

    def parse(self, tail: bytes) -> NDArray[np.uint64] | None:
        """(group, row, column, [offset, length]) of the shard's last `nbytes` bytes; None if they are damaged."""
        if len(tail) != self.nbytes or crc32c(tail[:-CRC_BYTES]) != tail[-CRC_BYTES:]:
            return None
        return np.frombuffer(tail[:-CRC_BYTES], "<u8").astype(np.uint64).reshape(self.shape)


def read_region(layout: ArrayLayout, store: ObjectStore, level: int, region: Region) -> NDArray[Any]:
    """Pixels (h, w, channels) of a region inside a stored level; planar memory.

    Raises StorageError if an object is missing, VerificationError if a checksum is wrong.
    """
    planes = np.empty((layout.channels, *region.shape), layout.dtype)
    side = layout.object_side(level)
    groups = 1 if layout.sharded else layout.channel_groups
    for row in range(region.y0 // side, (region.y1 - 1) // side + 1):
        for column in range(region.x0 // side, (region.x1 - 1) // side + 1):
            for group in range(groups):
                key = layout.key(level, row, column, group)
                data = store.get(key)
                if data is None:
                    raise StorageError(f"{store.uri}: object {key} is missing; run again with --resume")
                origin = row * side, column * side
                _paste_object(layout, level, key, data, origin, group, region, planes)
    return np.moveaxis(planes, 0, 2)


def _paste_object(
    layout: ArrayLayout,
    level: int,
    key: str,
    data: bytes,
    origin: tuple[int, int],
    group: int,
    region: Region,
    planes: NDArray[Any],
) -> None:
    if not layout.sharded:
        _paste_chunk(layout, data, origin, group, region, planes)
        return
    table = ShardIndex(layout, level)
    index = table.parse(data[-table.nbytes :])
    if index is None:
        raise VerificationError(f"{key}: the shard's index is damaged; run again with --resume")
    chunk = layout.grid.chunk
    for of_group in range(index.shape[0]):
        for row in range(index.shape[1]):
            for column in range(index.shape[2]):
                place = origin[0] + row * chunk, origin[1] + column * chunk
                part = Region(*place, place[0] + chunk, place[1] + chunk) & region
                offset, length = (int(v) for v in index[of_group, row, column])
                if part.is_empty or length == np.iinfo(np.uint64).max:
                    continue
                stored = data[offset : offset + length]
                if crc32c(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:]:
                    raise VerificationError(f"{key}: chunk {row}, {column} is damaged; run again with --resume")
                _paste_chunk(layout, stored[:-CRC_BYTES], place, of_group, region, planes)


def _paste_chunk(
    layout: ArrayLayout, data: bytes, place: tuple[int, int], group: int, region: Region, planes: NDArray[Any]
) -> None:
    chunk, channels = layout.grid.chunk, layout.chunk_channels
    raw = np.frombuffer(decode(layout.output.compressor, data, layout.chunk_bytes), layout.dtype)
    pixels = (
        raw.reshape(chunk, chunk, channels).transpose(2, 0, 1)
        if layout.interleaved
        else raw.reshape(channels, chunk, chunk)
    )
    part = Region(*place, place[0] + chunk, place[1] + chunk) & region
    inside = part.shift(-place[0], -place[1]).slices
    at = part.shift(-region.y0, -region.x0).slices
    planes[group * channels : (group + 1) * channels, at[0], at[1]] = pixels[:, inside[0], inside[1]]


def object_problem(layout: ArrayLayout, key: str, data: bytes) -> str | None:
    """What is wrong with the content of a pixel object, by its own checksums and by decoding it; None if nothing."""
    try:
        if layout.sharded:
            _check_shard(layout, key, data)
        else:
            decode(layout.output.compressor, data, layout.chunk_bytes)
    except VerificationError as error:
        return str(error)
    return None


def _check_shard(layout: ArrayLayout, key: str, data: bytes) -> None:
    level, region = layout.key_region(key)
    index = ShardIndex(layout, level)
    table = index.parse(data[-index.nbytes :])
    if table is None:
        raise VerificationError(f"{key}: shard index is damaged")
    height, width = region.shape
    side = layout.grid.chunk
    end = len(data) - index.nbytes
    used = 0
    for group, row, column in _places(table.shape[:3]):
        offset, length = map(int, table[group, row, column])
        inside = row * side < height and column * side < width
        if (offset + length <= end and length > CRC_BYTES) != inside:
            raise VerificationError(f"{key}: chunk {group}/{row}/{column} is {'missing' if inside else 'not planned'}")
        if inside:
            used += length
            stored = data[offset : offset + length]
            if crc32c(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:]:
                raise VerificationError(f"{key}: chunk {group}/{row}/{column} has a wrong checksum")
            decode(layout.output.compressor, stored[:-CRC_BYTES], layout.chunk_bytes)
    if used != end:
        raise VerificationError(f"{key}: {end - used} bytes belong to no chunk")


def _places(shape: tuple[int, ...]) -> Iterable[tuple[int, int, int]]:
    groups, rows, columns = shape
    return ((group, row, column) for group in range(groups) for row in range(rows) for column in range(columns))
