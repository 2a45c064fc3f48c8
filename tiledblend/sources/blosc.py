"""Blosc chunks decoded only when they are whole.

C-Blosc is not told how many bytes it has, and reads on behind the end of a chunk that was cut off: wrong pixels
without an error. The header says how long a chunk is (c-blosc, README_CHUNK_FORMAT.rst: bytes 12 to 15, little-endian).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numcodecs
import numpy as np
from zarr import AsyncArray
from zarr.codecs import BloscCodec, ShardingCodec

from tiledblend.encoding import require_whole_blosc


class WholeBlosc(numcodecs.Blosc):  # type: ignore[misc]
    """numcodecs' codec. Raises ValueError for a chunk whose header states another length."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """As numcodecs' own, of a chunk that is whole."""
        data = np.frombuffer(buf, np.uint8)
        require_whole_blosc(data[:16].tobytes(), data.size)
        return super().decode(buf, out)


class _WholeBloscCodec(BloscCodec):
    """zarr's codec over WholeBlosc."""

    @cached_property
    def _blosc_codec(self) -> Any:
        return _whole(super()._blosc_codec)


def _whole(codec: Any) -> Any:
    """The same numcodecs codec; a Blosc one checks its chunks."""
    if not isinstance(codec, numcodecs.Blosc) or isinstance(codec, WholeBlosc):
        return codec
    return WholeBlosc.from_config({key: value for key, value in codec.get_config().items() if key != "id"})


def _checked(codec: Any) -> Any:
    """The same zarr codec; a Blosc one, in shards too, checks its chunks."""
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_checked(inner) for inner in codec.codecs))
    if not isinstance(codec, BloscCodec):
        return codec
    made = object.__new__(_WholeBloscCodec)
    made.__dict__.update({key: value for key, value in codec.__dict__.items() if key != "_blosc_codec"})
    return made


def with_whole_blosc(array: AsyncArray[Any]) -> AsyncArray[Any]:
    """The same zarr array, whose Blosc chunks are decoded only when they are whole."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        filters = tuple(_whole(codec) for codec in metadata.filters) if metadata.filters else metadata.filters
        checked = replace(metadata, compressor=_whole(metadata.compressor), filters=filters)
    else:
        checked = replace(metadata, codecs=tuple(_checked(codec) for codec in metadata.codecs))
    return AsyncArray(checked, array.store_path, array.config)
