"""One tile's part of an OME-TIFF: its TIFF tiles of all its levels one after the other, then where each of them is.

A part ends in a table (`PLACE` for each of `TiffLayout.entries`) and the CRC-32C of what is before it. What the next
stage starts from, the last level's pixels without loss, is an object of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cached_property
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.objects import Data, Draft, ObjectStore
from tiledblend.containers.digests import hasher
from tiledblend.containers.ometiff.layout import TiffLayout, part_key, pixels_key
from tiledblend.containers.receipts import Receipt
from tiledblend.errors import StorageError, VerificationError
from tiledblend.geometry import Region, Tile

Pixels = NDArray[Any]
PLACE = np.dtype([("offset", "<u8"), ("count", "<u4"), ("passed", "?")])
_CHECKSUM = struct.Struct("<I")
_OWNER = struct.Struct("<i")
_ZSTD_LEVEL = 1
NOBODY = -1


class TilePart:
    """Takes a tile's rows of chunks and chunks that are stored already; each is written when it is added.

    Every TIFF tile of the part is added exactly once, which `finish` asserts.
    """

    def __init__(self, layout: TiffLayout, store: ObjectStore, tile: Tile) -> None:
        self.layout, self.store, self.tile = layout, store, tile
        levels = layout.tile_levels(tile)
        self._encode: dict[int, Callable[[Pixels], Data]] = {level: layout.encoder(level) for level in levels}
        self._places = np.zeros(layout.entries(tile), PLACE)
        self._added = np.zeros(len(self._places), bool)
        self._blocks = dict(zip(layout.tile_levels(tile), layout.blocks(tile), strict=True))
        self._digest, self._size, self._crc = hasher(), 0, google_crc32c.Checksum()
        self._last = layout.grid.stage_levels(tile.stage)[-1] if layout.objects_of(tile.stage) > 1 else None
        self._pixels: bytes | None = None
        self._drafts: list[Draft] = []

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Pixels) -> None:
        """As `PartWriter.add_chunk_row`; rows and columns beyond the file's level are left out."""
        if level in self._blocks:
            side, (rows, columns) = self.layout.grid.chunk, self._blocks[level][2]
            height, width = self.layout.tile_region(self.tile, level).shape
            inside = pixels[: height - row_in_tile * side, :width] if row_in_tile < rows else pixels[:0]
            for column in range(columns if row_in_tile < rows else 0):
                self._add(level, row_in_tile, column, inside[:, column * side : (column + 1) * side])
        if level == self._last:
            self.keep_pixels(pixels)

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Pixels) -> None:
        """As `PartWriter.add_chunk`."""
        rows, columns = self._blocks[level][2]
        if chunk_row < rows and chunk_col < columns:
            height, width = self.layout.tile_region(self.tile, level).shape
            y, x = chunk_row * self.layout.grid.chunk, chunk_col * self.layout.grid.chunk
            self._add(level, chunk_row, chunk_col, pixels[: height - y, : width - x])

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        """As `PartWriter.add_encoded`. group: the plane."""
        assert not has_checksum
        self._write(level, chunk_row, chunk_col, group, data, passed=True)

    def keep_pixels(self, pixels: Pixels | None, owner: int = NOBODY) -> None:
        """All pixels of the tile's last level, for the stage that follows; None where they are a layer's own.

        owner: the layer that alone decides all of the tile.
        """
        kept = b"" if pixels is None else np.ascontiguousarray(pixels).tobytes()
        self._pixels = _OWNER.pack(owner) + (imagecodecs.zstd_encode(kept, level=_ZSTD_LEVEL) if kept else b"")

    def finish(self) -> tuple[Receipt, ...]:
        """As `PartWriter.finish`."""
        try:
            if not self._added.all() or (self._pixels is None) != (self._last is None):
                raise RuntimeError(f"{self.tile}: {int(self._added.sum())} of {len(self._added)} TIFF tiles were added")
            checksum = _CHECKSUM.pack(int.from_bytes(self._crc.digest(), "big"))
            self._append(self._places.tobytes() + checksum)
            receipts = [Receipt(part_key(self.tile), self._size, self._digest.hexdigest())]
            drafts = [self.draft]
            if self._pixels is not None:
                digest = hasher()
                digest.update(self._pixels)
                receipts.append(Receipt(pixels_key(self.tile), len(self._pixels), digest.hexdigest()))
                drafts.append(self._draft(pixels_key(self.tile)))
                drafts[-1].append(self._pixels)
            self.store.put_drafts(drafts)
        finally:
            self.close()
        return tuple(receipts)

    def close(self) -> None:
        """Discard what was not put."""
        for draft in self._drafts:
            draft.discard()
        self._drafts.clear()

    @cached_property
    def draft(self) -> Draft:
        """Begun with the first tile."""
        return self._draft(part_key(self.tile))

    def _draft(self, key: str) -> Draft:
        self._drafts.append(self.store.draft(key))
        return self._drafts[-1]

    def _add(self, level: int, row: int, column: int, pixels: Pixels) -> None:
        if self.layout.is_rgb:
            self._write(level, row, column, 0, self._encode[level](pixels))
            return
        for plane in range(self.layout.planes):
            self._write(level, row, column, plane, self._encode[level](pixels[:, :, plane]))

    def _write(self, level: int, row: int, column: int, plane: int, data: Data, *, passed: bool = False) -> None:
        _, first, (rows, columns), _ = self._blocks[level]
        entry = first + (plane * rows + row) * columns + column
        if self._added[entry]:
            raise ValueError(f"{self.tile} level {level}: tile {(row, column, plane)} added twice")
        self._added[entry] = True
        self._places[entry] = self._size, len(data), passed
        self._crc.update(bytes(data) if isinstance(data, memoryview) else data)
        self._append(data)

    def _append(self, data: Data) -> None:
        self._digest.update(data)
        self.draft.append(data)
        self._size += len(data)


class PartEnd:
    """What a part says of itself at its end. places: of each entry, in the part. checksum: CRC-32C of the tiles."""

    def __init__(self, layout: TiffLayout, tile: Tile, data: bytes) -> None:
        length = len(data) - _CHECKSUM.size
        if length != layout.entries(tile) * PLACE.itemsize:
            raise VerificationError(f"{part_key(tile)}: its table is damaged; run again with --resume")
        self.places = np.frombuffer(data[:length], PLACE)
        (self.checksum,) = _CHECKSUM.unpack(data[length:])

    @staticmethod
    def nbytes(layout: TiffLayout, tile: Tile) -> int:
        """Bytes of the end of a tile's part."""
        return layout.entries(tile) * PLACE.itemsize + _CHECKSUM.size

    @property
    def data_bytes(self) -> int:
        """Of the part's tiles."""
        return int(self.places["count"].sum(dtype=np.uint64))


def part_problem(layout: TiffLayout, key: str, data: bytes) -> str | None:
    """What is wrong with a part, by its own checksum; None if nothing. Pixels have none: they are known by receipts."""
    if not key.endswith(".part"):
        return None
    tile = Tile(*map(int, key.removesuffix(".part").split("/")))
    size = PartEnd.nbytes(layout, tile)
    try:
        end = PartEnd(layout, tile, data[-size:])
    except VerificationError as error:
        return str(error)
    crc = google_crc32c.Checksum(data[:-size])
    right = end.data_bytes == len(data) - size and int.from_bytes(crc.digest(), "big") == end.checksum
    return None if right else f"{key}: its tiles are damaged"


def finer_pixels(layout: TiffLayout, store: ObjectStore, tile: Tile) -> tuple[int, Pixels | None]:
    """(the layer that alone decides all of a tile, the pixels of its last level); None where they are that layer's own.

    Raises StorageError if the object is missing, VerificationError if it does not decode.
    """
    key = pixels_key(tile)
    data = store.get(key)
    if data is None:
        raise StorageError(f"{store.uri}: object {key} is missing; run again with --resume")
    level = layout.grid.stage_levels(tile.stage)[-1]
    shape = (*layout.grid.tile_region(tile, level).shape, layout.channels)
    size = int(np.prod(shape)) * np.dtype(layout.dtype).itemsize
    try:
        (owner,) = _OWNER.unpack_from(data)
        if len(data) == _OWNER.size and owner != NOBODY:
            return owner, None
        raw = imagecodecs.zstd_decode(data[_OWNER.size :], out=size)
        return owner, np.frombuffer(raw, layout.dtype).reshape(shape)
    except (RuntimeError, ValueError, struct.error) as error:
        raise VerificationError(f"{key}: does not decode; run again with --resume") from error


def read_pixels(layout: TiffLayout, store: ObjectStore, level: int, region: Region) -> Pixels:
    """Pixels (h, w, channels) of the last level of a stage, where every tile has them."""
    stage, side = level // layout.grid.stage, layout.grid.level_shard(level)
    out = np.empty((*region.shape, layout.channels), layout.dtype)
    for row in range(region.y0 // side, (region.y1 - 1) // side + 1):
        for column in range(region.x0 // side, (region.x1 - 1) // side + 1):
            tile = Tile(stage, row, column)
            whole, (_, pixels) = layout.grid.tile_region(tile, level), finer_pixels(layout, store, tile)
            assert pixels is not None
            part = whole & region
            out[part.shift(-region.y0, -region.x0).slices] = pixels[part.shift(-whole.y0, -whole.x0).slices]
    return out
