"""Decoded tiles that are kept for a while: those that other reads will use the rest of, and those that repeat."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.sources.tiff.large import LARGE_TILE

CACHE_BYTES = 4 * LARGE_TILE
REPEATED_STORED, REPEATED_BYTES, REPEATED_TILES = 1024, 1 << 20, 8

Pixels = NDArray[Any]


class PartlyUsed:
    """Decoded tiles that a read used only in part, until other reads have used the rest. Thread-safe.

    Reading an image in bands, or tile by tile, meets a tile that two of them share: with this it is decoded once.
    At most `limit` bytes are kept, the least recently used go first; a tile above a quarter of that is never kept.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, ...], tuple[Pixels, int]] = OrderedDict()

    def take(self, key: tuple[int, ...], used: int) -> Pixels | None:
        """The tile, if it is kept; it is dropped when `used` more pixels complete its use."""
        with self._lock:
            found = self._tiles.pop(key, None)
            if found is None:
                return None
            tile, left = found
            if left > used:
                self._tiles[key] = tile, left - used
            else:
                self._bytes -= tile.nbytes
            return tile

    def is_large(self, size: int) -> bool:
        """True for a tile of so many bytes that it is never kept."""
        return size > self._limit // 4

    def has(self, key: tuple[int, ...]) -> bool:
        """True when the tile is kept now."""
        with self._lock:
            return key in self._tiles

    def put(self, key: tuple[int, ...], tile: Pixels, left: int) -> None:
        """Keep a tile of which `left` pixels were not used yet."""
        if left <= 0 or self.is_large(tile.nbytes):
            return
        with self._lock:
            old = self._tiles.pop(key, None)
            self._bytes += tile.nbytes - (old[0].nbytes if old is not None else 0)
            self._tiles[key] = tile, left
            while self._bytes > self._limit:
                _, (gone, _) = self._tiles.popitem(last=False)
                self._bytes -= gone.nbytes


class Repeated:
    """Decoded tiles of one colour by their few stored bytes: a mask repeats its empty and its full tile everywhere.

    Thread-safe. The same bytes of the same size inside the image decode to the same pixels, which are read-only.
    """

    def __init__(self) -> None:
        self._tiles: dict[tuple[bytes, tuple[int, int], int], Pixels] = {}

    def get(self, data: bytes, shape: tuple[int, int], page: int) -> Pixels | None:
        """The tile of these bytes, if it is known; shape: of its part inside the image."""
        return self._tiles.get((data, shape, page)) if len(data) <= REPEATED_STORED else None

    def put(self, data: bytes, shape: tuple[int, int], page: int, tile: Pixels) -> None:
        """Remember a tile, if it is of one colour, small, and there is room."""
        if len(data) > REPEATED_STORED or tile.nbytes > REPEATED_BYTES or len(self._tiles) >= REPEATED_TILES:
            return
        if not is_uniform(tile):
            return
        kept = np.ascontiguousarray(tile)
        kept.flags.writeable = False
        self._tiles[data, shape, page] = kept


def is_uniform(tile: Pixels) -> bool:
    """True when all pixels (y, x, sample) have one colour."""
    return bool((tile == tile[0, 0]).all())
