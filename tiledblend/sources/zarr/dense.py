"""A shard without its dead bytes.

Who rewrites chunks inside a shard may append the new ones and leave the old ones where they were: it is sound, and
larger than its pixels can take.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.sources.zarr.grid import ENTRY_BYTES, ObjectGrid

_ABSENT = np.iinfo(np.uint64).max


def dense_shard(grid: ObjectGrid, key: str, size: int, read: Callable[[int, int], bytes]) -> bytes:
    """The shard of `size` bytes as one that holds its chunks and nothing else. read: bytes by (offset, size).

    Raises ValueError where the index is damaged, or its chunks are more than their pixels can take.
    """
    assert grid.index is not None
    index_size, at_end = grid.index
    count = math.prod(grid.inner)
    has_crc = index_size == ENTRY_BYTES * count + CRC_BYTES
    stored = read(size - index_size if at_end else 0, index_size)
    if has_crc and _crc32c(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:]:
        raise ValueError(f"the index of shard {key} fails its checksum; it is damaged")
    entries = np.frombuffer(stored, "<u8", 2 * count).reshape(-1, 2)
    made = np.full((count, 2), _ABSENT, "<u8")
    chunks, at, total = list[bytes](), 0 if at_end else index_size, 0
    for number in np.flatnonzero((entries != _ABSENT).any(axis=1)):
        offset, length = (int(value) for value in entries[number])
        total += length
        if offset + length > size or total > grid.most_bytes:
            raise ValueError(f"chunk object {key} has {size:,} bytes, and an index of more than that; it is damaged")
        chunks.append(read(offset, length))
        made[number] = at, length
        at += length
    table = made.tobytes()
    table += _crc32c(table) if has_crc else b""
    return b"".join([*chunks, table] if at_end else [table, *chunks])


def _crc32c(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
