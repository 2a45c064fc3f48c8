"""Whole objects taken from one store into another, checked on the way: by reference where the file system has that, by
the store itself in one bucket, through this process else."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tiledblend.bytes.objects import DirectoryStore, FileDraft, ObjectStore
from tiledblend.errors import StorageError

_FICLONE = 0x40049409
"""Linux: the blocks of a file become those of another one, without a copy (btrfs, xfs, bcachefs)."""
_COPY_BYTES = 1 << 20
"""At once: what is hashed and written while it is still in the processor's cache."""


class Wanted(NamedTuple):
    """An object as it must be: its length in bytes and the digest of its content, as hexadecimal digits."""

    key: str
    size: int
    digest: str


def take_objects(source: ObjectStore, target: ObjectStore, wanted: Sequence[Wanted], hasher: Callable[[], Any]) -> bool:
    """Put objects of `source` into `target` under the same keys. False, and none is to be relied on, when one is not
    there, or not what is wanted.

    hasher: an empty digest with `update` and `hexdigest`. Within one bucket only lengths are compared: the bytes do not
    come here. What cannot be read counts as not there.
    Raises StorageError, ResourceError for what cannot be written.
    """
    if isinstance(source, DirectoryStore) and isinstance(target, DirectoryStore):
        return _take_files(source, target, wanted, hasher)
    if source.local_path() is None and target.local_path() is None:
        from tiledblend.bytes.cloud import CloudStore

        if isinstance(source, CloudStore) and isinstance(target, CloudStore) and target.shares_bucket(source):
            return _copy_in_bucket(source, target, wanted)
    for number in range(0, len(wanted), 16):
        some = wanted[number : number + 16]
        found = [(one.key, _checked(_readable(source, one.key), one, hasher)) for one in some]
        data = [(key, content) for key, content in found if content is not None]
        if len(data) < len(some):
            return False
        target.put_many(data)
    return True


def _readable(source: ObjectStore, key: str) -> bytes | None:
    try:
        return source.get(key)
    except StorageError:
        return None


def _checked(data: bytes | None, one: Wanted, hasher: Callable[[], Any]) -> bytes | None:
    if data is None or len(data) != one.size:
        return None
    made = hasher()
    made.update(data)
    return data if made.hexdigest() == one.digest else None


def _copy_in_bucket(source: ObjectStore, target: ObjectStore, wanted: Sequence[Wanted]) -> bool:
    from tiledblend.bytes.buckets import connections
    from tiledblend.bytes.cloud import CloudStore

    assert isinstance(source, CloudStore)
    assert isinstance(target, CloudStore)
    return all(connections().map(lambda one: target.copy_from(source, one.key, one.size), wanted))


def _take_files(
    source: DirectoryStore, target: DirectoryStore, wanted: Sequence[Wanted], hasher: Callable[[], Any]
) -> bool:
    drafts: list[FileDraft] = []
    try:
        for one in wanted:
            draft = target.draft(one.key)
            drafts.append(draft)
            if not _filled(draft, source.local_path(one.key), one, hasher()):
                return False
        target.put_drafts(drafts)
        return True
    finally:
        for draft in drafts:
            draft.discard()


def _filled(draft: FileDraft, path: Path, one: Wanted, made: Any) -> bool:
    """Fill an empty draft with a file; True if what has arrived is what is wanted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_size != one.size:
            return False
        if draft.take(lambda out: _cloned(descriptor, out)):
            # A clone does not change with its original any more: it is what is hashed.
            with open(draft.temporary, "rb", buffering=0) as file:
                return _read(file.fileno(), one.size, made.update) and made.hexdigest() == one.digest

        def copied(data: memoryview) -> None:
            made.update(data)
            draft.append(data)

        return _read(descriptor, one.size, copied) and made.hexdigest() == one.digest
    finally:
        os.close(descriptor)


def _cloned(source: int, out: int) -> bool:
    """By reference: False where the file system cannot do that."""
    try:
        fcntl.ioctl(out, _FICLONE, source)
    except OSError:
        return False
    return True


def _read(descriptor: int, size: int, use: Callable[[memoryview], Any]) -> bool:
    """Hand on a file's first `size` bytes, piece by piece; False when it ends before or cannot be read."""
    buffer, done = memoryview(bytearray(min(size, _COPY_BYTES))), 0
    while done < size:
        try:
            count = os.preadv(descriptor, [buffer[: size - done]], done)
        except OSError:
            return False
        if count == 0:
            return False
        use(buffer[:count])
        done += count
    return True
