"""What a JPEG stream's header says: tables, components, colour segments. Markers: ITU-T T.81 annex B."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tiledblend.sources.tiff.segments import SegmentError

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_DQT, _DHT, _SOS, _DRI = 0xDB, 0xC4, 0xDA, 0xDD
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ZIGZAG = (
    *(0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21),
    *(28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61),
    *(54, 47, 55, 62, 63),
)

Table = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Component:
    """identifier; sampling: (x, y) factors; table: number of its quantisation table."""

    identifier: int
    sampling: tuple[int, int]
    table: int


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """Up to the first scan's data. marker: the frame's, 0 in tables alone. shape: (y, x). quantisation: values in the
    order of rows, by number. entropy: code lengths and symbols as stored, by class and number. adobe: the transform
    that an Adobe segment states. end: where the scan's data begins."""

    marker: int = 0
    bits: int = 0
    shape: tuple[int, int] = (0, 0)
    components: tuple[Component, ...] = ()
    quantisation: dict[int, Table] = field(default_factory=dict)
    entropy: dict[int, bytes] = field(default_factory=dict)
    is_jfif: bool = False
    adobe: int | None = None
    end: int = 0


def marker_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where it begins, where it ends) of the segments up to the first scan's data. Raises SegmentError."""
    if data[:2] != SOI:
        raise SegmentError(f"not a JPEG (first bytes {data[:4].hex(' ')})")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise SegmentError(f"damaged JPEG: no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        if marker == 0xD9:
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            raise SegmentError(f"damaged or truncated JPEG: marker segment at byte {at}")
        yield marker, at, end
        if marker == _SOS:
            return
        at = end


def read_header(data: bytes) -> StreamHeader:
    """Of a stream, or of tables alone. Raises SegmentError."""
    facts: dict[str, object] = {}
    quantisation: dict[int, Table] = {}
    entropy: dict[int, bytes] = {}
    for marker, at, end in marker_segments(data):
        body = data[at + 4 : end]
        if marker == _DQT:
            quantisation |= _quantisation(body)
        elif marker == _DHT:
            entropy |= _entropy(body)
        elif marker in _SOF:
            facts |= _frame(marker, body)
        elif marker == 0xE0 and body[:5] == b"JFIF\0":
            facts["is_jfif"] = True
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            facts["adobe"] = body[11]
        elif marker == _SOS:
            facts["end"] = end
    return StreamHeader(quantisation=quantisation, entropy=entropy, **facts)  # type: ignore[arg-type]


def _frame(marker: int, body: bytes) -> dict[str, object]:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise SegmentError("damaged JPEG: frame header")
    components = tuple(
        Component(body[i], (body[i + 1] >> 4, body[i + 1] & 15), body[i + 2])
        for i in range(6, 6 + 3 * body[5], 3)
    )  # fmt: skip
    shape = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return {"marker": marker, "bits": body[0], "shape": shape, "components": components}


def _quantisation(body: bytes) -> dict[int, Table]:
    found: dict[int, Table] = {}
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        values = body[at + 1 : at + 1 + size]
        if len(values) < size or wide > 1:
            raise SegmentError("damaged JPEG: quantisation table")
        zigzag = [int.from_bytes(values[2 * i : 2 * i + 2], "big") for i in range(64)] if wide else list(values)
        table = [0] * 64
        for place, value in zip(_ZIGZAG, zigzag, strict=True):
            table[place] = value
        found[number] = tuple(table)
        at += 1 + size
    return found


def _entropy(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(body):
        size = 16 + sum(body[at + 1 : at + 17])
        table = body[at + 1 : at + 1 + size]
        if len(table) < size:
            raise SegmentError("damaged JPEG: Huffman table")
        found[body[at]] = table
        at += 1 + size
    return found


def without_tables(data: bytes, identifiers: tuple[int, ...], *, drop_tables: bool) -> bytes:
    """A stream without what applications said, with these component identifiers; without its tables if they are to come
    from elsewhere."""
    parts, known, end = [SOI], dict[int, int](), 2
    for marker, at, stop in marker_segments(data):
        segment = bytearray(data[at:stop])
        end = stop
        if 0xE0 <= marker <= 0xEF or marker == 0xFE or (drop_tables and marker in (_DQT, _DHT)):
            continue
        if marker in _SOF:
            known = {segment[10 + 3 * i]: identifiers[i] for i in range(segment[9])}
            for i in range(segment[9]):
                segment[10 + 3 * i] = identifiers[i]
        elif marker == _SOS:
            for i in range(segment[4]):
                segment[5 + 2 * i] = known[segment[5 + 2 * i]]
        parts.append(bytes(segment))
    return b"".join(parts) + data[end:]


def with_tables(data: bytes, tables: bytes | None) -> bytes:
    """A complete stream of an abbreviated one and the tables that it relies on."""
    return data if tables is None else SOI + tables[2:-2] + data[2:]
