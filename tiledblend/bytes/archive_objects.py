"""The members of a zip archive as whole objects under keys, read only: a result that is one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tiledblend.bytes.archive import MAX_DIRECTORY_BYTES, Archive, open_archive
from tiledblend.bytes.objects import Blob, Draft, ObjectStore, open_store
from tiledblend.errors import UsageError

SUFFIX = ".ozx"


def open_result(uri: str) -> ObjectStore:
    """The objects of a result at a path or URL: of a folder, a bucket's prefix, or an archive (.ozx)."""
    return ArchiveObjects(uri) if uri.lower().endswith(SUFFIX) else open_store(uri)


class ArchiveObjects:
    """As `ObjectStore`, of an archive at a path or URL; making one touches nothing. Raises BadInputError when read."""

    def __init__(self, uri: str) -> None:
        self._uri = open_store(uri).uri

    @property
    def uri(self) -> str:
        """Of the archive."""
        return self._uri

    def __repr__(self) -> str:
        return f"ArchiveObjects({self._uri!r})"

    def __reduce__(self) -> tuple[type[ArchiveObjects], tuple[str]]:
        return ArchiveObjects, (self._uri,)

    @cached_property
    def archive(self) -> Archive:
        """Its members."""
        return open_archive(self._uri, fresh=True)

    def get(self, key: str) -> bytes | None:
        """A member, checked by its CRC-32, or None."""
        member = self.archive.members.get(key)
        return None if member is None else self.archive.read(key, max(member.size, MAX_DIRECTORY_BYTES))

    def size(self, key: str) -> int | None:
        """A member's length, or None."""
        member = self.archive.members.get(key)
        return None if member is None else member.size

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(key, size) of the members."""
        return ((name, one.size) for name, one in self.archive.members.items() if name.startswith(prefix))

    def local_path(self, key: str = "") -> Path | None:
        """None: members are no files."""
        return None

    def put(self, key: str, data: Blob) -> None:
        """An archive is not written to."""
        self._refuse()

    def put_many(self, items: Iterable[tuple[str, Blob]]) -> None:
        """As `put`."""
        self._refuse()

    def draft(self, key: str) -> Draft:
        """As `put`."""
        self._refuse()
        raise AssertionError

    def put_drafts(self, drafts: Iterable[Draft]) -> None:
        """As `put`."""
        self._refuse()

    def put_new(self, key: str, data: Blob) -> bool:
        """As `put`."""
        self._refuse()
        return False

    def delete(self, key: str) -> None:
        """As `put`."""
        self._refuse()

    def _refuse(self) -> None:
        raise UsageError(f"{self._uri}: an .ozx is not changed; write another one")
