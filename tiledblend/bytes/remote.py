"""Inputs by URL: bytes by range requests, zarr documents, and what changes when an object does."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tiledblend.bytes.buckets import (
    BUCKET_SCHEMES,
    WEB_SCHEMES,
    client_of,
    connections,
    is_denied,
    is_missing,
    note_outcome,
    reason_of,
    repeated,
    scheme_of,
    split_url,
)
from tiledblend.bytes.expected import Expected, cut, merge_ranges, uses_of
from tiledblend.bytes.ranges import ByteReader, open_bytes
from tiledblend.bytes.redirects import refuse_redirect
from tiledblend.bytes.waiting import heard
from tiledblend.errors import BadInputError, StorageError, TiledblendError, UsageError

BLOCK_BYTES = 1 << 18
BLOCKS = 32
SMALL_BYTES = BLOCK_BYTES * BLOCKS // 2
"""Objects up to this size (masks, mostly) are read by blocks, which stay: each is fetched once per process."""
ASKED_AT_ONCE = 64
MOST_WITNESSES, MOST_WITNESS_BYTES = 256, 1 << 26
WITNESS_SECONDS = 10.0
"""How long an access that worked counts as one that works."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """What tells two versions of an object apart. etag: None where a server gives none."""

    size: int
    etag: str | None
    modified: str

    @property
    def version(self) -> str:
        """The ETag, or else the time of the last change."""
        return self.etag or self.modified


class LargerError(BadInputError):
    """An object that has more bytes than one of its kind. state: what it is."""

    def __init__(self, uri: str, state: StoredState, limit: int) -> None:
        super().__init__(f"{uri}: has {state.size:,} bytes, more than an object of its kind ({limit:,})")
        self.state = state


class RemoteFile(ByteReader):
    """An object of a bucket or a web server, read by ranges; every answer must be of the version that was opened.

    Small reads (headers) come from the last few blocks of `BLOCK_BYTES`. Raises BadInputError when it is not there.
    """

    has_latency = True

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._expected = Expected()
        state, first = _first_block(uri)
        self.size, self._version = state.size, state.version
        if first:
            self._blocks[0] = first

    def pread(self, offset: int, size: int) -> bytes:
        """As `ByteReader.pread`: from cached blocks when small, else one request."""
        self._check(offset, size)
        if size > BLOCK_BYTES:
            return self._request(offset, size)
        if not size:
            return b""
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        data = b"".join(self._block(index) for index in range(first, last + 1))
        start = offset - first * BLOCK_BYTES
        return data[start : start + size]

    def pread_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """As `ByteReader.pread_many`: neighbours share a request, and several requests are under way at once."""
        for offset, size in ranges:
            self._check(offset, size)
        if self.size <= SMALL_BYTES:
            return [self.pread(offset, size) for offset, size in ranges]
        known = [self._expected.take(offset, size) for offset, size in ranges]
        unknown = [place for place, data in zip(ranges, known, strict=True) if data is None]
        fetched = iter(self._fetched(unknown) if unknown else ())
        return [next(fetched) if data is None else data for data in known]

    def expect(self, ranges: Sequence[tuple[int, int]], *, fetch: bool = True) -> int:
        """As `ByteReader.expect`. A small object is kept whole anyway."""
        if self.size <= SMALL_BYTES:
            return 0
        merged = merge_ranges(ranges)
        if not fetch:
            return len(merged)
        uses = uses_of(merged, ranges)
        for index, (start, size) in enumerate(merged):
            self._expected.put(start, size, connections().submit(self._request, start, size), uses[index])
        return len(merged)

    def _fetched(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        merged = merge_ranges(ranges)
        if len(merged) == 1:
            stored = [self._request(*merged[0])]
        else:
            stored = list(connections().map(lambda item: self._request(*item), merged))
        starts = [start for start, _ in merged]
        return [cut(stored, starts, offset, size) for offset, size in ranges]

    def identity(self) -> dict[str, Any]:
        """As `ByteReader.identity`, with "etag" (a time where the server gives none)."""
        return remote_identity(self.uri)

    def close(self) -> None:
        """Forget the cached blocks; connections belong to the process."""
        with self._lock:
            self._blocks.clear()
        self._expected.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_bytes, (self.uri,)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadInputError(f"{self.uri}: asked for {size} bytes at {offset}, it has {self.size}; it is truncated")

    def _block(self, index: int) -> bytes:
        with self._lock:
            data = self._blocks.get(index)
            if data is not None:
                self._blocks.move_to_end(index)
                return data
        start = index * BLOCK_BYTES
        data = self._request(start, min(BLOCK_BYTES, self.size - start))
        with self._lock:
            self._blocks[index] = data
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return data

    def _request(self, offset: int, size: int) -> bytes:

        if not size:
            return b""
        root, key = split_url(self.uri)
        with told(self.uri, f"cannot read {size} bytes at {offset}"):
            state, data = repeated(lambda: ranged(root, key, offset, size))
        if state.version != self._version or len(data) != size:
            raise BadInputError(f"{self.uri}: the input changed while it was read; run again on settled inputs")
        return data


@contextmanager
def told(uri: str, what: str) -> Iterator[None]:
    """One line for whatever a client raises inside: BadInputError for what is not there, else StorageError."""
    root = _split(uri)[0]
    try:
        yield
    except TiledblendError:
        raise
    except Exception as error:
        line = f"{uri}: {what}: {reason_of(error, uri)}"
        # Not chained: the client's own report is long and shows its settings.
        if isinstance(error, FileNotFoundError):
            raise BadInputError(line) from None
        note_outcome(root, error)
        raise StorageError(line) from None
    else:
        note_outcome(root, None)


def ranged(root: str, key: str, offset: int, size: int) -> tuple[StoredState, bytes]:
    """What an object is, and bytes of it: one request."""
    import obstore

    answer = obstore.get(client_of(root), key, options={"range": (offset, offset + size)})
    return _state_of(answer.meta), bytes(answer.bytes())


def _first_block(uri: str) -> tuple[StoredState, bytes]:
    """What an object is now, and its first bytes: one request for both."""
    import_checked(uri)

    root, key = _split(uri)
    if not key:
        raise BadInputError(f"{uri}: names a bucket or server, not an object")
    if scheme_of(uri) in WEB_SCHEMES:
        refuse_redirect(uri)
    try:
        return repeated(lambda: ranged(root, key, 0, BLOCK_BYTES))
    except Exception as error:
        # An empty object has no first byte to ask for: the store says that the range is wrong.
        state = None if is_missing(error) else stored_state(uri)
        if state is not None and state.size == 0:
            return state, b""
        with told(uri, "cannot be opened"):
            raise


def remote_identity(uri: str) -> dict[str, Any]:
    """{"uri", "size", "etag"} of an object as it is now (a time where the server gives no ETag)."""
    state = stored_state(uri)
    if state is None:
        raise BadInputError(f"{uri}: no such object any more")
    return {"uri": uri, "size": state.size, "etag": state.version}


def stored_state(uri: str) -> StoredState | None:
    """Size and version of an object as it is now, or None if there is none. Raises BadInputError, StorageError."""
    import_checked(uri)
    root, key = _split(uri)
    if not key:
        return None
    if scheme_of(uri) in WEB_SCHEMES:
        refuse_redirect(uri)
    return _state_now(uri, root, key)


def _state_now(uri: str, root: str, key: str) -> StoredState | None:
    import obstore

    with told(uri, "cannot be opened"):
        try:
            return _state_of(heard(lambda: obstore.head(client_of(root), key)))
        except Exception as error:
            if is_absent(error, uri):
                return None
            raise


def readable_state(uri: str) -> StoredState | None:
    """As `stored_state`; None also where the object is denied."""
    try:
        return stored_state(uri)
    except StorageError as error:
        if _is_denied(error):
            return None
        raise


def _is_denied(error: StorageError) -> bool:
    """True where a client was denied what `told` has told."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    cause = error.__context__
    return cause is not None and (is_denied(cause) or isinstance(cause, PermissionDeniedError | UnauthenticatedError))


def only_stored(folder: str, keys: Iterable[str]) -> Iterator[str]:
    """Those keys below a folder that name an object, in their order: a HEAD for each, many at a time."""
    pending = iter(keys)
    while batch := list(islice(pending, ASKED_AT_ONCE)):
        # One by one: whether the server sends on is asked of what is opened, not of each of a million chunks.
        states = connections().map(lambda uri: _state_now(uri, *_split(uri)), [f"{folder}/{key}" for key in batch])
        yield from (key for key, state in zip(batch, states, strict=True) if state is not None)


def read_object(uri: str, limit: int) -> bytes | None:
    """A whole small object, or None if there is none. Raises BadInputError when it has more than `limit` bytes."""
    import_checked(uri)

    with told(uri, "cannot be read"):
        if scheme_of(uri) in WEB_SCHEMES:
            refuse_redirect(uri)
        try:
            data = repeated(lambda: whole(uri, limit))[1]
        except Exception as error:
            # A bucket that may not be listed answers 403 for what is not there.
            if is_missing(error) or is_denied(error):
                return None
            raise
    _WITNESSES.add(uri)
    return data


def is_absent(error: BaseException, uri: str) -> bool:
    """True for the error of an object that is not there.

    A bucket that may be read but not be listed denies it as it denies what is there for others: it is not there if the
    nearest document that was read before can still be read.
    """
    return is_missing(error) or (is_denied(error) and _WITNESSES.still_read(uri))


class _Witnesses:
    """The last documents that were read here, and when they last could be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: OrderedDict[str, float] = OrderedDict()

    def add(self, uri: str) -> None:
        with self._lock:
            self._read[uri] = time.monotonic()
            self._read.move_to_end(uri)
            while len(self._read) > MOST_WITNESSES:
                self._read.popitem(last=False)

    def still_read(self, uri: str) -> bool:
        """True if the one whose address has most in common with `uri`, of the same bucket, is given out now."""
        root = _split(uri)[0] + "/"
        with self._lock:
            known = [one for one in self._read if one.startswith(root)]
            nearest = max(known, key=lambda one: len(os.path.commonpath([one, uri])), default=None)
            if nearest is None:
                return False
            if time.monotonic() - self._read[nearest] < WITNESS_SECONDS:
                return True
        try:
            whole(nearest, MOST_WITNESS_BYTES)
        except Exception:
            return False
        self.add(nearest)
        return True


_WITNESSES = _Witnesses()


def whole(uri: str, limit: int) -> tuple[StoredState, bytes]:
    """What an object is, and all of it: one request. Raises BadInputError when it has more than `limit` bytes."""
    import obstore

    root, key = _split(uri)
    answer = obstore.get(client_of(root), key)
    if answer.meta["size"] > limit:
        raise LargerError(uri, _state_of(answer.meta), limit)
    return _state_of(answer.meta), bytes(answer.bytes())


def list_names(uri: str) -> list[str]:
    """Names right below a prefix, sorted; none where a server does not list, or may not."""
    import_checked(uri)
    import obstore

    root, key = _split(uri)
    if scheme_of(uri) in WEB_SCHEMES:
        return []
    try:
        with told(uri, "cannot be listed"):
            found = repeated(lambda: obstore.list_with_delimiter(client_of(root), key or None))
    except StorageError as error:
        if _is_denied(error):
            return []
        raise
    paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
    return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})


def list_objects(uri: str) -> Iterator[tuple[str, int, str]] | None:
    """(key below the folder, size, ETag or time) of every object there; None where a server does not list."""
    import_checked(uri)
    import obstore

    root, key = _split(uri)
    if scheme_of(uri) in WEB_SCHEMES:
        return None
    folder = f"{key.rstrip('/')}/" if key else ""
    pages = obstore.list(client_of(root), folder or None, chunk_size=1000)
    try:
        with told(uri, "cannot be listed"):
            first = heard(lambda: next(iter(pages), []))
    except StorageError as error:
        if _is_denied(error):
            return None  # readable, but not to be listed
        raise
    return _listed(uri, folder, first, pages)


def _listed(uri: str, folder: str, first: Any, pages: Any) -> Iterator[tuple[str, int, str]]:
    page = first
    while page:
        for item in page:
            yield item["path"].removeprefix(folder), int(item["size"]), _state_of(item).version
        with told(uri, "cannot be listed"):
            page = heard(lambda: next(pages, []))


def import_checked(uri: str) -> None:
    """Raise BadInputError for a URL that cannot be read here at all: obstore missing, unknown scheme, credentials."""
    root, _ = _split(uri)
    if scheme_of(root) not in (*BUCKET_SCHEMES, *WEB_SCHEMES):
        raise BadInputError(f"{uri}: {scheme_of(uri)}:// is not read; give a path, s3://, gs://, az:// or https://")
    try:
        client_of(root)
    except UsageError as error:
        raise BadInputError(str(error)) from None


def _split(uri: str) -> tuple[str, str]:
    try:
        return split_url(uri)
    except UsageError as error:
        raise BadInputError(str(error)) from None


def _state_of(meta: Any) -> StoredState:
    # A version, where a bucket keeps them, changes even if the same bytes are stored again: the ETag says more.
    return StoredState(int(meta["size"]), meta.get("e_tag"), meta["last_modified"].isoformat())
