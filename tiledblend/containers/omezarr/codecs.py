"""Chunk compression as zarr readers know it: encode, decode, and the metadata that names the codec.

The same bytes in give the same bytes out: no time stamps, no threads.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import zstandard

from tiledblend.bytes.encoding import CRC_BYTES, require_whole_blosc
from tiledblend.containers.omezarr.spec import Codec
from tiledblend.errors import VerificationError

_BYTE_SHUFFLE = 1
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")


def crc32c(data: bytes) -> bytes:
    """The four little-endian bytes that zarr's crc32c codec appends."""
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def encoder(codec: Codec) -> Callable[[Any], bytes]:
    """Function from a C-contiguous array to its compressed bytes; releases the GIL while it works. For one thread."""
    level = codec.level
    if codec.name == "zstd":
        return _zstd_encoder(level)
    if codec.name == "gzip":
        return lambda array: gzip.compress(array.data, level, mtime=0)
    if codec.name == "none":
        return lambda array: array.tobytes()
    cname = codec.name.removeprefix("blosc-")
    return lambda array: bytes(
        imagecodecs.blosc_encode(
            array, level, compressor=cname, shuffle=_BYTE_SHUFFLE, typesize=array.itemsize, numthreads=1
        )
    )


def _zstd_encoder(level: int) -> Callable[[Any], bytes]:
    """One compression context for many chunks; at level 1 its hash table stays in the processor's first cache.

    Pixels repeat next to each other or not at all: 4096 entries find what the level's own 16384 do.
    """
    parameters = zstandard.ZstdCompressionParameters
    options: dict[str, Any] = {"write_content_size": True, "write_checksum": False}
    if level == 1:
        options["hash_log"] = 12
    return zstandard.ZstdCompressor(compression_params=parameters.from_level(level, **options)).compress


def decode(codec: Codec, data: bytes, size: int) -> bytes:
    """The `size` raw bytes of one compressed chunk. Raises VerificationError for anything else."""
    try:
        raw = _decode(codec, data, size)
    except (RuntimeError, ValueError, OSError, EOFError, zlib.error) as error:
        raise VerificationError(f"{codec.name} data of {len(data)} bytes does not decode: {error}") from error
    if len(raw) != size:
        raise VerificationError(f"{codec.name} data decodes to {len(raw)} bytes instead of {size}")
    return raw


def stated_size(codec: Codec, data: bytes) -> int | None:
    """How many raw bytes compressed data says that it holds, from its first bytes; None where it does not say.

    zstd: RFC 8878, 3.1.1.1 (single-segment frames and 4- or 8-byte sizes, as whole buffers are written); blosc: its
    16-byte header.
    """
    if codec.name == "none":
        return len(data)
    if codec.name.startswith("blosc"):
        return int.from_bytes(data[4:8], "little") if len(data) >= 16 else None
    if codec.name != "zstd" or len(data) < 18 or data[:4] != _ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    if descriptor & 0x0B or (size_flag == 0 and not single):
        return None
    start, length = 5 + (not single), 1 << size_flag
    size = int.from_bytes(data[start : start + length], "little")
    return size + 256 if length == 2 else size


def _decode(codec: Codec, data: bytes, size: int) -> bytes:
    if codec.name == "zstd":
        return bytes(imagecodecs.zstd_decode(data, out=size))
    if codec.name == "gzip":
        # One byte more than expected is enough to tell a wrong length, whatever the stream claims.
        return zlib.decompressobj(wbits=31).decompress(data, size + 1)
    if codec.name == "none":
        return data
    require_whole_blosc(data[:16], len(data))
    return bytes(imagecodecs.blosc_decode(data, numthreads=1, out=size))


def v3_metadata(codec: Codec, dtype: str) -> list[dict[str, Any]]:
    """The bytes-to-bytes codec documents of a zarr v3 array."""
    if codec.name == "none":
        return []
    if codec.name == "zstd":
        return [{"name": "zstd", "configuration": {"level": codec.level, "checksum": False}}]
    if codec.name == "gzip":
        return [{"name": "gzip", "configuration": {"level": codec.level}}]
    configuration = {
        "cname": codec.name.removeprefix("blosc-"),
        "clevel": codec.level,
        "shuffle": "shuffle",
        "typesize": np.dtype(dtype).itemsize,
        "blocksize": 0,
    }
    return [{"name": "blosc", "configuration": configuration}]


def v2_metadata(codec: Codec) -> dict[str, Any] | None:
    """The compressor document of a zarr v2 array."""
    if codec.name == "none":
        return None
    if codec.name in ("zstd", "gzip"):
        return {"id": codec.name, "level": codec.level}
    cname = codec.name.removeprefix("blosc-")
    return {"id": "blosc", "cname": cname, "clevel": codec.level, "shuffle": _BYTE_SHUFFLE, "blocksize": 0}
