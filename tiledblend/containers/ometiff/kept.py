"""A result stored as its base's image is: what its tiles have in common, and how those are made that cannot pass."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiledblend.containers.ometiff.encode import DEFLATE_LEVEL, ZSTD_LEVEL, padded
from tiledblend.sources.tiff.encoded import JpegCoding, Place, TiffTiles, TileCoding
from tiledblend.sources.tiff.streams import EOI, StreamHeader, read_header, without_tables

Pixels = NDArray[Any]
_SUBSAMPLING = {(1, 1): 0, (2, 1): 1, (2, 2): 2}
"""(x, y) of the first component against the others: what Pillow calls it."""


@dataclass(frozen=True)
class KeptLevel:
    """How the tiles of one of the file's levels are stored.

    jpeg: as the base's. tables: what all of them rely on (TIFF's tag 347); None: every tile is a complete stream.
    """

    codec: str
    predictor: int
    jpeg: JpegCoding | None
    tables: bytes | None

    @classmethod
    def of(cls, coding: TileCoding, others: list[TileCoding]) -> KeptLevel:
        """As a base stores it, so that tiles of `others`, which are coded alike, can lie beside its own.

        Either all tiles rely on the base's tables, or each has its own: a reader keeps those for the tiles that follow.
        """
        jpeg = coding.jpeg
        if jpeg is None:
            return cls(coding.codec, coding.predictor, None, None)
        shared = all(other.jpeg is not None and other.jpeg.tables == jpeg.tables for other in others)
        tables = jpeg.tables if shared and jpeg.tables is not None and _can_share(jpeg, jpeg.tables) else None
        return cls(coding.codec, coding.predictor, jpeg, tables)

    def takes(self, coding: TileCoding) -> bool:
        """True when tiles that are coded so can lie beside these."""
        if coding.codec != self.codec or coding.predictor != self.predictor:
            return False
        if self.jpeg is None or coding.jpeg is None:
            return self.jpeg is coding.jpeg
        alike = (coding.jpeg.colour, coding.jpeg.sampling) == (self.jpeg.colour, self.jpeg.sampling)
        return alike and (self.tables is None or coding.jpeg.tables == self.tables)

    def encoder(self, side: int) -> Callable[[Pixels], bytes]:
        """Function from a tile's pixels to its stored bytes. For one thread."""
        if self.jpeg is not None:
            jpeg, tables = self.jpeg, self.tables
            return lambda pixels: encode_jpeg(padded(pixels, side), jpeg, abbreviated=tables is not None)
        return lambda pixels: _encode_lossless(padded(pixels, side), self.codec, self.predictor)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        jpeg = None
        if self.jpeg is not None:
            jpeg = {
                "colour": self.jpeg.colour,
                "identifiers": list(self.jpeg.identifiers),
                "sampling": [list(pair) for pair in self.jpeg.sampling],
                "quantisation": [list(table) for table in self.jpeg.quantisation],
                "tables": None if self.jpeg.tables is None else self.jpeg.tables.hex(),
            }
        tables = None if self.tables is None else self.tables.hex()
        return {"codec": self.codec, "predictor": self.predictor, "jpeg": jpeg, "tables": tables}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> KeptLevel:
        """The inverse of `as_dict`."""
        jpeg, tables = document["jpeg"], document["tables"]
        coding = None
        if jpeg is not None:
            coding = JpegCoding(
                str(jpeg["colour"]),
                tuple(jpeg["identifiers"]),
                tuple((x, y) for x, y in jpeg["sampling"]),
                tuple(tuple(table) for table in jpeg["quantisation"]),
                None if jpeg["tables"] is None else bytes.fromhex(jpeg["tables"]),
            )
        kept = None if tables is None else bytes.fromhex(tables)
        return cls(str(document["codec"]), int(document["predictor"]), coding, kept)


class KeptTiles:
    """The tiles of a level of an image, for a file that takes them."""

    def __init__(self, tiles: TiffTiles, *, complete: bool) -> None:
        self._tiles, self._complete = tiles, complete

    @property
    def mean_bytes(self) -> float:
        """Of a tile, all its planes."""
        return self._tiles.mean_bytes

    def read(self, places: list[Place]) -> dict[Place, list[bytes]]:
        """As `TiffTiles.read`."""
        return self._tiles.read(places, complete=self._complete)


def can_encode(jpeg: JpegCoding) -> str | None:
    """Why tiles cannot be encoded as these are; None when they can."""
    first, *others = jpeg.sampling
    if others and (len(set(others)) != 1 or others[0] != (1, 1) or first not in _SUBSAMPLING):
        return f"chroma sampling {', '.join(f'{x}x{y}' for x, y in jpeg.sampling)}"
    if jpeg.colour == "rgb" and first != (1, 1):
        return "RGB with less chroma than luma"
    return None


def encode_jpeg(pixels: Pixels, jpeg: JpegCoding, *, abbreviated: bool) -> bytes:
    """A whole tile by the quantisation tables, the chroma sampling and the colours of another file's.

    abbreviated: without its tables, which are the file's. No segment of an application is in it: the tags say colours.
    """
    options: dict[str, Any] = {"qtables": [list(table) for table in _by_component(jpeg)]}
    if jpeg.colour == "grey":
        image = Image.fromarray(pixels if pixels.ndim == 2 else pixels[:, :, 0])
    else:
        image = Image.fromarray(pixels)
        options |= {"subsampling": _SUBSAMPLING[jpeg.sampling[0]], "keep_rgb": jpeg.colour == "rgb"}
    stream = io.BytesIO()
    image.save(stream, "jpeg", **options)
    return without_tables(stream.getvalue(), jpeg.identifiers, drop_tables=abbreviated)


def _by_component(jpeg: JpegCoding) -> list[tuple[int, ...]]:
    """Pillow takes a table a component, the last one for those that follow."""
    tables = list(jpeg.quantisation)
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    return tables


def _can_share(jpeg: JpegCoding, tables: bytes) -> bool:
    """True when what we encode can rely on these tables: the same, under the same numbers."""
    if can_encode(jpeg) is not None:
        return False
    side = 16
    samples = () if jpeg.colour == "grey" else (3,)
    own: StreamHeader = read_header(encode_jpeg(np.zeros((side, side, *samples), np.uint8), jpeg, abbreviated=False))
    known = read_header(tables[:-2] + EOI)
    return own.quantisation.items() <= known.quantisation.items() and own.entropy.items() <= known.entropy.items()


def _encode_lossless(pixels: Pixels, codec: str, predictor: int) -> bytes:
    if predictor == 2:
        pixels = imagecodecs.delta_encode(pixels, axis=1)
    elif predictor == 3:
        pixels = imagecodecs.floatpred_encode(pixels, axis=1)
    raw = pixels.tobytes()
    if codec == "deflate":
        return bytes(imagecodecs.deflate_encode(raw, level=DEFLATE_LEVEL))
    if codec == "zstd":
        return bytes(imagecodecs.zstd_encode(raw, level=ZSTD_LEVEL))
    return bytes(imagecodecs.lzw_encode(raw)) if codec == "lzw" else raw
