"""Results in buckets: Amazon S3 and what speaks it, Google Cloud Storage, Azure Blob Storage.

An object is one PUT, so it is there whole or not at all. Creating only what is not there (`If-None-Match: *`) is the
single condition that all stores of this kind get right: locks, receipts and the commit are made of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tiledblend.bytes.buckets import (
    BUCKET_SCHEMES,
    CONNECTIONS,
    Repeating,
    client_of,
    connections,
    is_final,
    is_missing,
    note_outcome,
    reason_of,
    repeated,
    require_extra,
    scheme_of,
    split_url,
)
from tiledblend.bytes.objects import Blob, Draft, checked_key
from tiledblend.bytes.spool import SpooledDraft, contents
from tiledblend.bytes.waiting import heard
from tiledblend.errors import StorageError, TiledblendError, UsageError

# Azure takes names that are identifiers only: no hyphen.
TOKEN = "tiledblendtoken"


class CloudStore:
    """Objects under a prefix of a bucket, as `ObjectStore`. Pickles as its URL; making one sends no request."""

    def __init__(self, uri: str) -> None:
        scheme = scheme_of(uri)
        if scheme not in BUCKET_SCHEMES:
            raise UsageError(
                f"output {uri!r}: {scheme}:// cannot be written to; give a local path or s3://, gs://, az://"
            )
        self._root, self._prefix = split_url(uri)
        require_extra(self._root)

    @property
    def uri(self) -> str:
        """URL of the prefix, without a slash at the end."""
        return f"{self._root}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"CloudStore({self.uri!r})"

    def __reduce__(self) -> tuple[type[CloudStore], tuple[str]]:
        return CloudStore, (self.uri,)

    def local_path(self, key: str = "") -> None:
        """None: nothing here is a file."""
        return

    def put(self, key: str, data: Blob) -> None:
        """Store or replace an object by one PUT."""
        import obstore

        with self._told("write", key):
            heard(lambda: obstore.put(self._client, self._path(key), _content(data), use_multipart=False))

    def put_many(self, items: Iterable[tuple[str, Blob]]) -> None:
        """As `put` for each, several at once; nothing is under way any more when it returns or raises."""
        waiting = iter(items)
        while batch := list(islice(waiting, 4 * CONNECTIONS)):
            futures = [connections().submit(self.put, key, data) for key, data in batch]
            wait(futures)
            for future in futures:
                future.result()

    def draft(self, key: str) -> SpooledDraft:
        """An object in memory: a bucket takes it whole."""
        return SpooledDraft(checked_key(key))

    def put_drafts(self, drafts: Iterable[Draft]) -> None:
        """As `put_many`."""
        self.put_many(contents(drafts))

    def put_new(self, key: str, data: Blob) -> bool:
        """Create an object; False if there is one that this very call did not make.

        The answer to a request that did its work can be lost, and the repeated request then finds the object: each
        call's own token, kept in the object's metadata, tells that from somebody else's object.
        """
        token, tries = uuid.uuid4().hex, Repeating()
        with self._told("create", key):
            while True:
                failure = self._try_create(key, data, token)
                if failure is None:
                    return True
                if is_final(failure):
                    raise failure
                exists, found = repeated(lambda: self._token(key))
                if exists:
                    return found == token
                if not tries.pause_after(failure):
                    raise failure

    def get(self, key: str) -> bytes | None:
        """Content of an object, or None."""
        import obstore

        with self._told("read", key):
            try:
                return repeated(lambda: bytes(obstore.get(self._client, self._path(key)).bytes()))
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise

    def shares_bucket(self, other: CloudStore) -> bool:
        """True when the store itself can copy from one to the other."""
        return self._root == other._root

    def copy_from(self, other: CloudStore, key: str, size: int) -> bool:
        """Have the store copy an object of the same bucket to the same key here. False if it is not there in this
        length; its bytes do not come here."""
        import obstore

        if other.size(key) != size:
            return False
        with self._told("copy", key):
            try:
                repeated(lambda: obstore.copy(self._client, other._path(key), self._path(key)))
            except FileNotFoundError:
                return False
        return self.size(key) == size

    def size(self, key: str) -> int | None:
        """Length of an object, or None."""
        import obstore

        with self._told("read", key):
            try:
                return int(heard(lambda: obstore.head(self._client, self._path(key)))["size"])
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(key, size) of the objects below the prefix."""
        import obstore

        # Stores list by whole path parts; the last, unfinished part is compared here.
        folder = prefix.rpartition("/")[0]
        start = "/".join(part for part in (self._prefix, folder) if part)
        skip = len(self._prefix) + 1 if self._prefix else 0
        last, tries = None, Repeating()
        with self._told("list", folder):
            while True:
                try:
                    pages = iter(obstore.list(self._client, prefix=start or None, offset=last))
                    while batch := heard(lambda pages=pages: next(pages, None)):  # type: ignore[misc]
                        for found in batch:
                            last = found["path"]
                            key = last[skip:]
                            if key.startswith(prefix):
                                yield key, int(found["size"])
                    return
                except Exception as error:
                    # A page that broke off: on from the last key that came.
                    if not tries.pause_after(error):
                        raise

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        import obstore

        with self._told("delete", key):
            try:
                repeated(lambda: obstore.delete(self._client, self._path(key)))
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise

    @property
    def _client(self) -> Any:
        return client_of(self._root)

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{checked_key(key)}" if self._prefix else checked_key(key)

    def _try_create(self, key: str, data: Blob, token: str) -> Exception | None:
        import obstore

        path, client = self._path(key), self._client
        try:
            how: dict[str, Any] = {"mode": "create", "attributes": {TOKEN: token}, "use_multipart": False}
            heard(lambda: obstore.put(client, path, _content(data), **how))
        except Exception as error:
            return error
        return None

    def _token(self, key: str) -> tuple[bool, str | None]:
        """(there is an object, the token that it was made with)."""
        import obstore

        try:
            return True, obstore.get(self._client, self._path(key)).attributes.get(TOKEN)
        except FileNotFoundError as error:
            if is_missing(error):
                return False, None
            raise

    @contextmanager
    def _told(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except TiledblendError:
            raise
        except Exception as error:
            note_outcome(self._root, error)
            where = f"{self.uri}/{key}".rstrip("/")
            # Not chained: the client's own report is long and shows its settings.
            raise StorageError(f"cannot {doing} {where}: {reason_of(error, self.uri)}") from None
        else:
            note_outcome(self._root, None)


def _content(data: Blob) -> Any:
    return bytes(data) if isinstance(data, bytearray | memoryview) else data if isinstance(data, bytes) else list(data)
