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


def require_whole_blosc(head: bytes, length: int) -> None:
    """Raise ValueError unless a Blosc chunk of `length` bytes is as long as its first 16 bytes say.

    >>> require_whole_blosc(bytes.fromhex("02010101 00000000 00000000 14000000"), 19)
    Traceback (most recent call last):
    ValueError: a blosc chunk of 19 bytes whose header says 20; it is truncated or damaged
    """
    stated = int.from_bytes(head[12:16], "little")
    if len(head) < 16 or stated != length:
        raise ValueError(f"a blosc chunk of {length} bytes whose header says {stated}; it is truncated or damaged")
