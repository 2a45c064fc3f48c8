"""Where stored objects live: whole objects under keys, each put atomically and durably.

The same few verbs fit a directory and a bucket. A key is a relative path with "/" between its parts.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from tiledblend.bytes.buckets import path_of_file_url
from tiledblend.errors import StorageError, TiledblendError, UsageError, resource_error

Data = bytes | bytearray | memoryview
Blob = Data | Sequence[Data]
"""An object's content: one bytes-like, or parts that are stored one after the other without being joined."""

TEMPORARY_PREFIX = ".tiledblend-tmp-"


class Draft(Protocol):
    """An object that is being written, piece by piece; nobody sees it before it is put. Used by one thread."""

    def append(self, data: Data) -> None:
        """Write at the end. Raises StorageError, ResourceError."""

    def discard(self) -> None:
        """Give it up and leave nothing of it; nothing happens to one that was put."""


@runtime_checkable
class ObjectStore(Protocol):
    """Whole objects under keys. Implementations are picklable, thread-safe and carry no credentials in `uri`."""

    @property
    def uri(self) -> str:
        """Where the keys start, as the user would write it."""

    def put(self, key: str, data: Blob) -> None:
        """Store or replace an object, atomically and durably. Raises StorageError, ResourceError."""

    def put_many(self, items: Iterable[tuple[str, Blob]]) -> None:
        """As `put` for each; durable when it returns, not before. Each object is atomic, the set is not."""

    def draft(self, key: str) -> Draft:
        """An empty object to fill. Whoever asks puts it here or discards it. Raises StorageError, ResourceError."""

    def put_drafts(self, drafts: Iterable[Draft]) -> None:
        """As `put_many` of finished drafts of this store. Those that fail are still to be discarded."""

    def put_new(self, key: str, data: Blob) -> bool:
        """Store an object only if there is none under `key`; False if there is. Atomic and durable."""

    def get(self, key: str) -> bytes | None:
        """Content, or None if there is no such object."""

    def size(self, key: str) -> int | None:
        """Length in bytes, or None if there is no such object."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(key, size) of every object whose key starts with `prefix`, temporary leftovers too, in no stated order."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    def local_path(self, key: str = "") -> Path | None:
        """The file of a key where objects are files on this machine, else None."""


def open_store(uri: str | os.PathLike[str]) -> ObjectStore:
    """The store at a local path, a file: URL or a bucket's prefix (s3://, gs://, az://). Touches nothing.

    Raises UsageError for other schemes.
    """
    text = os.fspath(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        return DirectoryStore(path_of_file_url(text))
    if scheme:
        from tiledblend.bytes.cloud import CloudStore

        return CloudStore(text)
    return DirectoryStore(text)


def beside(store: ObjectStore, suffix: str) -> ObjectStore:
    """The store of the sibling whose name has `suffix` appended.

    >>> beside(DirectoryStore("/data/out.ome.zarr"), ".ledger").uri
    '/data/out.ome.zarr.ledger'
    """
    uri = store.uri.rstrip("/")
    if "://" in uri and not urlsplit(uri).path:
        raise UsageError(f"output {uri}: is a whole bucket; give a name inside it, such as {uri}/out.ome.zarr")
    return open_store(uri + suffix)


def split_parent(store: ObjectStore) -> tuple[ObjectStore, str]:
    """The store that holds `store`, and its name in there: a sibling object such as the manifest is put there."""
    parent, _, name = store.uri.rstrip("/").rpartition("/")
    return open_store(parent or "/"), name


def checked_key(key: str) -> str:
    """The key itself if it stays inside the store. Raises UsageError for absolute ones and for "..", "." or ""."""
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise UsageError(f"object key {key!r} is not a plain relative path")
    return key


def parts_of(data: Blob) -> Sequence[Data]:
    """The bytes-like parts of an object's content."""
    return [data] if isinstance(data, bytes | bytearray | memoryview) else data


_REMEDIES = {
    errno.ENOSPC: "no space left; free some, then run again with --resume",
    errno.EDQUOT: "disk quota exceeded; free some or raise the quota, then run again with --resume",
    errno.EACCES: "no permission to write here; change it or give another output path",
    errno.EPERM: "not permitted; change the permissions or give another output path",
    errno.EROFS: "the file system is read-only; give another output path",
    errno.ENOENT: "a folder on the way is not there: removed, or not mounted on this host",
    errno.ENOTDIR: "a part of this path is a file; give another output path",
    errno.EIO: "the device reports an input/output error; check it, then run again with --resume",
    errno.ENAMETOOLONG: "the name is too long for this file system; give a shorter output path",
    errno.EFBIG: "the file is too large for this file system or limit; use a smaller --shard",
}


def storage_error(error: OSError, doing: str, path: str | os.PathLike[str]) -> TiledblendError:
    """The one-line error of a failed file operation: what, where, what to do."""
    where = f"cannot {doing} {os.fspath(path)}"
    if (limit := resource_error(error, where)) is not None:
        return limit
    remedy = _REMEDIES.get(error.errno or 0, error.strerror or type(error).__name__)
    return StorageError(f"{where}: {remedy}")


class DirectoryStore:
    """Objects as files under a directory, which is made when the first one is put.

    A file is written under a temporary name, synced, renamed, and its folder synced: a crash leaves the old file, the
    new file, or a file whose name starts with `.tiledblend-tmp-`. That one lies in its own folder, or in `drafts`, an
    existing folder of the same file system: where that is gone, nothing can be written any more.
    """

    def __init__(self, path: str | os.PathLike[str], drafts: Path | None = None) -> None:
        self.path, self.drafts = Path(os.path.abspath(path)), drafts
        self._durable: set[Path] = set()

    @property
    def uri(self) -> str:
        """Absolute path of the directory."""
        return str(self.path)

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[DirectoryStore], tuple[str, Path | None]]:
        return DirectoryStore, (str(self.path), self.drafts)

    def local_path(self, key: str = "") -> Path:
        """The file of a key; the directory itself for ""."""
        return self._file(key) if key else self.path

    def put(self, key: str, data: Blob) -> None:
        """Store or replace one file."""
        self.put_many([(key, data)])

    def put_many(self, items: Iterable[tuple[str, Blob]]) -> None:
        """Store files; each folder is synced once, at the end."""
        self.put_drafts(self._filled(key, data) for key, data in items)

    def draft(self, key: str) -> FileDraft:
        """An empty file on the same file system as the one that it is to become."""
        path = self._file(key)
        with mapped_errors("write", path):
            if self.drafts is None:
                self._make_folder(path.parent)
                return FileDraft(path, path.parent)
            draft = FileDraft(path, self.drafts)
            try:
                # Only now: who may not write any more makes no folders either.
                self._make_folder(path.parent)
            except BaseException:
                draft.discard()
                raise
            return draft

    def put_drafts(self, drafts: Iterable[Draft]) -> None:
        """Rename the files; each folder is synced once, at the end."""
        folders = dict[Path, None]()
        for draft in drafts:
            assert isinstance(draft, FileDraft)
            draft.put()
            folders[draft.path.parent] = None
        for folder in folders:
            with mapped_errors("sync", folder):
                sync_folder(folder)

    def put_new(self, key: str, data: Blob) -> bool:
        """Create a file; False if the name is taken. `link` fails on an existing name on every file system."""
        path = self._file(key)
        with mapped_errors("create", path):
            if os.path.lexists(path):
                return False
            draft = self._filled(key, data)
            try:
                draft.sync()
                created = _link_new(draft.temporary, path)
            finally:
                draft.discard()
            sync_folder(path.parent)
        return created

    def get(self, key: str) -> bytes | None:
        """Content of a file, or None."""
        path = self._file(key)
        with mapped_errors("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def size(self, key: str) -> int | None:
        """Length of a file, or None."""
        path = self._file(key)
        with mapped_errors("read", path):
            try:
                return path.stat().st_size if path.is_file() else None
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Files below the directory. Links are listed, never followed."""
        # The folder part of the prefix is where to start: a million objects need not be walked for one level's.
        folder = prefix.rpartition("/")[0]
        pending = [self.local_path(folder)] if folder else [self.path]
        while pending:
            here = pending.pop()
            with mapped_errors("list", here):
                for entry in _scan(here):
                    key = Path(entry.path).relative_to(self.path).as_posix()
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    elif key.startswith(prefix):
                        yield key, _entry_size(entry)

    def delete(self, key: str) -> None:
        """Remove a file if it is there."""
        path = self._file(key)
        with mapped_errors("delete", path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def _file(self, key: str) -> Path:
        return self.path / checked_key(key)

    def _filled(self, key: str, data: Blob) -> FileDraft:
        draft = self.draft(key)
        for part in parts_of(data):
            draft.append(part)
        return draft

    def _make_folder(self, folder: Path) -> None:
        """Make a folder whose own entry is durable: another process may have made it and not yet have synced it."""
        if folder in self._durable and folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        while folder not in self._durable and folder != self.path.parent:
            sync_folder(folder.parent)
            self._durable.add(folder)
            folder = folder.parent


class FileDraft:
    """A file under a temporary name in `folder`, later `path`. A failure removes it."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.temporary = path, folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._descriptor: int | None = os.open(self.temporary, flags, 0o666)
        self._is_put = False

    def append(self, data: Data) -> None:
        """Write at the end."""
        assert self._descriptor is not None
        with mapped_errors("write", self.path), self._discarded_on_error():
            write_fully(self._descriptor, [data])

    def take(self, fill: Callable[[int], bool]) -> bool:
        """What `fill` returns: it is given the open file, and may write to it as it likes."""
        assert self._descriptor is not None
        with mapped_errors("write", self.path), self._discarded_on_error():
            return fill(self._descriptor)

    def sync(self) -> None:
        """Make the content durable; nothing can be appended any more."""
        assert self._descriptor is not None
        with mapped_errors("write", self.path), self._discarded_on_error():
            os.fsync(self._descriptor)
            self._close()

    def put(self) -> None:
        """Sync and rename: the entry in the folder is not durable yet."""
        self.sync()
        with mapped_errors("write", self.path), self._discarded_on_error():
            os.rename(self.temporary, self.path)
            self._is_put = True

    def discard(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError):
            self._close()
        if not self._is_put:
            _remove_quietly(self.temporary)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


class mapped_errors:  # noqa: N801 - reads as a verb in `with`
    """Turn an OSError in the block into the one-line error of a path."""

    def __init__(self, doing: str, path: Path) -> None:
        self.doing, self.path = doing, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise storage_error(error, self.doing, self.path) from error


def write_fully(descriptor: int, parts: Sequence[Data]) -> None:
    """Write all parts; a short write goes on where it stopped."""
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable, where the file system can (some network ones refuse with EINVAL)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        # A folder that may be written to but not be read cannot be synced by name.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _link_new(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        # A file system without hard links (FAT, some network ones): create the name itself, then fill it.
        return _create_new(path, temporary.read_bytes())
    return True


def _create_new(path: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        write_fully(descriptor, [data])
        os.fsync(descriptor)
    except BaseException:
        # Half an object would keep its name from everybody, for good.
        _remove_quietly(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entry_size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
