"""A first walk over a TIFF's directories, with limits, before any parser builds objects from them.

A hostile file may chain directories in a circle or by the million, or claim tables larger than itself. This walk
costs one small read per directory and refuses those by name. Layouts: TIFF 6.0 section 2, BigTIFF, and
NDPI (classic little-endian with 64-bit offsets: high halves of values follow the directory).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tiledblend.bytes.ranges import ByteReader, SeekableBytes
from tiledblend.errors import BadInputError
from tiledblend.geometry import ceil_div

MAX_DIRECTORIES = 20_000
# Grouping pages into images costs a parser the square of the number of unlike ones: 500 take 1 s, 4,000 take 40.
MAX_LAYOUTS = 512
MAX_TAGS = 4096
MAX_TAG_BYTES = 1 << 30
MAX_TEXT_BYTES = 64 << 20

_ITEM_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TABLES = {273: "StripOffsets", 279: "StripByteCounts", 324: "TileOffsets", 325: "TileByteCounts", 330: "SubIFDs"}
_SUBIFDS = 330
# Of what a page's sides need, and beside it: a parser makes an object of each entry, 3 GB of a GiB of them.
_MOST_NEEDED, _MOST_SPARE = 4, 65536
# What makes two pages unlike: kind, sides, samples, compression, planes, predictor, tiles.
_LAYOUT_TAGS = frozenset({254, 255, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339, 32997})
_NDPI_FLAG = 65420
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# What decides how a page's segments are cut, coded and understood: bits, compression, photometric, fill order,
# orientation, strips, planes, fax options, predictor, colour map, tiles, extra samples, formats, subsampling, nodata.
_CODING_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 274, 277, 278, 284, 292, 293, 317, 320, 322, 323, 338, 339, 530, 32997, 42113, 50674}
)
_MOST_COMPARED = 1 << 20

Layout = tuple[tuple[int, int, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Format:
    """How directories are written. order: "<" or ">". first: position of the first directory's offset."""

    order: str
    first: int
    count: str
    offset: str
    entry: int
    is_ndpi: bool = False

    @property
    def value(self) -> int:
        """Bytes of a value that fit into a directory's entry."""
        return 8 if self.entry == 20 else 4


@dataclass(frozen=True, slots=True)
class Structure:
    """What the walk found. byteorder: "<" or ">". directories: number of IFDs, SubIFDs included.

    chain: offsets of the main chain's directories. codings: of each directory's offset, its entries that say how the
    page is stored, as they are in the file.
    """

    byteorder: str
    is_bigtiff: bool
    is_ndpi: bool
    directories: int
    chain: tuple[int, ...]
    codings: Mapping[int, bytes]
    _reader: ByteReader

    def alike(self, first: int, other: int) -> bool:
        """True when the directories at two offsets say the same of how their pages are stored, entry by entry."""
        one, two = self.codings.get(first), self.codings.get(other)
        if one is None or two is None:
            return first == other
        if one == two:
            return True
        entries = struct.Struct(self.byteorder + ("HHQ8s" if self.is_bigtiff else "HHI4s"))
        pairs = list(zip(entries.iter_unpack(one), entries.iter_unpack(two), strict=False))
        return len(one) == len(two) and all(a[:3] == b[:3] and self._value(a) == self._value(b) for a, b in pairs)

    def tile_sides(self) -> Iterator[tuple[int, int]]:
        """(y, x) of a tile of each directory that has tiles, as it says."""
        entries = struct.Struct(self.byteorder + ("HHQ8s" if self.is_bigtiff else "HHI4s"))
        order: Literal["little", "big"] = "little" if self.byteorder == "<" else "big"
        for coding in self.codings.values():
            sides = {
                code: int.from_bytes(value[: _ITEM_SIZES[kind]], order)
                for code, kind, count, value in entries.iter_unpack(coding)
                if code in (_TILE_WIDTH, _TILE_LENGTH) and count == 1 and kind in (3, 4, 16)
            }
            if len(sides) == 2:
                yield sides[_TILE_LENGTH], sides[_TILE_WIDTH]

    def _value(self, entry: tuple[int, int, int, bytes]) -> bytes:
        """The bytes of an entry's value, wherever they are; of one too long to compare, its place."""
        _, kind, count, value = entry
        size = count * _ITEM_SIZES.get(kind, 1)
        if size <= len(value) or size > _MOST_COMPARED:
            return value[:size]
        offset = struct.unpack(self.byteorder + ("Q" if self.is_bigtiff else "I"), value)[0]
        return self.bytes_at(offset, size) or value

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Some bytes of the file, b"" where it ends before."""
        return self._reader.pread(offset, size) if offset + size <= self._reader.size else b""


def walk(reader: ByteReader) -> Structure:
    """Visit every directory once and check the limits. Raises BadInputError, one line, for a TIFF beyond them."""
    file = SeekableBytes(reader)
    form = _read_format(reader, file)
    first = _read_offset(reader, file, form, form.first)
    if not first:
        raise BadInputError(f"{reader.uri}: a TIFF without any image directory; it is damaged or unfinished")
    seen: dict[int, bytes] = {}
    layouts: set[Layout] = set()
    below = _walk_chain(reader, file, form, first, seen, layouts)
    chain = tuple(seen)
    while below:
        offset = below.pop()
        if offset not in seen:  # a SubIFD may be listed twice, or be in the main chain too: nothing goes round
            _check_number(reader, len(seen) + 1)
            _, children, seen[offset] = _visit(reader, file, form, offset, layouts)
            below += children
    return Structure(form.order, form.entry == 20, form.is_ndpi, len(seen), chain, seen, reader)


def first_tags(reader: ByteReader, codes: Sequence[int]) -> dict[int, bytes]:
    """The values of some tags of the first directory, as bytes; empty where it cannot be read (`walk` says why)."""
    file = SeekableBytes(reader)
    found: dict[int, bytes] = {}
    try:
        form = _read_format(reader, file)
        entries = list(_entries(reader, file, form, _read_offset(reader, file, form, form.first)))
    except BadInputError:
        return found
    for code, kind, count, value, _ in entries:
        if code not in codes:
            continue
        size = count * _ITEM_SIZES.get(kind, 1)
        if size > form.value:
            file.seek(struct.unpack(form.order + ("Q" if form.value == 8 else "I"), value)[0])
            value = file.read(min(size, MAX_TEXT_BYTES))
        found[code] = value[:size]
    return found


def _walk_chain(
    reader: ByteReader, file: SeekableBytes, form: _Format, offset: int, seen: dict[int, bytes], layouts: set[Layout]
) -> list[int]:
    """Visit the main chain; return the offsets of all SubIFDs met."""
    below: list[int] = []
    while offset:
        if offset in seen:
            raise BadInputError(f"{reader.uri}: damaged: TIFF directory at byte {offset} is linked in a circle")
        _check_number(reader, len(seen) + 1 + len(below))
        after, children, seen[offset] = _visit(reader, file, form, offset, layouts)
        offset = after
        below += children
    return below


def _check_number(reader: ByteReader, directories: int) -> None:
    if directories > MAX_DIRECTORIES:
        raise BadInputError(
            f"{reader.uri}: has more than {MAX_DIRECTORIES} TIFF directories; split it into smaller files"
        )


def _read_format(reader: ByteReader, file: SeekableBytes) -> _Format:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if order and version == 43 and len(head) == 16:
        if struct.unpack(f"{order}HH", head[4:8]) != (8, 0):
            raise BadInputError(f"{reader.uri}: damaged: BigTIFF header with an offset size other than 8")
        return _Format(order, 8, "Q", "Q", 20)
    if order and version == 42:
        form = _Format(order, 4, "H", "I", 12)
        return _as_ndpi(reader, file, form) if order == "<" else form
    raise BadInputError(f"{reader.uri}: not a TIFF file (first bytes {head[:8].hex(' ')})")


def _as_ndpi(reader: ByteReader, file: SeekableBytes, form: _Format) -> _Format:
    """The 64-bit form of the layout when the first directory carries Hamamatsu's tag, else `form`."""
    ndpi = _Format("<", 4, "H", "Q", 12, is_ndpi=True)
    for candidate in (ndpi, form):
        try:
            offset = _read_offset(reader, file, candidate, candidate.first)
            entries = list(_entries(reader, file, candidate, offset))
        except BadInputError:
            continue
        if any(code == _NDPI_FLAG for code, *_ in entries):
            return ndpi
    return form


def _read_offset(reader: ByteReader, file: SeekableBytes, form: _Format, position: int) -> int:
    size = struct.calcsize(form.offset)
    file.seek(position)
    data = file.read(size)
    if len(data) < size:
        raise BadInputError(f"{reader.uri}: truncated: TIFF directory runs beyond the end of the file")
    offset = int(struct.unpack(form.order + form.offset, data)[0])
    if offset >= reader.size:
        raise BadInputError(
            f"{reader.uri}: truncated: TIFF directory at byte {offset} of a file of {reader.size} bytes; copy it again"
        )
    return offset


def _visit(
    reader: ByteReader, file: SeekableBytes, form: _Format, offset: int, layouts: set[Layout]
) -> tuple[int, list[int], bytes]:
    """(offset of the next directory, offsets of its SubIFDs, its coding), after checking every table's size."""
    below: list[int] = []
    entries = list(_entries(reader, file, form, offset))
    layouts.add(_layout(entries, form))
    if len(layouts) > MAX_LAYOUTS:
        raise BadInputError(
            f"{reader.uri}: has more than {MAX_LAYOUTS} TIFF pages that are unlike in size or samples; "
            "split it into smaller files"
        )
    segments = _most_segments(entries, form)
    for code, kind, count, value, position in entries:
        item = _ITEM_SIZES.get(kind, 1)
        size = count * item
        if size > form.value and (code in _TABLES or size > MAX_TAG_BYTES):
            start = struct.unpack(form.order + ("Q" if form.value == 8 else "I"), value)[0]
            if size > MAX_TAG_BYTES or start + size > max(reader.size, 2**32 if form.is_ndpi else 0):
                raise BadInputError(
                    f"{reader.uri}: damaged: {_TABLES.get(code, f'tag {code}')} of {count} entries at byte {start} "
                    f"does not fit into a file of {reader.size} bytes"
                )
        if code in _TABLES and code != _SUBIFDS and count > _MOST_NEEDED * segments + _MOST_SPARE:
            raise BadInputError(
                f"{reader.uri}: damaged: {_TABLES[code]} of {count} entries for a page that needs {segments} or fewer"
            )
        if code == _SUBIFDS:
            below += _subifds(reader, file, form, item, count, value, position)
    after = offset + struct.calcsize(form.count) + len(entries) * form.entry
    return _read_offset(reader, file, form, after), below, _coding(entries, form)


def _coding(entries: Sequence[tuple[int, int, int, bytes, int]], form: _Format) -> bytes:
    """The entries that say how a page is stored, as they stand in its directory."""
    pack = struct.Struct(form.order + ("HHQ8s" if form.entry == 20 else "HHI4s")).pack
    return b"".join(pack(code, kind, count, value) for code, kind, count, value, _ in entries if code in _CODING_TAGS)


def _most_segments(entries: Sequence[tuple[int, int, int, bytes, int]], form: _Format) -> int:
    """Tiles of a page, or rows, of which a strip has one or more; of all its samples."""
    order: Literal["little", "big"] = "little" if form.order == "<" else "big"
    facts = {
        code: int.from_bytes(value[: _ITEM_SIZES[kind]], order)
        for code, kind, count, value, _ in entries
        if count == 1 and kind in (3, 4, 16)
    }
    width, height, samples = (facts.get(code, 1) for code in (256, 257, 277))
    tile_y, tile_x = facts.get(323, 1), facts.get(322, width)
    depth = facts.get(32997, 1)  # of a volume
    return samples * depth * ceil_div(height, max(1, tile_y)) * ceil_div(width, max(1, tile_x))


def _layout(entries: Sequence[tuple[int, int, int, bytes, int]], form: _Format) -> Layout:
    """What decides whether two pages are alike; values that stand elsewhere in the file count by their number only."""
    return tuple(
        (code, count, value if count * _ITEM_SIZES.get(kind, 1) <= form.value else b"")
        for code, kind, count, value, _ in entries
        if code in _LAYOUT_TAGS
    )


def _entries(
    reader: ByteReader, file: SeekableBytes, form: _Format, offset: int
) -> Iterator[tuple[int, int, int, bytes, int]]:
    """(code, type, count, value field, position of the value field) of each entry of a directory."""
    size = struct.calcsize(form.count)
    file.seek(offset)
    head = file.read(size)
    number = int(struct.unpack(form.order + form.count, head)[0]) if len(head) == size else 0
    if not 1 <= number <= MAX_TAGS:
        raise BadInputError(f"{reader.uri}: damaged: TIFF directory at byte {offset} with {number} tags")
    data = file.read(number * form.entry)
    if len(data) < number * form.entry:
        raise BadInputError(f"{reader.uri}: truncated: TIFF directory at byte {offset} runs beyond the end of the file")
    layout = struct.Struct(form.order + ("HHQ8s" if form.entry == 20 else "HHI4s"))
    for index, (code, kind, count, value) in enumerate(layout.iter_unpack(data)):
        yield code, kind, count, value, offset + size + index * form.entry + form.entry - form.value


def _subifds(
    reader: ByteReader, file: SeekableBytes, form: _Format, item: int, count: int, value: bytes, position: int
) -> list[int]:
    _check_number(reader, count)
    if item not in (4, 8):
        return []
    if count * item > form.value:
        position = struct.unpack(form.order + ("Q" if form.value == 8 else "I"), value)[0]
    file.seek(position)
    data = file.read(count * item)
    number = len(data) // item
    offsets = struct.unpack(f"{form.order}{number}{'Q' if item == 8 else 'I'}", data[: number * item])
    return [int(offset) for offset in offsets if 8 <= offset < reader.size]
