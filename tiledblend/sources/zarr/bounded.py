"""zarr chunks decoded to at most what a chunk holds, and Blosc ones only when they are whole.

A few kilobytes of gzip or zstd can say gigabytes, and their decoders make them. C-Blosc is not told how many bytes it
has, and reads on behind the end of a chunk that was cut off: wrong pixels without an error. The header says how long a
chunk is (c-blosc, README_CHUNK_FORMAT.rst: bytes 12 to 15, little-endian) and how much it decodes to (bytes 4 to 7).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import zstandard
from numcodecs.abc import Codec
from zarr import AsyncArray
from zarr.codecs import ShardingCodec

from tiledblend.bytes.encoding import require_whole_blosc

COMPRESSORS = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
_INNER = ("_blosc_codec", "_gzip_codec", "_zstd_codec", "_codec")
"""Where zarr's codecs keep the numcodecs one that does the work."""
_SLACK = 1 << 16
_UNKNOWN = (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)


class BoundedCodec(Codec):  # type: ignore[misc]
    """A compressor of numcodecs that decodes to at most `most` bytes. Raises ValueError for what says more."""

    codec_id = "bounded"

    def __init__(self, inner: Any, most: int) -> None:
        self.codec_id = inner.codec_id
        self._inner, self._most = inner, most

    def encode(self, buf: Any) -> Any:
        """As the inner codec's."""
        return self._inner.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """As the inner codec's, of data that decode to no more than the chunk's bytes."""
        data = np.frombuffer(buf, np.uint8)
        stated = _stated_size(self.codec_id, data)
        if stated is not None:
            self._require(stated)
            decoded = self._inner.decode(buf, out)
        else:
            decoded = _first_bytes(self._inner, data.tobytes(), self._most + 1)
        self._require(memoryview(decoded).nbytes)
        return decoded

    def get_config(self) -> dict[str, Any]:
        """The inner codec's."""
        config: dict[str, Any] = self._inner.get_config()
        return config

    def _require(self, size: int) -> None:
        if size > self._most:
            raise ValueError(
                f"a {self.codec_id} chunk decodes to {size:,} bytes or more, "
                f"its pixels take {(self._most - _SLACK) // 2:,}"
            )


def _stated_size(name: str, data: Any) -> int | None:
    """Bytes that compressed data say they decode to, so that no more are made; None where they do not say it."""
    head = data[:32].tobytes()
    if name == "blosc":
        require_whole_blosc(head[:16], data.size)
        return int.from_bytes(head[4:8], "little")
    if name == "lz4":  # numcodecs puts the length before the block
        return int.from_bytes(head[:4], "little")
    if name == "zstd":
        try:
            size = zstandard.get_frame_parameters(head).content_size
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        return None if size in _UNKNOWN else int(size)
    return None


def _first_bytes(codec: Any, data: bytes, count: int) -> bytes:
    """The first `count` bytes that data decode to; if they are fewer, all, and their end was there."""
    stream = io.BytesIO(data)
    if codec.codec_id == "gzip":
        return gzip.GzipFile(fileobj=stream).read(count)
    if codec.codec_id == "bz2":
        return bz2.BZ2File(stream).read(count)
    if codec.codec_id == "lzma":
        return lzma.LZMAFile(stream, format=codec.format, filters=codec.filters).read(count)
    if codec.codec_id == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as reader:
            return reader.read(count)
    decompressor = zlib.decompressobj()
    decoded = decompressor.decompress(data, count)
    if not decompressor.eof and len(decoded) < count:
        raise ValueError("a zlib chunk that ends too early")
    return decoded


def _bounded(codec: Any, most: int) -> Any:
    """The same numcodecs codec; a compressor's output is bounded."""
    if getattr(codec, "codec_id", None) in COMPRESSORS and not isinstance(codec, BoundedCodec):
        return BoundedCodec(codec, most)
    return codec


def _bounded_v3(codec: Any, most: int) -> Any:
    """The same zarr codec; a compressor's output, in shards too, is bounded."""
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_bounded_v3(inner, most) for inner in codec.codecs))
    for name in _INNER:
        kept = getattr(type(codec), name, None)
        if isinstance(kept, cached_property):
            break
    else:
        return codec
    function = kept.func
    made_bounded = cached_property(lambda self: _bounded(function(self), most))
    # A class of its own: zarr makes further ones of the same class of it, with other settings.
    kind: Any = type(type(codec).__name__, (type(codec),), {name: made_bounded})
    made = object.__new__(kind)
    made.__dict__.update({key: value for key, value in codec.__dict__.items() if key != name})
    return made


def with_bounded_codecs(array: AsyncArray[Any], chunk_bytes: int) -> AsyncArray[Any]:
    """The same zarr array, whose chunks decode to little more than `chunk_bytes`, their pixels, at any step."""
    metadata: Any = array.metadata
    most = 2 * chunk_bytes + _SLACK
    if metadata.zarr_format == 2:
        filters = tuple(_bounded(codec, most) for codec in metadata.filters) if metadata.filters else metadata.filters
        checked = replace(metadata, compressor=_bounded(metadata.compressor, most), filters=filters)
    else:
        checked = replace(metadata, codecs=tuple(_bounded_v3(codec, most) for codec in metadata.codecs))
    return AsyncArray(checked, array.store_path, array.config)
