"""Damage that knows the format: a mutant is decided by its base and a random generator alone."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from corpus import Base, Entry, Span

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    31,
    32,
    33,
    64,
    255,
    256,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Mutant:
    """files: as `Base.files`. what: the operations. payload: stored pixels were altered, where no checksum guards
    them. meaning: the description was, so that other pixels may be right."""

    files: dict[str, bytes]
    what: tuple[str, ...]
    payload: bool
    meaning: bool


@dataclass
class _Work:
    base: Base
    rng: np.random.Generator
    files: dict[str, bytearray]
    payload: bool = False
    meaning: bool = False

    def below(self, limit: int) -> int:
        return int(self.rng.integers(max(1, limit)))

    def pick(self, items: Any) -> Any:
        return items[self.below(len(items))]

    def span(self, *kinds: str) -> Span | None:
        found = [span for span in self.base.spans if span.kind in kinds and span.size and span.file in self.files]
        return self.pick(found) if found else None

    def number(self) -> int:
        return int(self.pick(NUMBERS)) if self.below(3) else self.below(2**16)

    def changed(self, span: Span) -> None:
        if span.kind in ("segment", "chunk"):
            self.payload = True
        else:
            self.meaning = True


def mutate(base: Base, rng: np.random.Generator) -> Mutant:
    """One to three operations on a copy of a base."""
    work = _Work(base, rng, {name: bytearray(data) for name, data in base.files.items()})
    operations = TIFF_OPERATIONS if base.is_tiff else ZARR_OPERATIONS
    done = []
    for _ in range(1 + int(rng.integers(3)) // 2):
        operation = work.pick(operations)
        operation(work)
        done.append(operation.__name__.strip("_"))
    files = {name: bytes(data) for name, data in work.files.items()}
    return Mutant(files, tuple(done), work.payload, work.meaning)


# --- bytes


def _flip_bits(work: _Work) -> None:
    span = work.span("segment", "chunk")
    _damage(work, span, lambda data, at: data.__setitem__(at, data[at] ^ (1 << work.below(8))))


def _flip_structure(work: _Work) -> None:
    span = work.span("header", "directory", "table", "text", "document")
    _damage(work, span, lambda data, at: data.__setitem__(at, work.below(256)))


def _damage(work: _Work, span: Span | None, change: Callable[[bytearray, int], None]) -> None:
    if span is None:
        return
    data = work.files[span.file]
    for _ in range(1 + work.below(3)):
        at = span.start + work.below(span.size)
        if at < len(data):
            change(data, at)
            work.changed(span)


def _overwrite_run(work: _Work) -> None:
    span = work.span("segment", "chunk")
    if span is None:
        return
    start, size = work.below(span.size), 1 + work.below(min(512, span.size))
    fill = work.pick((b"\xff", b"\x55", bytes([work.below(255) + 1])))
    data = work.files[span.file]
    at, end = span.start + start, min(span.start + min(span.size, start + size), len(data))
    data[at:end] = fill * (end - at)
    work.changed(span)


def _zero_run(work: _Work) -> None:
    """A hole: what a file system leaves of a write that never reached the disk."""
    span = work.span("segment", "chunk")
    if span is None:
        return
    start = work.below(span.size)
    size = min(span.size - start, 1 + work.below(512))
    data = work.files[span.file]
    at, end = span.start + start, min(span.start + start + size, len(data))
    data[at:end] = bytes(max(0, end - at))
    work.changed(span)


def _truncate(work: _Work) -> None:
    span = work.span("segment", "chunk", "directory", "document")
    if span is None:
        return
    del work.files[span.file][span.start + work.below(span.size) :]
    if span.kind != "chunk":
        work.meaning = True
    work.payload = True


def _swap_segments(work: _Work) -> None:
    one, two = work.span("segment", "chunk"), work.span("segment", "chunk")
    if one is None or two is None:
        return
    a, b = (work.files[s.file][s.start : s.start + s.size] for s in (one, two))
    size = min(len(a), len(b))
    work.files[one.file][one.start : one.start + size] = b[:size]
    work.files[two.file][two.start : two.start + size] = a[:size]
    work.changed(one)
    work.meaning = True  # whole sound segments in each other's place carry no sign of it


# --- TIFF


def _write_entry(work: _Work, entry: Entry, part: str) -> None:
    data, order = work.files[""], entry.order
    places = {"code": (0, "H"), "kind": (2, "H"), "count": (4, "Q" if entry.big else "I")}
    places["value"] = (12 if entry.big else 8, "Q" if entry.big else "I")
    offset, form = places[part]
    value = work.number() if part != "kind" else work.below(20)
    if part == "code":
        value = work.pick((256, 257, 258, 259, 262, 273, 277, 279, 284, 317, 322, 323, 324, 325, 330, 339, 347, 65420))
    if entry.at + 20 <= len(data):
        struct.pack_into(order + form, data, entry.at + offset, value & (2 ** (8 * struct.calcsize(form)) - 1))
        work.meaning = True


def _tag(part: str) -> Callable[[_Work], None]:
    def change(work: _Work) -> None:
        _write_entry(work, work.pick(work.base.entries), part)

    change.__name__ = f"tag_{part}"
    return change


def _table_value(work: _Work) -> None:
    """One value of a tag's own array: a dimension, an offset, a byte count, a bit depth."""
    entry = work.pick([e for e in work.base.entries if e.kind in (3, 4, 13, 16, 18)])
    size, data = _SIZES[entry.kind], work.files[""]
    at = entry.values_at + size * work.below(entry.count)
    if at + size > len(data):
        return
    form = entry.order + {2: "H", 4: "I", 8: "Q"}[size]
    old = struct.unpack_from(form, data, at)[0]
    near = (old + 1, old - 1, old * 2, old // 2, old + 16, len(data) - 1, len(data))
    value = work.pick(near) if work.below(2) else work.number()
    struct.pack_into(form, data, at, value & (2 ** (8 * size) - 1))
    work.meaning = True


def _link(work: _Work) -> None:
    """Where the next directory is: itself, another, the middle of one, beyond the end."""
    data, base = work.files[""], work.base
    form = base.entries[0].order + ("Q" if base.entries[0].big else "I")
    at = work.pick(base.links)
    starts = [span.start for span in base.spans if span.kind == "directory"]
    value = work.pick([*starts, *(start + 12 for start in starts), at, 8, len(data), len(data) + 8, work.number()])
    if at + 8 <= len(data):
        struct.pack_into(form, data, at, value & (2 ** (8 * struct.calcsize(form)) - 1))
        work.meaning = True


def _embedded_size(work: _Work) -> None:
    """The dimensions in a segment's own header: JPEG's frame, JPEG 2000's SIZ, PNG's IHDR, WebP's and others'."""
    span = work.span("segment")
    if span is None:
        return
    data = work.files[""]
    for magic, offset in ((b"\xff\xc0", 5), (b"\xff\xc2", 5), (b"\xff\x51", 6), (b"IHDR", 4), (b"\x9d\x01\x2a", 3)):
        at = data.find(magic, span.start, span.start + span.size)
        if at >= 0:
            where = at + offset + work.below(8)
            break
    else:
        where = span.start + work.below(min(40, span.size))
    if where + 2 <= len(data):
        struct.pack_into(">H", data, where, work.below(65536))
        work.payload = True


def _append(work: _Work) -> None:
    work.files[""] += bytes(work.rng.integers(0, 256, 1 + work.below(4096), np.uint8))


TIFF_OPERATIONS = (
    *(_flip_bits, _flip_bits, _flip_structure, _flip_structure, _overwrite_run, _zero_run, _truncate, _swap_segments),
    *(_tag("code"), _tag("kind"), _tag("count"), _tag("count"), _tag("value"), _tag("value")),
    *(_table_value, _table_value, _table_value, _link, _embedded_size, _append),
)


# --- zarr


def _json_value(work: _Work) -> None:
    """One value of a document, wherever it is: exchanged, removed, nested, or made absurd."""
    span = work.span("document")
    if span is None:
        return
    document = _parsed(work.files[span.file])
    holders = _holders(document)
    if not holders:
        return
    holder, key = work.pick(holders)
    old = holder[key]
    strange = (
        None, True, "", "x" * 5000, "\ud800", [], {}, [[]], {"name": "zstd"}, -1, -(2**70), 2**70, 1e308, 0.5, "NaN",
        float("inf"), [old], [old] * 3, {"a": old}, str(old), [10**6] * 40, work.number(), work.number(),
    )  # fmt: skip
    if work.below(6) == 0:
        del holder[key]
    else:
        holder[key] = work.pick(strange)
    work.files[span.file] = bytearray(json.dumps(document).encode())
    work.meaning = True


def _parsed(text: bytearray) -> Any:
    """The document, or None where an earlier operation has broken it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _holders(node: Any) -> list[tuple[Any, Any]]:
    items: list[Any] = (
        list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    )
    return [(node, key) for key, _ in items] + [pair for _, value in items for pair in _holders(value)]


def _json_size(work: _Work) -> None:
    """A whole number of a document: shapes, chunks, levels, clevels."""
    span = work.span("document")
    if span is None:
        return
    document = _parsed(work.files[span.file])
    numbers = [(h, k) for h, k in _holders(document) if isinstance(h[k], int) and not isinstance(h[k], bool)]
    if not numbers:
        return
    holder, key = work.pick(numbers)
    old = holder[key]
    holder[key] = work.pick((old + 1, old - 1, old * 2, old // 2, -old, work.number(), work.number()))
    work.files[span.file] = bytearray(json.dumps(document).encode())
    work.meaning = True


def _json_text(work: _Work) -> None:
    span = work.span("document")
    if span is None:
        return
    nest = 2000 + work.below(200_000)
    text = work.pick((b"[" * nest, b'{"a":' * nest, b"null", b"[]", b"{}", b"", b'{"zarr_format": 3}', b"\xff\xfe{}"))
    work.files[span.file] = bytearray(text)
    work.meaning = True


def _remove_file(work: _Work) -> None:
    span = work.span("document", "chunk", "chunk")
    if span is not None:
        del work.files[span.file]
        work.meaning = work.meaning or span.kind == "document"


def _replace_chunk(work: _Work) -> None:
    """A chunk that is empty, noise, another one, or a bomb of its codec."""
    span = work.span("chunk")
    if span is None:
        return
    bomb = zlib.compress(bytes(1 << 22), 9)
    other = work.span("chunk")
    noise = bytes(work.rng.integers(0, 256, 1 + work.below(4000), np.uint8))
    gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bomb[2:-4]
    blosc = struct.pack("<BBBBIII", 2, 1, 1, 1, 2**31 - 20, 2**20, 200) + noise
    zstd = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**62 >> work.below(40)) + noise
    content = work.pick((b"", noise, gzip, blosc, zstd, bytes(work.files[other.file]) if other else noise))
    work.files[span.file] = bytearray(content)
    work.payload = True
    work.meaning = True  # a whole sound chunk of another place carries no sign of it


def _header_field(work: _Work) -> None:
    """A length in the first bytes of a compressed chunk: blosc's sizes, a zstd frame's content size."""
    span = work.span("chunk")
    if span is None:
        return
    data = work.files[span.file]
    if len(data) >= 24:
        struct.pack_into("<I", data, work.below(20), work.number() & 0xFFFFFFFF)
        work.payload = True


def _is_sharded(base: Base) -> bool:
    return "sharded" in base.name or base.name.startswith("ome-0.5")


def _shard_index(work: _Work) -> None:
    """An offset or a length in a shard's index, with its checksum mended half of the time."""
    span = work.span("chunk")
    if span is None or not _is_sharded(work.base):
        return
    data = work.files[span.file]
    chunks = 4
    size = 16 * chunks + 4
    if len(data) < size:
        return
    start = 0 if "start" in work.base.name else len(data) - size
    at = start + 8 * work.below(2 * chunks)
    struct.pack_into("<Q", data, at, work.pick((work.number(), len(data), 2**64 - 1, 2**63 - 1)))
    if work.below(2):
        struct.pack_into("<I", data, start + size - 4, google_crc32c.value(bytes(data[start : start + size - 4])))
        work.meaning = True
    work.payload = True


ZARR_OPERATIONS = (
    *(_flip_bits, _flip_bits, _flip_structure, _overwrite_run, _zero_run, _truncate, _swap_segments),
    *(_json_value, _json_value, _json_value, _json_size, _json_size, _json_text, _remove_file),
    *(_replace_chunk, _header_field, _shard_index, _shard_index),
)
