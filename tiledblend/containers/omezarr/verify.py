"""Is a stored result what its run said it was? Every object against the manifest, or against its own checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers import ledger
from tiledblend.containers.digests import digest
from tiledblend.containers.manifest import Manifest
from tiledblend.containers.omezarr.documents import ROOT_KEYS, array_documents
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.result import StoredResult, read_result
from tiledblend.containers.omezarr.stored import object_problem
from tiledblend.containers.verify import Mode, VerifyReport
from tiledblend.errors import BadInputError, VerificationError


def verify_zarr(store: ObjectStore, uri: str, mode: Mode, *, threads: int | None = None) -> VerifyReport:
    """As `containers.verify.verify`. Without a manifest the list of objects is computed anew, everything decoded."""
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
        if manifest and digest(data, manifest.algorithm) != manifest.receipts[key].digest:
            return False
        return data == documents[key] if key in documents else object_problem(layout, key, data) is None

    return _failing(good, list(keys), threads or min(4, os.cpu_count() or 1))


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
