"""An OME-Zarr's place: a folder or prefix that is built where it will be read, hidden until its root metadata come.

With `replace` the new result is built beside the old one and exchanged for it when it is complete.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tiledblend.bytes.exchange import exchange, settle_aside
from tiledblend.bytes.objects import ObjectStore, beside, mapped_errors, split_parent, storage_error, sync_folder
from tiledblend.containers import ledger as ledgers
from tiledblend.containers.container import Container
from tiledblend.containers.digests import FORMER, digest, sha256
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ledger import Ledger
from tiledblend.containers.manifest import SUFFIX, dump_manifest, parse_manifest
from tiledblend.containers.omezarr.documents import (
    ROOT_KEYS,
    array_documents,
    root_attributes,
    root_documents,
    with_manifest,
)
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.result import StoredResult, manifest_bytes, read_result, root_manifest
from tiledblend.containers.omezarr.windows import windows_of
from tiledblend.containers.output import Output
from tiledblend.containers.place import Place, drafting
from tiledblend.containers.receipts import Receipt
from tiledblend.containers.soundness import sound_tiles
from tiledblend.errors import RefusedError, UsageError

_BUILDING = ".tiledblend-new"
_EXCHANGED = "exchanged"


class ZarrPlace(Place):
    """As `Place`, of an OME-Zarr."""

    def require_usable(self) -> None:
        """Anywhere: missing folders are made."""

    def require_replaceable(self) -> None:
        """On file systems only."""
        _local(self.final)

    def is_occupied(self) -> bool:
        """True when something is there."""
        return _occupied(self.final)

    def is_result(self) -> bool:
        """True when a complete result of tiledblend is there, sound or damaged."""
        return read_result(self.final) is not None

    def is_finished(self) -> bool:
        """True when root and manifest belong together."""
        waiting = _manifest_digest(self.final)
        return waiting is not None and waiting == root_manifest(self.final)

    def refuse_foreign(self) -> None:
        """Raise RefusedError for a manifest beside the place that is none."""
        beside_it = manifest_bytes(self.final)
        if beside_it is not None and parse_manifest(beside_it) is None:
            raise RefusedError(f"{self.final.uri}{SUFFIX} exists and is no manifest of tiledblend; use another path")

    def older(self) -> dict[str, Any]:
        """Its layout, by which its objects are known. Raises RefusedError when others would be lost with it."""
        result = self._result()
        refuse_foreign(self.final, result.layout)
        return {"building": _BUILDING, "older": result.layout.as_dict()}

    def is_of(self, layout: Container, job: dict[str, Any]) -> bool:
        """True when the complete result that is there is of this job."""
        return not _unlike(self._result(), layout, job)

    def building(self, document: dict[str, Any]) -> ObjectStore:
        """The place itself, or its neighbour."""
        return beside(self.final, _BUILDING) if document.get("building") else self.final

    def make(self, building: ObjectStore, *, shared: bool) -> None:
        """As `Place.make`."""
        if building.uri != self.final.uri and not shared and _occupied(building):
            raise RefusedError(f"{building.uri} is in the way of --replace; move it away")
        folder = building.local_path()
        if folder is not None:
            _make_new_folder(folder, shared=shared)

    def hide(self, building: ObjectStore) -> None:
        """Remove root metadata: nothing opens while tiles are made again."""
        for key in ROOT_KEYS:
            building.delete(key)

    def settle(self, building: ObjectStore, ledger: Ledger) -> tuple[str, ...] | None:
        """As `Place.settle`: of an exchange, the older result goes."""
        if building.uri == self.final.uri:
            return () if self.is_finished() else None
        return _discard_old(building, ledger) if self._settle(building, ledger) else None

    def repair(self, layout: Container, document: dict[str, Any]) -> Output:
        """Hide a result if anything is damaged, and hand out only the tiles that are."""
        assert isinstance(layout, ArrayLayout)
        final, result = self.final, self._result()
        if different := _unlike(result, layout, document["job"]):
            raise RefusedError(f"{final.uri}: the result there is of another job: {'; '.join(different[:4])}")
        expected = result.manifest.receipts.get if result.manifest else _unknown
        every = [tile for stage in range(layout.grid.stages) for tile in layout.grid.tiles(stage)]
        algorithm = result.manifest.algorithm if result.manifest else FORMER
        sound = sound_tiles(final, layout, every, expected, algorithm)
        documents = all(final.get(key) == data for key, data in array_documents(layout).items())
        output = Output(self, layout, final, None)
        if result.manifest and not result.problems and documents and len(sound) == len(every):
            # A death at the very end leaves an empty ledger.
            ledgers.remove_ledger(beside(final, ledgers.SUFFIX))
            output.found = sound
            return output
        known = result.attributes["tiledblend"].get("history", [])
        output.ledger = Ledger.create(final, {**document, "history": known})
        output.store = drafting(final, output.ledger.drafts)
        if result.manifest and len(result.manifest.keys) == sound.tile_keys.size:
            sound.tile_keys.flat[:] = np.frombuffer(result.manifest.keys, np.uint8)
        for tile, receipts in sound.items():
            output.ledger.record(tile, receipts, sound.key_of(tile) if tile.stage == 0 else b"")
        output.ledger.flush()
        # Hidden last: a death before this leaves a result that the next driver looks through again.
        self.hide(final)
        return output

    def commit(self, output: Output, image: ImageMetadata) -> tuple[str, tuple[str, ...]]:
        """Array metadata, manifest, then the root's; then the exchange, if there is one."""
        ledger, layout, store = output.open_ledger(), output.layout, output.store
        assert isinstance(layout, ArrayLayout)
        documents = array_documents(layout)
        store.put_many(documents.items())
        history = {"history": ledger.job["history"]} if ledger.job.get("history") else {}
        own = {**(image.tiledblend or {}), "job": ledger.job["job"], **history}
        described = replace(image, windows=windows_of(layout, store, image.windows), tiledblend=own)
        attributes = root_attributes(layout, described)
        of_documents = (Receipt(key, len(data), digest(data)) for key, data in documents.items())
        count = len(ledger.receipts.sizes) + len(documents)
        keys = ledger.receipts.tile_keys.tobytes() if ledger.receipts.has_keys else b""
        manifest = dump_manifest(attributes, chain(ledger.receipts.planned(), of_documents), count, keys)
        ledger.publish(SUFFIX, manifest, store)
        ledger.lock.check()
        for key, data in root_documents(layout, with_manifest(attributes, sha256(manifest))).items():
            self._reveal(store, key, data)
        if not output.replaces:
            return sha256(manifest), ()
        self._settle(store, ledger)
        return sha256(manifest), _discard_old(store, ledger)

    def remove(self, building: ObjectStore, layout: Container) -> tuple[int, tuple[str, ...]]:
        """Objects of the run, and its manifest."""
        assert isinstance(layout, ArrayLayout)
        removed = _remove_objects(building, layout)
        parent, name = split_parent(building)
        if parse_manifest(parent.get(name + SUFFIX) or b"") is not None:
            parent.delete(name + SUFFIX)
        return removed

    def _result(self) -> StoredResult:
        result = read_result(self.final)
        assert result is not None
        return result

    def _reveal(self, store: ObjectStore, key: str, data: bytes) -> None:
        """Put a root document: in a bucket by a conditional create, which tells when another run has put its own."""
        if store.local_path() is not None:
            store.put(key, data)
        elif not store.put_new(key, data) and store.get(key) != data:
            raise RefusedError(
                f"{self.final.uri}/{key}: another run has committed here; this run's result stays hidden"
            )

    def _settle(self, building: ObjectStore, ledger: Ledger) -> bool:
        """Carry a --replace on from wherever it was cut off; False if the new result is not complete yet.

        In order: exchange the folders, note it, give the manifest its final name. The manifest's old name tells, before
        the note is there, which of the two folders is the new result.
        """
        final = self.final
        new, old = _local(building), _local(final)
        settle_aside(new, old)
        if not ledger.has_note(_EXCHANGED):
            waiting = _manifest_digest(building)
            if waiting is None and not _occupied(building) and self.is_finished():
                # All was done, and the ledger was half removed; or nothing was, and the old result is of this very job.
                result = read_result(final)
                return result is not None and result.job == ledger.job["job"] and result.layout == ledger.layout
            if waiting is None or waiting not in (root_manifest(building), root_manifest(final)):
                return False
            if root_manifest(final) != waiting:
                exchange(new, old)
            ledger.put_note(_EXCHANGED)
        manifest = old.with_name(old.name + SUFFIX)
        with mapped_errors("write", manifest), suppress(FileNotFoundError):
            os.replace(new.with_name(new.name + SUFFIX), manifest)
            sync_folder(old.parent)
        return True


def refuse_foreign(store: ObjectStore, layout: ArrayLayout) -> None:
    """Raise RefusedError if a result holds objects that are not of its layout: they would be lost with it."""
    foreign = [key for key, _ in store.list() if not _is_own(key, layout)]
    if foreign:
        raise RefusedError(
            f"{store.uri}: {len(foreign)} files there are not of the run that made it (first: {min(foreign)}); "
            "move them away or give another output path"
        )


def _unlike(result: StoredResult, layout: Container, job: dict[str, Any]) -> list[str]:
    """What differs between a result's job and this one, as lines for people."""
    was = {"layout": result.layout.as_dict(), "job": result.job}
    return ledgers.differences(was, {"layout": layout.as_dict(), "job": job})


def _unknown(key: str) -> Receipt | None:
    """What is expected of an object where nothing is known."""
    return None


def _discard_old(old: ObjectStore, ledger: Ledger) -> tuple[str, ...]:
    """Remove the older result after the exchange, its root first; returns what was not its own and stays."""
    return _remove_objects(old, ArrayLayout.from_dict(ledger.job["older"]))[1]


def _remove_objects(store: ObjectStore, layout: ArrayLayout) -> tuple[int, tuple[str, ...]]:
    """Delete the objects of a layout, metadata first, and folders left empty: (number deleted, keys kept)."""
    found = [key for key, _ in store.list()]
    own = [key for key in found if _is_own(key, layout)]
    for key in sorted(own, key=lambda key: (key not in ROOT_KEYS, key.count("/"))):
        store.delete(key)
    if (root := store.local_path()) is not None:
        prune(root)
    return len(own), tuple(sorted(set(found) - set(own)))


def prune(root: Path) -> None:
    """Remove empty folders. Raises StorageError: one that stays would be in the way of the next run."""
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise storage_error(error, "remove", folder) from error


def _is_own(key: str, layout: ArrayLayout) -> bool:
    return key in ROOT_KEYS or layout.owns(key)


def _local(store: ObjectStore) -> Path:
    path = store.local_path()
    if path is None:
        raise UsageError(f"{store.uri}: --replace works on directories only; give a new path")
    return path


def _occupied(store: ObjectStore) -> bool:
    path = store.local_path()
    return os.path.lexists(path) if path is not None else next(iter(store.list()), None) is not None


def _manifest_digest(store: ObjectStore) -> str | None:
    data = manifest_bytes(store)
    return None if data is None else sha256(data)


def _make_new_folder(folder: Path, *, shared: bool) -> None:
    try:
        made = [parent for parent in folder.parents if not parent.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=shared)
        try:
            for parent in [folder.parent, *(parent.parent for parent in made)]:
                sync_folder(parent)
        except OSError:
            if not shared:
                # It would be in the next run's way.
                folder.rmdir()
            raise
    except FileExistsError as error:
        raise RefusedError(f"{folder}: output exists; use another path, --resume or --replace") from error
    except OSError as error:
        raise storage_error(error, "create", folder) from error
