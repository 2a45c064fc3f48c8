"""Where receipt lines go: an append-only file on a file system, batches of create-only objects in a bucket."""

from __future__ import annotations

import os
from typing import Protocol

from tiledblend.bytes.objects import DirectoryStore, ObjectStore, mapped_errors, sync_folder, write_fully
from tiledblend.errors import RefusedError


class ReceiptLog(Protocol):
    """Where receipt lines go. interval: seconds between two `sync` that are worth their price."""

    interval: float
    closed: bool

    def append(self, line: bytes) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


def open_log(store: ObjectStore, key: str) -> ReceiptLog:
    """A new log of this driver alone: a file where objects are files, else numbered objects."""
    return FileLog(store, key) if isinstance(store, DirectoryStore) else BatchLog(store, key)


class FileLog:
    """An append-only file of this driver alone: a line is written at once and outlives this process."""

    interval = 1.0

    def __init__(self, store: DirectoryStore, key: str) -> None:
        self.path, self.closed = store.local_path(key), False
        self._unwritten, self._torn, self._dirty = b"", False, False
        with mapped_errors("create", self.path):
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            sync_folder(self.path.parent)

    def append(self, line: bytes) -> None:
        self._unwritten += line
        self._write()

    def sync(self) -> None:
        self._write()
        if self._dirty:
            with mapped_errors("write", self.path):
                os.fsync(self._descriptor)
            self._dirty = False

    def _write(self) -> None:
        if self._unwritten:
            self._dirty = True
            # After a failed write the file may end in half a line: a newline keeps it from spoiling the next.
            newline, self._torn = b"\n" * self._torn, True
            with mapped_errors("write", self.path):
                write_fully(self._descriptor, [newline, self._unwritten])
            self._unwritten, self._torn = b"", False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)


class BatchLog:
    """Numbered create-only objects: a bucket cannot append."""

    interval = 5.0

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.store, self.key, self.closed, self._batches = store, key, False, 0
        self._pending: list[bytes] = []

    def append(self, line: bytes) -> None:
        self._pending.append(line)

    def sync(self) -> None:
        if self._pending:
            self._batches += 1
            if not self.store.put_new(f"{self.key}.{self._batches:08d}", b"".join(self._pending)):
                raise RefusedError(f"{self.store.uri}: another run writes receipts of this one; this run stops")
            self._pending.clear()

    def close(self) -> None:
        self.closed = True
