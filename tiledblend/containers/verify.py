"""Is a stored result what its run said it was? Every object against the manifest, or against its own checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tiledblend.bytes.encoding import CRC_BYTES
from tiledblend.bytes.objects import ObjectStore, open_store
from tiledblend.containers import ledger
from tiledblend.containers.manifest import Manifest, digest
from tiledblend.containers.omezarr.codecs import crc32c, decode
from tiledblend.containers.omezarr.documents import ROOT_KEYS, array_documents
from tiledblend.containers.omezarr.layout import ArrayLayout, Receipt, ShardIndex
from tiledblend.containers.result import StoredResult, read_result
from tiledblend.errors import BadInputError, UsageError, VerificationError

Mode = Literal["fast", "full"]


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. Keys of objects: missing; torn (wrong length); damaged (wrong hash, checksum or encoding);
    extra (not the run's). problems: lines about the result as a whole. decoded: objects whose chunks were decoded."""

    uri: str
    mode: str
    objects: int
    bytes: int
    decoded: int
    has_manifest: bool
    missing: tuple[str, ...]
    torn: tuple[str, ...]
    damaged: tuple[str, ...]
    extra: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every object is there, whole, and nothing else is."""
        return not (self.missing or self.torn or self.damaged or self.extra or self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """One line for people."""
        counts = (
            f"{len(keys)} {what} (first: {keys[0]})"
            for keys, what in ((self.missing, "missing"), (self.torn, "torn"), (self.damaged, "damaged"))
            if keys
        )
        foreign = (f"{len(self.extra)} not of this run (first: {self.extra[0]})",) if self.extra else ()
        found = "; ".join([*self.problems, *counts, *foreign]) or "all present and right"
        return f"{self.uri}: {self.objects} objects, {self.bytes} bytes: {found}"

    def require_ok(self) -> None:
        """Raise VerificationError with the summary unless `ok`."""
        if not self.ok:
            raise VerificationError(self.summary())


def verify(uri: str, mode: Mode = "fast", *, threads: int | None = None) -> VerifyReport:
    """Check a result that tiledblend made.

    fast: every object's presence and length against the manifest. full: SHA-256 of every object, then every chunk's
    checksum and decoding. Without a manifest the list of objects is computed anew and everything is decoded.
    Raises BadInputError if there is no such result, UsageError.
    """
    if mode not in ("fast", "full"):
        raise UsageError(f"verify mode {mode!r} is not known; use fast or full")
    store = open_store(uri)
    result = _result(store)
    layout, manifest = result.layout, result.manifest
    documents = array_documents(layout)
    notes = () if manifest else ("no manifest: objects were decoded and compared to the plan instead",)
    keys = [*layout.planned_objects(), *documents]
    sizes = dict(store.list())
    missing = [key for key in keys if key not in sizes]
    torn = [key for key in keys if manifest and key in sizes and sizes[key] != manifest.receipts[key].size]
    present = sorted(set(keys).difference(missing, torn))
    decoding = mode == "full" or manifest is None
    to_read = present if decoding else [key for key in present if key in documents]
    damaged = find_damaged(store, layout, manifest, to_read, threads=threads)
    roots = set(ROOT_KEYS[:1] if layout.sharded else ROOT_KEYS[1:])
    return VerifyReport(
        uri=uri,
        mode=mode,
        objects=len(keys),
        bytes=sum(sizes.get(key, 0) for key in keys),
        decoded=len(to_read) if decoding else 0,
        has_manifest=manifest is not None,
        missing=tuple(missing),
        torn=tuple(torn),
        damaged=tuple(damaged),
        extra=tuple(sorted(set(sizes).difference(keys, roots))),
        problems=result.problems,
        notes=notes,
    )


def find_damaged(
    store: ObjectStore,
    layout: ArrayLayout,
    manifest: Manifest | None,
    keys: Iterable[str],
    *,
    threads: int | None = None,
) -> list[str]:
    """Those of `keys` whose content is not what was stored: hashed where there is a manifest, and decoded."""
    documents = array_documents(layout)

    def good(key: str) -> bool:
        data = store.get(key)
        if data is None:
            return False
        if manifest and digest(data) != manifest.receipts[key].sha256:
            return False
        return data == documents[key] if key in documents else object_problem(layout, key, data) is None

    return _failing(good, list(keys), threads or min(4, os.cpu_count() or 1))


def checked_receipt(store: ObjectStore, layout: ArrayLayout, key: str, expected: Receipt | None) -> Receipt | None:
    """The receipt of a pixel object that is there and right; None if it must be made again.

    expected: the manifest's receipt; without one the object has to decode.
    """
    data = store.get(key)
    if data is None:
        return None
    receipt = Receipt(key, len(data), digest(data))
    if expected is None:
        return receipt if object_problem(layout, key, data) is None else None
    return receipt if receipt == expected else None


def object_problem(layout: ArrayLayout, key: str, data: bytes) -> str | None:
    """What is wrong with the content of a pixel object, by its own checksums and by decoding it; None if nothing."""
    try:
        if layout.sharded:
            _check_shard(layout, key, data)
        else:
            decode(layout.output.compressor, data, layout.chunk_bytes)
    except VerificationError as error:
        return str(error)
    return None


def _check_shard(layout: ArrayLayout, key: str, data: bytes) -> None:
    level, region = layout.key_region(key)
    index = ShardIndex(layout, level)
    table = index.parse(data[-index.nbytes :])
    if table is None:
        raise VerificationError(f"{key}: shard index is damaged")
    height, width = region.shape
    side = layout.grid.chunk
    end = len(data) - index.nbytes
    used = 0
    for group, row, column in _places(table.shape[:3]):
        offset, length = map(int, table[group, row, column])
        inside = row * side < height and column * side < width
        if (offset + length <= end and length > CRC_BYTES) != inside:
            raise VerificationError(f"{key}: chunk {group}/{row}/{column} is {'missing' if inside else 'not planned'}")
        if inside:
            used += length
            stored = data[offset : offset + length]
            if crc32c(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:]:
                raise VerificationError(f"{key}: chunk {group}/{row}/{column} has a wrong checksum")
            decode(layout.output.compressor, stored[:-CRC_BYTES], layout.chunk_bytes)
    if used != end:
        raise VerificationError(f"{key}: {end - used} bytes belong to no chunk")


def _places(shape: tuple[int, ...]) -> Iterable[tuple[int, int, int]]:
    groups, rows, columns = shape
    return ((group, row, column) for group in range(groups) for row in range(rows) for column in range(columns))


def _result(store: ObjectStore) -> StoredResult:
    result = read_result(store)
    if result is None:
        if ledger.exists(store):
            raise VerificationError(f"{store.uri}: the run is not finished; run it again with --resume")
        raise BadInputError(f"{store.uri}: no result of tiledblend here")
    return result


def _failing(good: Callable[[str], bool], keys: list[str], threads: int) -> list[str]:
    if threads < 2 or len(keys) < 2:
        return [key for key in keys if not good(key)]
    with ThreadPoolExecutor(threads) as pool:
        # In slices: a million futures at once would cost more memory than the objects.
        results = [ok for start in range(0, len(keys), 1024) for ok in pool.map(good, keys[start : start + 1024])]
    return [key for key, ok in zip(keys, results, strict=True) if not ok]
