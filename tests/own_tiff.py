"""A TIFF writer of our own for files that the usual writers do not make: every directory by its tags and segments."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FORMS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 11: "f", 12: "d", 16: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8, 16: 8}

Tags = Mapping[int, tuple[int, Any]]


@dataclass
class Page:
    """tags: {code: (type, values)}. segments: encoded tiles or strips; b"" is not stored. counts: what is said of them
    instead of their sizes. below: SubIFDs."""

    tags: dict[int, tuple[int, Any]]
    segments: Sequence[bytes] = ()
    counts: Sequence[int] | None = None
    below: Sequence[Page] = field(default_factory=tuple)


def page(
    shape: tuple[int, int],
    segments: Sequence[bytes],
    *,
    tile: tuple[int, int] | None = None,
    samples: int = 1,
    bits: int = 8,
    photometric: int = 1,
    compression: int = 1,
    planar: int = 1,
    more: Tags | None = None,
    counts: Sequence[int] | None = None,
    below: Sequence[Page] = (),
) -> Page:
    """A page of (y, x) pixels in tiles, or in strips by `more`'s RowsPerStrip (278)."""
    tags: dict[int, tuple[int, Any]] = {
        256: (4, [shape[1]]), 257: (4, [shape[0]]), 258: (3, [bits] * samples), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [samples]), 284: (3, [planar]),
    }  # fmt: skip
    if tile is not None:
        tags |= {322: (4, [tile[1]]), 323: (4, [tile[0]])}
    return Page({**tags, **(more or {})}, segments, counts, below)


def write_tiff(
    path: Path, pages: Sequence[Page], *, order: str = "<", big: bool = False, data_first: bool = False
) -> Path:
    """The file of these pages, one after another; with `data_first` all their segments before the directories."""
    writer = _Writer(order, big)
    if data_first:
        for each in pages:
            writer.place(each)
    for each in pages:
        writer.chain(each)
    path.write_bytes(writer.data)
    return path


class _Writer:
    def __init__(self, order: str, big: bool) -> None:
        self._order, self._big = order, big
        start = b"II" if order == "<" else b"MM"
        head = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
        self.data = bytearray(start + head)
        self._link = 8 if big else 4
        self._places: dict[int, list[int]] = {}

    def place(self, each: Page) -> None:
        self._places[id(each)] = [self._put(data) if data else 0 for data in each.segments]

    def chain(self, each: Page) -> None:
        at, after = self._directory(each)
        struct.pack_into(self._order + ("Q" if self._big else "I"), self.data, self._link, at)
        self._link = after

    def _put(self, data: bytes) -> int:
        self.data.extend(bytes(-len(self.data) % 8))
        at = len(self.data)
        self.data.extend(data)
        return at

    def _directory(self, each: Page) -> tuple[int, int]:
        word, tags = 16 if self._big else 4, dict(each.tags)
        below = [self._directory(sub)[0] for sub in each.below]
        if below:
            tags[330] = (word, below)
        if each.segments:
            if id(each) not in self._places:
                self.place(each)
            places = self._places[id(each)]
            counts = list(each.counts) if each.counts is not None else [len(data) for data in each.segments]
            tags |= {324 if 322 in tags else 273: (word, places), 325 if 322 in tags else 279: (word, counts)}
        inline, entries = (8, "HHQ") if self._big else (4, "HHI"), b""
        room, form = inline
        for code in sorted(tags):
            kind, values = tags[code]
            raw = self._values(kind, values)
            value = raw.ljust(room, b"\0") if len(raw) <= room else self._pointer(self._put(raw))
            entries += struct.pack(self._order + form, code, kind, len(raw) // _SIZES[kind]) + value
        head = struct.pack(self._order + ("Q" if self._big else "H"), len(tags))
        at = self._put(head + entries + self._pointer(0))
        return at, at + len(head) + len(entries)

    def _pointer(self, at: int) -> bytes:
        return struct.pack(self._order + ("Q" if self._big else "I"), at)

    def _values(self, kind: int, values: Any) -> bytes:
        if isinstance(values, str):
            return values.encode() + b"\0"
        if isinstance(values, bytes):
            return values
        flat = [number for value in values for number in (value if isinstance(value, tuple) else (value,))]
        return struct.pack(f"{self._order}{len(flat)}{_FORMS[kind]}", *flat)


def cut(
    pixels: Any, tile: tuple[int, int], encode: Callable[[Any], bytes] = lambda part: part.tobytes()
) -> list[bytes]:
    """The encoded tiles of (y, x[, c]) pixels, those at the edges filled with zeros."""
    segments = []
    for y in range(0, pixels.shape[0], tile[0]):
        for x in range(0, pixels.shape[1], tile[1]):
            part = pixels[y : y + tile[0], x : x + tile[1]]
            whole = np.zeros((*tile, *pixels.shape[2:]), pixels.dtype)
            whole[: part.shape[0], : part.shape[1]] = part
            segments.append(encode(whole))
    return segments


def smooth(shape: tuple[int, int], seed: int = 0) -> Any:
    """(y, x, 3) of uint8 that lossy codecs keep well."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    red = 127 + 100 * np.sin(x / 37 + seed) * np.cos(y / 51)
    green = 127 + 100 * np.cos(x / 61) * np.sin(y / 29 + seed)
    blue = 60 + 120 * x / shape[1] + 40 * y / shape[0]
    return np.stack([red, green, blue], 2).clip(0, 255).astype(np.uint8)


def to_ycbcr(rgb: Any) -> Any:
    """Full-range BT.601, rounded."""
    r, g, b = np.moveaxis(rgb.astype(float), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 2).round().clip(0, 255).astype(np.uint8)


def jpeg(pixels: Any, **options: Any) -> bytes:
    """A JPEG stream as Pillow writes it."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return data.getvalue()


def jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each segment of a JPEG up to its first scan's header."""
    at, found = 2, []
    while not found or found[-1][0] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at, end))
        at = end
    return found


def bare_jpeg(data: bytes, ids: tuple[int, int, int] | None = None, before: bytes = b"") -> bytes:
    """A JPEG without JFIF and Adobe segments, its components called `ids`, and `before` in front of the others."""
    segments = jpeg_segments(data)
    stream = bytearray(data)
    for marker, start, _ in segments if ids else ():
        for k in range(3):
            if marker in (0xC0, 0xC1, 0xC2):
                stream[start + 10 + 3 * k] = ids[k]  # type: ignore[index]
            elif marker == 0xDA:
                stream[start + 5 + 2 * k] = ids[k]  # type: ignore[index]
    kept = b"".join(stream[start:end] for marker, start, end in segments if marker not in (0xE0, 0xEE))
    return b"\xff\xd8" + before + kept + bytes(stream[segments[-1][2] :])
