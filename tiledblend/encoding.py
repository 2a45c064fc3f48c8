"""How a chunk's pixels become its stored bytes: what must be equal for bytes to be passed on without decoding."""

from __future__ import annotations

from dataclasses import dataclass

CRC_BYTES = 4
"""Length of the checksum that zarr's crc32c codec appends."""


@dataclass(frozen=True, slots=True)
class ChunkEncoding:
    """Equal encodings of two arrays mean that a chunk of one, as it is stored, is a chunk of the other.

    dtype: of the samples, little-endian where it matters. side: pixels along y and x. channels: in one chunk. order:
    axes of the raw bytes, slowest first ("c", "y", "x"), without "c" where a chunk holds one channel. codec: compressor
    and level, "zstd:1", or "none". Checksums around the compressed bytes are no part of it.
    """

    dtype: str
    side: int
    channels: int
    order: tuple[str, ...]
    codec: str
