"""An OME-TIFF while it grows: tiles in their order, each block with a line in a journal, directories last.

Until `finish`, the header names no directory, so that no reader opens the file. The order is fixed, so the journal says
where every tile lies by the lengths alone, and a resumed file has the bytes of one written in one go.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.objects import storage_error, write_fully
from tiledblend.containers.lock import Lock
from tiledblend.containers.ometiff.bigtiff import FIRST_POINTER, HEADER_BYTES, header
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.seal import checksum, seal, stored_checksum
from tiledblend.containers.ometiff.work import WorkFolder
from tiledblend.errors import TiledblendError

SECONDS_BETWEEN_SYNCS = 2.0


class Assembly:
    """The one writer of a file's tiles. blocks: how many are written, those of earlier runs included."""

    def __init__(self, work: WorkFolder, layout: TiffLayout, lock: Lock) -> None:
        self.work, self.layout, self.lock = work, layout, lock
        self._counts = array("I")
        self._sizes, self._checksums = array("Q"), array("I")
        self._end = HEADER_BYTES
        self._lines: list[bytes] = []
        self._synced = time.monotonic()
        self._finished = False
        self.blocks = 0
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            self._tiles = os.open(work.tiles, flags, 0o666)
            self._journal = os.open(work.journal, flags, 0o666)
            self._recover()
        except OSError as error:
            raise storage_error(error, "write", work.tiles) from error

    @property
    def counts(self) -> NDArray[np.uint32]:
        """Bytes of each tile, in the order of writing."""
        return np.array(self._counts, np.uint32)

    def append(self, tiles: Sequence[bytes | bytearray]) -> None:
        """Write the next block's tiles. Raises StorageError, RefusedError when another run took over."""
        lengths = [len(tile) for tile in tiles]
        try:
            write_fully(self._tiles, tiles)
        except OSError as error:
            raise storage_error(error, "write", self.work.tiles) from error
        crc = checksum(tiles)
        self._take(lengths, crc)
        self._lines.append(_line(self.blocks, lengths, crc))
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self.sync()

    def sync(self) -> None:
        """Make all tiles durable, then the journal's lines about them."""
        self.lock.check()
        try:
            if self._lines:
                os.fsync(self._tiles)
                write_fully(self._journal, [b"".join(self._lines)])
                os.fsync(self._journal)
                self._lines.clear()
        except OSError as error:
            raise storage_error(error, "write", self.work.tiles) from error
        self._synced = time.monotonic()

    def finish(self, tail: bytes, first: int, job: bytes) -> None:
        """Write the directories, the checksums of all and the job's digest, then, when that is on disk, the header that
        names the first directory."""
        self.sync()
        self._finished = True
        try:
            sizes = [HEADER_BYTES, *self._sizes, len(tail)]
            checksums = [checksum([header(first)]), *self._checksums, checksum([tail])]
            write_fully(self._tiles, [tail, seal(sizes, checksums, job)])
            os.fsync(self._tiles)
            os.pwrite(self._tiles, header(first)[FIRST_POINTER:], FIRST_POINTER)
            os.fsync(self._tiles)
        except OSError as error:
            raise storage_error(error, "write", self.work.tiles) from error

    def close(self) -> None:
        """Keep what is written, close the files and give up the lock. Quiet: after an error that one is told."""
        if not self._finished:
            with suppress(TiledblendError, OSError):
                # Half a block makes room for the journal on a full disk.
                os.ftruncate(self._tiles, self._end)
                self.sync()
        with suppress(TiledblendError):
            self.lock.release()
        self.lock.forget()
        os.close(self._tiles)
        os.close(self._journal)

    def _take(self, lengths: Sequence[int], crc: int) -> None:
        self._counts.extend(lengths)
        self._sizes.append(sum(lengths))
        self._checksums.append(crc)
        self._end += sum(lengths)
        self.blocks += 1

    def _recover(self) -> None:
        """Keep the blocks whose line and bytes are both whole, and cut off what follows them."""
        kept = 0
        with open(self.work.journal, "rb") as journal:
            for line in journal:
                found = _parse(line, self.blocks)
                if found is None or stored_checksum(self._tiles, self._end, sum(found[0])) != found[1]:
                    break
                self._take(*found)
                kept += len(line)
        os.ftruncate(self._journal, kept)
        os.lseek(self._journal, kept, os.SEEK_SET)
        os.ftruncate(self._tiles, self._end)
        os.pwrite(self._tiles, header(), 0)
        os.lseek(self._tiles, self._end, os.SEEK_SET)


def _line(block: int, lengths: Sequence[int], checksum: int) -> bytes:
    """One journal line, of the block that is the `block`-th from 1: checksum of the line, space, JSON, newline."""
    text = json.dumps([block, lengths, checksum], separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes, blocks: int) -> tuple[list[int], int] | None:
    """Lengths and checksum of the line that follows `blocks` others; None for a torn or foreign line."""
    written, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or written != b"%08x" % zlib.crc32(text):
        return None
    document: Any = json.loads(text)
    return (document[1], document[2]) if document[0] == blocks + 1 else None
