"""A stored result as its own metadata describe it, sound or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiledblend.bytes.objects import ObjectStore, split_parent
from tiledblend.containers import ledger
from tiledblend.containers.digests import sha256
from tiledblend.containers.manifest import SUFFIX, Manifest, parse_manifest
from tiledblend.containers.omezarr.documents import (
    array_documents,
    read_attributes,
    result_layout,
    root_documents,
    with_manifest,
)
from tiledblend.containers.omezarr.layout import ArrayLayout


@dataclass(frozen=True)
class StoredResult:
    """A result that tiledblend made. attributes: the root's, from the manifest where the root is damaged.

    manifest: None if it is missing or cannot be relied on. problems: what is wrong with root and manifest, as lines.
    """

    layout: ArrayLayout
    attributes: dict[str, Any]
    manifest: Manifest | None
    problems: tuple[str, ...]

    @property
    def job(self) -> Any:
        """The fingerprint of the job that made it."""
        return self.attributes["tiledblend"].get("job")


def read_result(store: ObjectStore) -> StoredResult | None:
    """The result in `store`, or None if there is none that tiledblend made and finished."""
    data = manifest_bytes(store)
    manifest = parse_manifest(data) if data is not None else None
    attributes = read_attributes(store)
    layout = result_layout(attributes)
    if attributes is None or layout is None:
        return None if ledger.exists(store) else _with_damaged_root(store, manifest)
    name = split_parent(store)[1] + SUFFIX
    if data is None:
        return StoredResult(layout, attributes, None, ())
    if manifest is None or sha256(data) != attributes["tiledblend"].get("manifest_sha256"):
        return StoredResult(layout, attributes, None, (f"{name} is damaged or belongs to another run",))
    truth = with_manifest(manifest.attributes, sha256(data))
    layout = result_layout(truth) or layout
    if not _covers(manifest, layout):
        return StoredResult(layout, attributes, None, (f"{name} does not list the objects of its own plan",))
    expected = root_documents(layout, truth)
    if any(store.get(key) != document for key, document in expected.items()):
        return StoredResult(layout, truth, manifest, (f"the root metadata are not those of {name}",))
    return StoredResult(layout, truth, manifest, ())


def manifest_bytes(store: ObjectStore) -> bytes | None:
    """Content of the manifest beside a result."""
    parent, name = split_parent(store)
    return parent.get(name + SUFFIX)


def _with_damaged_root(store: ObjectStore, manifest: Manifest | None) -> StoredResult | None:
    """A result by its manifest alone, if an array of it is there: a manifest may have outlived its result."""
    layout = result_layout(manifest.attributes) if manifest else None
    if manifest is None or layout is None or not _covers(manifest, layout):
        return None
    if not any(store.get(key) == document for key, document in array_documents(layout).items()):
        return None
    return StoredResult(layout, manifest.attributes, manifest, ("the root metadata are missing or damaged",))


def _covers(manifest: Manifest, layout: ArrayLayout) -> bool:
    return set(manifest.receipts) == {*layout.planned_objects(), *array_documents(layout)}


def root_manifest(store: ObjectStore) -> str | None:
    """The manifest hash that a result's root attributes name."""
    own = (read_attributes(store) or {}).get("tiledblend")
    return own.get("manifest_sha256") if isinstance(own, dict) else None
