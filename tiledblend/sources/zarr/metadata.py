"""The documents of a zarr v2 or v3 store, read and judged before zarr-python sees them."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from tiledblend.bytes.archive import open_archive, split_member
from tiledblend.errors import BadInputError

MAX_SIDE = 1 << 31
MAX_CHUNK_BYTES = 2 << 30
MAX_SHARD_CHUNKS = 1 << 24
MAX_DOCUMENT_BYTES = 16 << 20
MAX_MULTISCALES = 64
MAX_UNEVEN = 1 << 16
"""Chunks along an axis of a rectilinear grid."""
NOT_OF_PIXELS = ("pickle", "json", "msgpack", "vlen", "categorize", "string")
"""Codecs, by the beginning of their names, of Python objects and texts. Decoding a pickle runs what it says."""


@dataclass(frozen=True, slots=True)
class ZarrNode:
    """One array or group. zarr_format: 2 or 3. document: zarr.json or .zarray (empty for a v2 group). files: read."""

    path: str
    zarr_format: int
    kind: str
    document: Mapping[str, Any]
    attributes: Mapping[str, Any]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArrayFacts:
    """What an array's document says. chunk: what one decode yields (inside a shard: the inner chunk).

    edges: of a rectilinear grid, where chunks (or shards) end along each axis; chunk is the largest then, shard None.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    dtype: str
    compression: str
    names: tuple[str | None, ...] | None
    edges: tuple[tuple[int, ...], ...] | None = None


def read_node(path: str, *, called: str) -> ZarrNode:
    """The array or group at a directory. Raises BadInputError when there is none or its documents are malformed."""
    v3 = os.path.join(path, "zarr.json")
    document = _read_json(v3)
    if document is not None:
        kind = document.get("node_type")
        if kind not in ("array", "group"):
            raise BadInputError(f"{v3}: node_type is {kind!r}, not array or group")
        return ZarrNode(path, 3, kind, document, _mapping(document.get("attributes") or {}, v3), (v3,))
    attrs = os.path.join(path, ".zattrs")
    attributes = _read_json(attrs) or {}
    for name, kind in ((".zarray", "array"), (".zgroup", "group")):
        file = os.path.join(path, name)
        document = _read_json(file)
        if document is not None:
            files = (file, attrs) if attributes else (file,)
            return ZarrNode(path, 2, kind, document, attributes, files)
    if attributes:
        return ZarrNode(path, 2, "group", {}, attributes, (attrs,))
    raise BadInputError(f"{called}: not a complete zarr: {path} has no zarr.json, .zarray or .zgroup")


def read_array_facts(node: ZarrNode, *, called: str) -> ArrayFacts:
    """Shape, chunks, dtype and codecs of an array node, checked for absurd values.

    Raises BadInputError: sizes that no image has, a chunk of more than 2 GiB, missing or malformed keys.
    """
    document = node.document
    try:
        facts = _facts_v3(document) if node.zarr_format == 3 else _facts_v2(document)
    except BadInputError:
        raise
    except _UnreadError as error:
        raise BadInputError(f"{called}: array {node.path} is not read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BadInputError(f"{called}: malformed zarr metadata in {node.path}: {reason}") from error
    dimensions = node.attributes.get("_ARRAY_DIMENSIONS")
    if facts.names is None and isinstance(dimensions, list) and len(dimensions) == len(facts.shape):
        names = tuple(str(name) for name in dimensions)
        facts = replace(facts, names=names)
    _check_sizes(facts, f"{called}: array {node.path}")
    return facts


def _facts_v3(document: Mapping[str, Any]) -> ArrayFacts:
    outer, edges = _grid(document["chunk_grid"], _sizes(document["shape"]))
    codecs = [_codec(entry) for entry in document["codecs"]]
    shard = None
    chunk = outer
    for number, (name, configuration) in enumerate(codecs):
        if name == "sharding_indexed":
            if number:
                raise _UnreadError(
                    f"its codecs {codecs[0][0]} before sharding, which is not read; store it again with {codecs[0][0]} "
                    "among the shard's own codecs"
                )
            shard, chunk = outer, _sizes(configuration["chunk_shape"])
            codecs = [_codec(entry) for entry in configuration["codecs"]]
            break
    data_type = document["data_type"]
    dtype = data_type if isinstance(data_type, str) else str(data_type.get("name"))
    names = document.get("dimension_names")
    compression = "+".join(name for name, _ in codecs if name not in ("bytes", "transpose")) or "none"
    _require_pixel_codecs([name for name, _ in codecs])
    if edges is not None and shard is not None:
        _require_whole_chunks(edges, chunk)
        shard = None
    return ArrayFacts(_sizes(document["shape"]), chunk, shard, dtype, compression, _names(names), edges)


def _grid(grid: Mapping[str, Any], shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...] | None]:
    """(the largest chunk, where chunks end along each axis of a rectilinear grid)."""
    if grid["name"] == "regular":
        return _sizes(grid["configuration"]["chunk_shape"]), None
    if grid["name"] != "rectilinear" or grid["configuration"].get("kind", "inline") != "inline":
        raise _UnreadError(
            f"its chunk grid is {grid['name']}, only regular and inline rectilinear ones are read; store it again with "
            "equal chunks"
        )
    sizes = [
        _chunk_sizes(given, size) for given, size in zip(grid["configuration"]["chunk_shapes"], shape, strict=True)
    ]
    return tuple(map(max, sizes)), tuple(tuple(accumulate(one)) for one in sizes)


def _chunk_sizes(given: Any, size: int) -> list[int]:
    """Of one axis: a number (each but the last is so long), or a list of numbers and [number, how often]."""
    if isinstance(given, int):
        given = [[given, -(-size // given)]] if given > 0 else []
    sizes: list[int] = []
    for entry in given:
        length, count = (entry, 1) if isinstance(entry, int) else _sizes(entry)
        if length < 1 or count < 1 or len(sizes) + count > MAX_UNEVEN:
            raise ValueError(f"rectilinear chunks {str(entry)[:40]} are none of an image")
        sizes += [length] * count
    if not sizes or sum(sizes) < size:
        raise ValueError(f"rectilinear chunks of {sum(sizes)} for a side of {size}")
    return sizes


def _require_whole_chunks(edges: Sequence[Sequence[int]], chunk: Sequence[int]) -> None:
    if len(chunk) != len(edges) or any(edge % size for along, size in zip(edges, chunk, strict=True) for edge in along):
        raise ValueError(f"rectilinear shards are not whole multiples of chunk {tuple(chunk)}")


def _facts_v2(document: Mapping[str, Any]) -> ArrayFacts:
    compressor = document.get("compressor")
    filters = document.get("filters") or []
    codecs = [str(entry["id"]) for entry in [*filters, *([compressor] if compressor else [])]]
    _require_pixel_codecs(codecs)
    dtype = document["dtype"]
    if not isinstance(dtype, str):
        raise ValueError("a structured dtype is not an image")
    chunk = _sizes(document["chunks"])
    return ArrayFacts(_sizes(document["shape"]), chunk, None, _v2_dtype(dtype), "+".join(codecs) or "none", None)


class _UnreadError(ValueError):
    """Valid zarr that is not read here."""


def _require_pixel_codecs(names: Sequence[str]) -> None:
    for name in names:
        if name.lower().startswith("imagecodecs_"):
            raise _UnreadError(
                f"its chunks are packed by {name} of the imagecodecs package, which is not read; store it again "
                "with zstd, blosc or gzip"
            )
        if name.lower().removeprefix("numcodecs.").startswith(NOT_OF_PIXELS):
            raise ValueError(f"codec {name!r} is not one of pixels")


def _v2_dtype(text: str) -> str:
    import numpy as np

    return np.dtype(text).newbyteorder("=").name


def _codec(entry: Any) -> tuple[str, Mapping[str, Any]]:
    return (entry, {}) if isinstance(entry, str) else (str(entry["name"]), entry.get("configuration") or {})


def _names(names: Any) -> tuple[str | None, ...] | None:
    if not names or all(name is None for name in names):
        return None
    return tuple(None if name is None else str(name) for name in names)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"sizes {str(values)[:80]} are not a list of whole numbers")
    return tuple(values)


def _check_sizes(facts: ArrayFacts, where: str) -> None:
    """Refuse what could only be an error or an attack: no image is this large, no chunk needs this much memory."""
    if len(facts.chunk) != len(facts.shape) or (facts.shard and len(facts.shard) != len(facts.shape)):
        raise BadInputError(f"{where}: chunk {facts.chunk} and shape {facts.shape} have unlike numbers of axes")
    if len(facts.shape) > 16 or any(size < 1 or size > MAX_SIDE for size in facts.shape):
        raise BadInputError(f"{where}: shape {facts.shape} is not an image's; each side must be from 1 to {MAX_SIDE}")
    if any(size < 1 for size in (*facts.chunk, *(facts.shard or ()))):
        raise BadInputError(f"{where}: chunk {facts.shard or facts.chunk} must be at least 1 along every axis")
    size = math.prod(facts.chunk) * _item_bytes(facts.dtype)
    if size > MAX_CHUNK_BYTES:
        raise BadInputError(
            f"{where}: one chunk {facts.chunk} of {facts.dtype} takes {size / 2**30:,.1f} GiB to decode, more than "
            f"{MAX_CHUNK_BYTES >> 30} GiB; store it again with smaller chunks"
        )
    if facts.shard is None:
        return
    if any(outer % inner for outer, inner in zip(facts.shard, facts.chunk, strict=True)):
        raise BadInputError(f"{where}: shard {facts.shard} is not a multiple of its chunk {facts.chunk}")
    inside = math.prod(facts.shard) // math.prod(facts.chunk)
    if inside > MAX_SHARD_CHUNKS:
        raise BadInputError(f"{where}: {inside} chunks in one shard, more than {MAX_SHARD_CHUNKS}; shard is too large")


def _item_bytes(dtype: str) -> int:
    digits = "".join(ch for ch in dtype if ch.isdecimal())
    return max(1, int(digits[:6]) // 8) if digits else 1


def _read_json(path: str) -> Mapping[str, Any] | None:
    """A document, or None if there is none."""
    text = read_document(path)
    try:
        return None if text is None else _mapping(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON: {' '.join(str(error).split())}") from error


def read_document(path: str) -> bytes | None:
    """The bytes of a metadata document at a path or URL, or None if there is none. Raises BadInputError."""
    if (found := split_member(path)) is not None:
        return open_archive(found[0]).read(found[1], MAX_DOCUMENT_BYTES)
    if "://" in path:
        from tiledblend.bytes.remote import read_object

        return _served_document(read_object(path, MAX_DOCUMENT_BYTES), path)
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            text = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_DOCUMENT_BYTES:
        raise BadInputError(f"{path}: metadata of more than {MAX_DOCUMENT_BYTES >> 20} MiB")
    return text


def _served_document(data: bytes | None, path: str) -> bytes | None:
    """What a server that stores JSON compressed, or answers with a page for what it does not have, has meant."""
    if data is not None and data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_DOCUMENT_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInputError(f"{path}: damaged gzip: {error}") from error
        if len(data) > MAX_DOCUMENT_BYTES:
            raise BadInputError(f"{path}: metadata of more than {MAX_DOCUMENT_BYTES >> 20} MiB")
    return None if data is not None and data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else data


def names_below(path: str) -> list[str]:
    """Names right inside a directory or below a URL, sorted; none if it cannot be listed."""
    if (found := split_member(path)) is not None:
        return open_archive(found[0]).names_below(found[1])
    if "://" in path:
        from tiledblend.bytes.remote import list_names

        return list_names(path)
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def axis_names(facts: ArrayFacts, *, called: str) -> tuple[tuple[str, ...], str]:
    """(axes of a plain array, how they were known).

    Names in the metadata decide. Without names 2-D is y, x; 3-D is y, x, c when only the last side is 3 or 4, and
    c, y, x when only the first side is at most 16. Raises BadInputError for anything else, saying how to name them.
    """
    shape = facts.shape
    if facts.names is not None and not all(name is None or name.startswith("dim_") for name in facts.names):
        return tuple(
            _plain_name(name, position) for position, name in enumerate(facts.names)
        ), "axes named in the metadata"
    if len(shape) == 2:
        return ("y", "x"), "axes not named: two are taken as y, x"
    if len(shape) == 3:
        last, first = shape[2] in (3, 4), shape[0] <= 16
        if last and not first:
            return ("y", "x", "c"), f"axes not named: y, x, c because the last side is {shape[2]}"
        if first and not last and min(shape[1:]) > 16:
            return ("c", "y", "x"), f"axes not named: c, y, x because the first side is {shape[0]}"
    raise BadInputError(
        f"{called}: shape {shape} has no axis names, and it does not say which are y, x and c; name them: "
        f'dimension_names=["c", "y", "x"] in zarr.json, or the attribute _ARRAY_DIMENSIONS'
    )


_PLAIN_NAMES = {"channel": "c", "channels": "c", "band": "c", "bands": "c", "sample": "s", "samples": "s"}


def _plain_name(name: str | None, position: int) -> str:
    lower = (name or f"dim_{position}").lower()
    return _PLAIN_NAMES.get(lower, lower)


def ome_attributes(node: ZarrNode) -> Mapping[str, Any]:
    """The OME metadata of a group: `ome` in its attributes (0.5), or the attributes themselves (0.4 and before)."""
    ome = node.attributes.get("ome")
    return ome if isinstance(ome, dict) else node.attributes


def inside(group: ZarrNode, path: str, called: str, what: str) -> str:
    """The path of a member of a group. Raises BadInputError for one that leads out of it."""
    parts = path.split("/")
    if os.path.isabs(path) or ".." in parts or not path.strip() or "\\" in path:
        raise BadInputError(f"{called}: {what} {path!r} is not inside the image")
    return os.path.join(group.path, *(part for part in parts if part not in ("", ".")))


def list_children(node: ZarrNode, limit: int = 8) -> Sequence[str]:
    """Names of the arrays and groups right inside a group, at most `limit`, for an error's hint."""
    documents = ("zarr.json", ".zarray", ".zgroup")
    inside = (
        name
        for name in names_below(node.path)
        if any(read_document(os.path.join(node.path, name, document)) is not None for document in documents)
    )
    return [name for name, _ in zip(inside, range(limit), strict=False)]
