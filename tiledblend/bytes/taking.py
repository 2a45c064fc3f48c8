"""Whole objects taken from one store into another, checked where they arrive: by reference or inside the kernel in one
file system, by the store itself in one bucket, through this process else."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tiledblend.bytes.objects import Data, DirectoryStore, FileDraft, ObjectStore
from tiledblend.errors import StorageError

_FICLONE = 0x40049409
"""Linux: the blocks of a file become those of another one, without a copy (btrfs, xfs, bcachefs)."""
_COPY_BYTES = 1 << 24
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Wanted(NamedTuple):
    """An object as it must be: its length in bytes and the digest of its content, as hexadecimal digits."""

    key: str
    size: int
    digest: str


def take_objects(
    source: ObjectStore, target: ObjectStore, wanted: Sequence[Wanted], digest: Callable[[Data], str]
) -> bool:
    """Put objects of `source` into `target` under the same keys. False, and none is to be relied on, when one is not
    there, or not what is wanted.

    Within one bucket only lengths are compared: the bytes do not come here. What cannot be read counts as not there.
    Raises StorageError, ResourceError for what cannot be written.
    """
    if isinstance(source, DirectoryStore) and isinstance(target, DirectoryStore):
        return _take_files(source, target, wanted, digest)
    if source.local_path() is None and target.local_path() is None:
        from tiledblend.bytes.cloud import CloudStore

        if isinstance(source, CloudStore) and isinstance(target, CloudStore) and target.shares_bucket(source):
            return _copy_in_bucket(source, target, wanted)
    for number in range(0, len(wanted), 16):
        some = wanted[number : number + 16]
        found = [(one.key, _checked(_readable(source, one.key), one, digest)) for one in some]
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


def _checked(data: bytes | None, one: Wanted, digest: Callable[[Data], str]) -> bytes | None:
    return data if data is not None and len(data) == one.size and digest(data) == one.digest else None


def _copy_in_bucket(source: ObjectStore, target: ObjectStore, wanted: Sequence[Wanted]) -> bool:
    from tiledblend.bytes.buckets import connections
    from tiledblend.bytes.cloud import CloudStore

    assert isinstance(source, CloudStore)
    assert isinstance(target, CloudStore)
    return all(connections().map(lambda one: target.copy_from(source, one.key, one.size), wanted))


def _take_files(
    source: DirectoryStore, target: DirectoryStore, wanted: Sequence[Wanted], digest: Callable[[Data], str]
) -> bool:
    drafts: list[FileDraft] = []
    try:
        for one in wanted:
            draft = target.draft(one.key)
            drafts.append(draft)
            if not _filled(draft, source.local_path(one.key), one, digest):
                return False
        target.put_drafts(drafts)
        return True
    finally:
        for draft in drafts:
            draft.discard()


def _filled(draft: FileDraft, path: Path, one: Wanted, digest: Callable[[Data], str]) -> bool:
    """Fill an empty draft with a file; True if what has arrived is what is wanted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_size != one.size:
            return False
        if not (draft.take(lambda out: _copied(descriptor, out, one.size)) or _read_into(draft, descriptor, one.size)):
            return False
    finally:
        os.close(descriptor)
    return _digest_of(draft.temporary, digest) == one.digest


def _copied(source: int, out: int, size: int) -> bool:
    """Inside the kernel: False, and nothing has been written that counts, where it cannot do that."""
    try:
        fcntl.ioctl(out, _FICLONE, source)
        return True
    except OSError:
        pass
    done = 0
    try:
        while done < size:
            count = os.copy_file_range(source, out, min(size - done, _COPY_BYTES), done, done)
            if count == 0:
                break
            done += count
    except OSError as error:
        if error.errno in _FULL:
            raise
    if done < size:
        os.ftruncate(out, 0)
        return False
    return True


def _read_into(draft: FileDraft, source: int, size: int) -> bool:
    done = 0
    while done < size:
        try:
            data = os.pread(source, min(size - done, _COPY_BYTES), done)
        except OSError:
            return False
        if not data:
            return False
        draft.append(data)
        done += len(data)
    return True


def _digest_of(path: Path, digest: Callable[[Data], str]) -> str | None:
    """Of a file as it is there now; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return digest(b"")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as data:
                return digest(data)
    except OSError:
        return None
