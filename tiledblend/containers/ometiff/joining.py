"""Parts become one file: joined in their fixed order inside the kernel, each removed when its bytes are on disk there.

Until the last step the header names no directory, so that no reader opens the file. `order` holds the ends of all parts
and thereby says where each one lies; a join that was cut off goes on from the parts that are still there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tiledblend.bytes.objects import DirectoryStore, ObjectStore, mapped_errors, write_fully
from tiledblend.containers.ometiff.bigtiff import FIRST_POINTER, HEADER_BYTES, header
from tiledblend.containers.ometiff.layout import TiffLayout, part_key
from tiledblend.containers.ometiff.part import PartEnd
from tiledblend.errors import StorageError, VerificationError
from tiledblend.geometry import Tile

JOINED, ORDER = "joined.tif", "order"
_COPY_BYTES = 1 << 24
_FEWEST_BYTES = 1 << 22
_SHARE = 48
"""Of the file, what may be there twice while parts are joined."""
_NOT_HERE = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


class Order:
    """The ends of all parts, in the order in which they lie in the file."""

    def __init__(self, layout: TiffLayout, data: bytes) -> None:
        self.ends: dict[Tile, PartEnd] = {}
        self.stored: dict[Tile, bytes] = {}
        self.starts: dict[Tile, int] = {}
        at, start = 0, HEADER_BYTES
        for tile in layout.tiles():
            size = PartEnd.nbytes(layout, tile)
            self.stored[tile] = data[at : at + size]
            self.ends[tile] = PartEnd(layout, tile, self.stored[tile])
            self.starts[tile] = start
            start += self.ends[tile].data_bytes
            at += size
        if at != len(data):
            raise VerificationError(f"{ORDER}: is damaged")
        self.data, self.end = data, start

    @classmethod
    def of_parts(cls, layout: TiffLayout, store: ObjectStore) -> Order:
        """Read from the parts' own ends. Raises StorageError when one is missing."""
        return cls(layout, b"".join(_end_of(layout, store, tile) for tile in layout.tiles()))


def _end_of(layout: TiffLayout, store: ObjectStore, tile: Tile) -> bytes:
    key, size = part_key(tile), PartEnd.nbytes(layout, tile)
    path = store.local_path(key)
    if path is None:
        data = store.get(key)
    else:
        with mapped_errors("read", path), open(path, "rb") as file:
            file.seek(-size, os.SEEK_END)
            return file.read()
    if data is None:
        raise StorageError(f"{store.uri}: object {key} is missing; run again with --resume")
    return data[-size:]


class JoinedStore(DirectoryStore):
    """A folder of parts some of which are in the joined file already: read as if they were still there."""

    def __init__(self, store: DirectoryStore, layout: TiffLayout, order: Order) -> None:
        super().__init__(store.path, store.drafts)
        self._layout, self._order = layout, order

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """As `ObjectStore.list`."""
        found = dict(super().list(prefix))
        yield from found.items()
        with mapped_errors("read", self.path / JOINED):
            length = (self.path / JOINED).stat().st_size
        for tile, end in self._order.ends.items():
            key, size = part_key(tile), end.data_bytes
            if key not in found and key.startswith(prefix) and self._order.starts[tile] + size <= length:
                yield key, size + PartEnd.nbytes(self._layout, tile)

    def get(self, key: str) -> bytes | None:
        """As `ObjectStore.get`."""
        data = super().get(key)
        if data is not None or not key.endswith(".part"):
            return data
        tile = Tile(*map(int, key.removesuffix(".part").split("/")))
        end = self._order.ends[tile]
        with mapped_errors("read", self.path / JOINED), open(self.path / JOINED, "rb") as file:
            file.seek(self._order.starts[tile])
            return file.read(end.data_bytes) + self._order.stored[tile]


def stored_parts(store: ObjectStore, layout: TiffLayout) -> ObjectStore:
    """The store, with the parts that a join that was cut off has taken."""
    if not isinstance(store, DirectoryStore) or not store.local_path(JOINED).exists():
        return store
    data = store.get(ORDER)
    if data is None:
        return store
    try:
        return JoinedStore(store, layout, Order(layout, data))
    except VerificationError:
        return store


def join(store: DirectoryStore, layout: TiffLayout, check: Callable[[], None]) -> tuple[int, Order]:
    """Join all parts of a folder in its file `JOINED`, open for what follows; returns its descriptor.

    check: raises when another driver has taken over. Raises StorageError, VerificationError.
    """
    order = _order(store, layout)
    batch = max(_FEWEST_BYTES, order.end // _SHARE)
    path = store.local_path(JOINED)
    with mapped_errors("write", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            os.pwrite(descriptor, header(), 0)
            taken: list[Path] = []
            pending = 0
            for tile, end in order.ends.items():
                part = store.local_path(part_key(tile))
                if not part.exists():
                    continue  # of a join that was cut off: it was on disk before it was removed
                copy_range(part, descriptor, order.starts[tile], end.data_bytes)
                taken.append(part)
                pending += end.data_bytes
                if pending >= batch:
                    _let_go(descriptor, taken, check)
                    pending = 0
            _let_go(descriptor, taken, check)
            if os.fstat(descriptor).st_size < order.end:
                raise StorageError(f"{path}: a part is missing; run again with --resume")
            os.ftruncate(descriptor, order.end)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor, order


def _order(store: DirectoryStore, layout: TiffLayout) -> Order:
    """The stored order, if parts that went into the file depend on it; else a new one."""
    every = all(store.local_path(part_key(tile)).exists() for tile in layout.tiles())
    data = None if every else store.get(ORDER)
    if data is None:
        order = Order.of_parts(layout, store)
        store.put(ORDER, order.data)
        return order
    order = Order(layout, data)
    for tile in layout.tiles():
        is_there = store.local_path(part_key(tile)).exists()
        if is_there and _end_of(layout, store, tile) != order.stored[tile]:
            raise VerificationError(
                f"{store.uri}: {part_key(tile)} made again is not what it was; check the machine's memory and package "
                "versions, then `tiledblend clean` and run again"
            )
    return order


def _let_go(descriptor: int, taken: list[Path], check: Callable[[], None]) -> None:
    """Make the file durable so far, then remove the parts that it has taken."""
    if taken:
        check()
        os.fsync(descriptor)
        for part in taken:
            part.unlink()
        taken.clear()


def copy_range(part: Path, descriptor: int, at: int, size: int) -> None:
    """Copy the first `size` bytes of a file to byte `at` of another: in the kernel, where it can. Raises OSError."""
    with open(part, "rb") as file:
        done = _in_kernel(file.fileno(), descriptor, at, size)
        while done < size:
            data = os.pread(file.fileno(), min(_COPY_BYTES, size - done), done)
            if not data:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.lseek(descriptor, at + done, os.SEEK_SET)
            write_fully(descriptor, [data])
            done += len(data)


def _in_kernel(source: int, target: int, at: int, size: int) -> int:
    """Bytes that the kernel copied: all, or those before it would not go on."""
    done = 0
    copy = getattr(os, "copy_file_range", None)
    while copy is not None and done < size:
        try:
            copied = copy(source, target, size - done, done, at + done)
        except OSError as error:
            if error.errno in _NOT_HERE:
                return done
            raise
        if copied == 0:
            return done
        done += copied
    return done


def reveal(descriptor: int, end: int, parts: list[bytes], first: int) -> None:
    """Write what follows the tiles and, when it is on disk, the header that names the first directory."""
    os.lseek(descriptor, end, os.SEEK_SET)
    write_fully(descriptor, parts)
    os.fsync(descriptor)
    os.pwrite(descriptor, header(first)[FIRST_POINTER:], FIRST_POINTER)
    os.fsync(descriptor)
