"""Decoded tiles and strips that are too large to be kept for long, as long as one thread reads from them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

LARGE_TILE = 8 << 20
"""Bytes of a decoded tile above which it is a large one."""
LARGE_BYTES = 48 << 20

Key = tuple[int, ...]


class LargeTiles:
    """The large tiles that each thread decoded last, so that its next reads of them need no decoding. Thread-safe.

    A thread keeps at most `limit` bytes, or one tile. It finds what other threads keep, too.
    """

    def __init__(self, limit: int = LARGE_BYTES) -> None:
        self._limit = limit
        self._of_thread = threading.local()
        self._kept: WeakValueDictionary[Key, NDArray[Any]] = WeakValueDictionary()

    @property
    def _own(self) -> OrderedDict[Key, NDArray[Any]]:
        own: OrderedDict[Key, NDArray[Any]] | None = getattr(self._of_thread, "tiles", None)
        if own is None:
            own = self._of_thread.tiles = OrderedDict()
        return own

    def has(self, key: Key) -> bool:
        """True when a thread keeps the tile now."""
        return key in self._kept

    def get(self, key: Key) -> NDArray[Any] | None:
        """The tile, if a thread keeps it; this thread does then."""
        tile = self._own.pop(key, None)
        if tile is None:
            tile = self._kept.get(key)
        if tile is not None:
            self.make_room(tile.nbytes)
            self._own[key] = tile
        return tile

    def make_room(self, size: int) -> None:
        """Let go of this thread's oldest tiles, so that it can have one of `size` bytes."""
        own = self._own
        while own and sum(tile.nbytes for tile in own.values()) + size > self._limit:
            own.popitem(last=False)

    def put(self, key: Key, tile: NDArray[Any]) -> None:
        """Keep a tile that `make_room` was made for."""
        self._own[key] = self._kept[key] = tile

    def clear(self) -> None:
        """Let go of all that this thread keeps."""
        self._own.clear()
