"""A TIFF's tiles as they are stored: how they are coded, and their bytes, checked and not decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import RasterSource
from tiledblend.sources.tiff.jpeg import SAYS_RGB, SAYS_YCBCR
from tiledblend.sources.tiff.segments import JPEG, SegmentError, check_segment, has_end
from tiledblend.sources.tiff.streams import Component, StreamHeader, read_header, with_tables

if TYPE_CHECKING:
    from tiledblend.sources.tiff.layout import StoredLevel
    from tiledblend.sources.tiff.reading import LevelReader
    from tiledblend.sources.tiff.source import TiffSource

CODECS = {1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate", 50000: "zstd"}
"""By the Compression tag: what passes from file to file as it is."""
_BASELINE = (0xC0, 0xC1, 0xC2)
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_SAMPLED_TILES = 16
Place = tuple[int, int]


class NotKept(Exception):  # noqa: N818 - an answer, not an error
    """Why tiles cannot pass, in words for people."""


@dataclass(frozen=True, slots=True)
class JpegCoding:
    """What the tiles of a level have in common. colour: "grey", "rgb", "ycbcr". identifiers, sampling: of each
    component. quantisation: of each component, as of one tile. tables: what all tiles rely on, None where each is
    complete."""

    colour: str
    identifiers: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]
    quantisation: tuple[tuple[int, ...], ...]
    tables: bytes | None


@dataclass(frozen=True, slots=True)
class TileCoding:
    """How the tiles of a level are stored. planes: pages of one sample, or one of `samples` samples."""

    codec: str
    side: int
    dtype: str
    samples: int
    planes: int
    predictor: int
    jpeg: JpegCoding | None = None


class TiffTiles:
    """The tiles of one level of an open TIFF. Made by `tiles_of`; reads only what it is asked for."""

    def __init__(self, source: TiffSource, number: int, coding: TileCoding) -> None:
        self.coding = coding
        self._source, self._number = source, number
        self._level: StoredLevel = source.stored[number]
        self._reader: LevelReader = source.level_readers[number]
        self._header: tuple[bytes, StreamHeader] | None = None

    @property
    def mean_bytes(self) -> float:
        """Of a tile, all its planes."""
        return float(sum(page.counts.mean() for page in self._level.pages))

    def read(self, places: list[Place], *, complete: bool = False) -> dict[Place, list[bytes]]:
        """Of each tile (row, column) that is stored as the others are, the bytes of every plane.

        complete: of JPEG, with the tables that it relies on. Raises BadInputError naming a tile that is damaged.
        """
        planes = range(len(self._level.pages))
        wanted = [(place, page) for place in places for page in planes]
        stored = self._reader.stored([(page, row, column) for (row, column), page in wanted])
        found: dict[Place, list[bytes]] = {}
        for (place, page), data in zip(wanted, stored, strict=True):
            taken = None if data is None else self._checked(place, page, data, complete)
            if taken is not None:
                found.setdefault(place, []).append(taken)
        return {place: parts for place, parts in found.items() if len(parts) == len(planes)}

    def _checked(self, place: Place, page: int, data: bytes, complete: bool) -> bytes | None:
        """The tile as it may be stored elsewhere; None where it is not like the others."""
        coding, side = self._level.pages[page].coding, self.coding.side
        region = Region(place[0] * side, place[1] * side, (place[0] + 1) * side, (place[1] + 1) * side)
        needed = (region & Region.of_shape(self._level.shape)).shape
        try:
            frame = check_segment(
                data, coding.compression, (side, side, coding.contiguous), needed, self._reader.frames
            )
            if frame is not None and not has_end(data, frame):
                return None  # its decoder is to say whether anything is missing
            if self.coding.jpeg is not None:
                return self._jpeg(data, page, complete)
            _check_lossless(data, self.coding.codec, coding.tile_bytes)
        except SegmentError as error:
            raise BadInputError(
                f"{self._source.name}: level {self._number}, region {region}: tile {place[0]}, {place[1]} cannot be "
                f"taken: {error}; restore the file"
            ) from error
        return data

    def _jpeg(self, data: bytes, page: int, complete: bool) -> bytes | None:
        jpeg, tables = self.coding.jpeg, self._level.pages[page].jpegtables
        assert jpeg is not None
        header = self._header_of(data)
        same = header.marker in _BASELINE and header.bits == 8 and header.shape == (self.coding.side,) * 2
        same = same and tuple(part.sampling for part in header.components) == jpeg.sampling
        if not same or not _is_coloured(header, jpeg.colour, self._level.pages[page].coding.jpeg):
            return None
        if jpeg.tables is not None and not complete:
            return None if header.quantisation or header.entropy else data
        return with_tables(data, tables)

    def _header_of(self, data: bytes) -> StreamHeader:
        """Most tiles of a level begin alike."""
        if self._header is None or not data.startswith(self._header[0]):
            header = read_header(data)
            self._header = data[: header.end], header
        return self._header[1]


def tiles_of(image: RasterSource, number: int) -> TiffTiles:
    """The tiles of level `number` of an image. Raises NotKept when they cannot pass to another file."""
    from tiledblend.sources.tiff.source import TiffSource

    if not isinstance(image, TiffSource):
        raise NotKept(f"{image.name} is no TIFF")
    level = image.stored[number]
    coding = level.coding
    codec = CODECS.get(coding.compression)
    if not coding.is_tiled:
        raise NotKept(f"{image.name} is stored in strips" + (" cut at restart markers" if coding.jpegheader else ""))
    if codec is None:
        raise NotKept(
            f"{image.name} is stored in compression {image.info.compression}, which no other file takes as it is"
        )
    if coding.tile[0] != coding.tile[1] or coding.tile[0] % 16:
        raise NotKept(
            f"{image.name} has tiles of {coding.tile[0]} x {coding.tile[1]} px; they must be squares of whole 16"
        )
    if not coding.is_plain or coding.convert is not None or coding.jpegheader is not None or coding.separate != 1:
        raise NotKept(f"{image.name} stores its samples in an order of its own")
    if level.notes or not image.is_whole:
        raise NotKept(f"{image.name} is not read whole as it is stored: turned, or some of its channels")
    facts = (codec, coding.tile[0], coding.dtype.name, coding.contiguous, len(level.pages), coding.predictor)
    if coding.compression not in JPEG:
        return TiffTiles(image, number, TileCoding(*facts))
    tiles = TiffTiles(image, number, TileCoding(*facts))
    return TiffTiles(image, number, TileCoding(*facts, _jpeg_coding(image, level, tiles)))


def _jpeg_coding(image: RasterSource, level: StoredLevel, tiles: TiffTiles) -> JpegCoding:
    """As of the level's first tile that is stored."""
    page, reader = level.pages[0], tiles._reader
    columns = page.coding.grid[1]
    for index in range(min(page.segments, 4096)):
        if not page.absent[index]:
            break
    (data,) = reader.stored([(0, index // columns, index % columns)])
    if data is None or len(level.pages) != 1:
        raise NotKept(f"{image.name} has no tile that tells how the others are coded")
    try:
        header = read_header(data)
        tables = None if page.jpegtables is None else read_header(page.jpegtables)
    except SegmentError as error:
        raise NotKept(f"{image.name}: {error}") from error
    known = {**(tables.quantisation if tables else {}), **header.quantisation}
    parts: tuple[Component, ...] = header.components
    if header.marker not in _BASELINE or header.bits != 8 or len(parts) not in (1, 3):
        raise NotKept(f"{image.name} holds JPEGs of {len(parts)} components of {header.bits} bits")
    if any(part.table not in known for part in parts):
        raise NotKept(f"{image.name} holds JPEGs without their tables")
    colour = "grey" if len(parts) == 1 else _colour_of(image, header, page.coding.jpeg)
    has_own = bool(header.quantisation or header.entropy)
    return JpegCoding(
        colour,
        tuple(part.identifier for part in parts),
        tuple(part.sampling for part in parts),
        tuple(known[part.table] for part in parts),
        None if has_own else page.jpegtables,
    )


def _colour_of(image: RasterSource, header: StreamHeader, stream: object) -> str:
    for colour in ("rgb", "ycbcr"):
        if _is_coloured(header, colour, stream):
            return colour
    raise NotKept(f"{image.name}: its tags and its JPEGs do not agree about their colours")


def _is_coloured(header: StreamHeader, colour: str, stream: object) -> bool:
    """True when tag and stream together say these colours, as reading takes them."""
    if colour == "grey" or stream is None:
        return colour == "grey"
    said = getattr(stream, "colours", None)
    if colour == "ycbcr":
        # The tag says it, as libtiff has it; or it says nothing and the stream is a JFIF.
        return said is SAYS_YCBCR or (said == b"" and header.is_jfif)
    return said is SAYS_RGB and not header.is_jfif and header.adobe in (None, 0)


def _check_lossless(data: bytes, codec: str, raw: int) -> None:
    """Raise SegmentError for bytes that cannot begin, or be, what the codec makes."""
    if codec == "none" and len(data) != raw:
        raise SegmentError(f"{len(data)} bytes where {raw} are stored uncompressed")
    if codec == "deflate" and (len(data) < 8 or data[0] & 15 != 8 or int.from_bytes(data[:2], "big") % 31):
        raise SegmentError("no zlib stream")
    if codec == "zstd" and not data.startswith(_ZSTD_MAGIC):
        raise SegmentError("no zstd frame")
    if codec == "lzw" and (len(data) < 2 or data[0] != 0x80):
        raise SegmentError("no LZW stream of TIFF 6.0")
