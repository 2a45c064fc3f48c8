"""Compressed chunks of tiles in the making, apart from the heap: they outlive the pixels around them.

Between pixel buffers that come and go, chunks that stay until their tile is stored leave holes in the heap that nothing
fits into: a run of 256 tiles grew by 80 MB. Here they lie one after the other in slabs that tiles pass on. That is for
objects that are put whole, those of buckets and of zarr v2; a shard in a directory grows in its file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tiledblend.bytes.objects import Data, Draft
from tiledblend.guard.process import KEPT_BYTES

SLAB_BYTES = 1 << 20
_free: list[memoryview] = []
# Of this process alone, as the heap is: by default a child that is forked off would share it.
_OPTIONS: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


class Piece(NamedTuple):
    """Bytes [start, stop) of a slab."""

    slab: int
    start: int
    stop: int


class Spool:
    """The bytes of one tile. Used by one thread."""

    def __init__(self) -> None:
        self._slabs: list[memoryview] = []
        self._used = SLAB_BYTES

    def keep(self, data: Data) -> list[Piece]:
        """Copy `data`: where it lies, in order. Raises MemoryError."""
        pieces, rest = [], memoryview(data)
        while rest:
            if self._used == SLAB_BYTES:
                self._slabs.append(_slab())
                self._used = 0
            here = rest[: SLAB_BYTES - self._used]
            piece = Piece(len(self._slabs) - 1, self._used, self._used + len(here))
            self._slabs[-1][piece.start : piece.stop] = here
            pieces.append(piece)
            self._used = piece.stop
            rest = rest[len(here) :]
        return pieces

    def parts(self, pieces: Iterable[Piece]) -> list[memoryview]:
        """The bytes of pieces, one after the other; neighbours are one part."""
        joined: list[Piece] = []
        for piece in pieces:
            if joined and joined[-1].slab == piece.slab and joined[-1].stop == piece.start:
                joined[-1] = joined[-1]._replace(stop=piece.stop)
            else:
                joined.append(piece)
        return [self._slabs[slab][start:stop] for slab, start, stop in joined]

    def release(self) -> None:
        """Give the slabs to the next tile: what `parts` returned is not looked at any more."""
        _free.extend(self._slabs[: max(0, KEPT_BYTES // SLAB_BYTES - len(_free))])
        self._slabs, self._used = [], SLAB_BYTES


class SpooledDraft:
    """An object for a store that takes whole objects only: kept in memory until it is put."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._spool, self._pieces = Spool(), list[Piece]()

    def append(self, data: Data) -> None:
        """Keep a copy. Raises MemoryError."""
        self._pieces += self._spool.keep(data)

    def parts(self) -> list[memoryview]:
        """The content; valid until `discard`."""
        return self._spool.parts(self._pieces)

    def discard(self) -> None:
        """Give the memory to the next one."""
        self._pieces.clear()
        self._spool.release()


def contents(drafts: Iterable[Draft]) -> Iterator[tuple[str, list[memoryview]]]:
    """(key, content) of each spooled draft, for a store's `put_many`."""
    for draft in drafts:
        assert isinstance(draft, SpooledDraft)
        yield draft.key, draft.parts()


def _slab() -> memoryview:
    try:
        return _free.pop()
    except IndexError:
        pass
    try:
        return memoryview(mmap.mmap(-1, SLAB_BYTES, **_OPTIONS))
    except OSError as error:
        raise MemoryError from error
