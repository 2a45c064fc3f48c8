"""A result's life: begun at a new path, built object by object, made visible in one last step.

Before `commit` there is no metadata, so a reader finds nothing. With `replace` the new result is built beside the old
one and exchanged for it when it is complete.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.exchange import exchange, settle_aside
from tiledblend.bytes.objects import (
    DirectoryStore,
    ObjectStore,
    beside,
    mapped_errors,
    open_store,
    split_parent,
    storage_error,
    sync_folder,
)
from tiledblend.containers import ledger as ledgers
from tiledblend.containers.ledger import Ledger, Part
from tiledblend.containers.lock import refuse_living
from tiledblend.containers.manifest import SUFFIX, digest, dump_manifest, parse_manifest
from tiledblend.containers.omezarr.documents import (
    ROOT_KEYS,
    ImageMetadata,
    array_documents,
    root_attributes,
    root_documents,
    with_manifest,
)
from tiledblend.containers.omezarr.layout import ArrayLayout, Receipt
from tiledblend.containers.omezarr.windows import windows_of
from tiledblend.containers.receipts import ReceiptTable
from tiledblend.containers.result import StoredResult, manifest_bytes, read_result, root_manifest
from tiledblend.containers.verify import checked_receipt
from tiledblend.errors import RefusedError, StorageError, UsageError, VerificationError
from tiledblend.geometry import Tile

_BUILDING = ".tiledblend-new"
_EXCHANGED = "exchanged"


@dataclass
class Output:
    """A result being made. uri: what the user named. store: where tiles are put now. ledger: what is done.

    complete: a resumed run found nothing to do; there is nothing to commit. found: the receipts of all tiles then.
    fresh: this driver began it, at a path where nothing was. warnings: lines for the report.
    """

    uri: str
    layout: ArrayLayout
    final: ObjectStore
    store: ObjectStore
    ledger: Ledger | None
    fresh: bool = False
    warnings: list[str] = field(default_factory=list)
    found: ReceiptTable | None = None

    @property
    def receipts(self) -> ReceiptTable:
        """Of the tiles that are done."""
        if self.ledger is not None:
            return self.ledger.receipts
        return self.found if self.found is not None else ReceiptTable(self.layout)

    @property
    def complete(self) -> bool:
        """True if the result was finished already."""
        return self.ledger is None

    @property
    def replaces(self) -> bool:
        """True if an older result will be exchanged for this one."""
        return self.store.uri != self.final.uri

    def open_ledger(self) -> Ledger:
        """The ledger of an unfinished result."""
        if self.ledger is None:
            raise RuntimeError(f"{self.uri} is complete")
        return self.ledger

    def missing_tiles(self) -> Iterable[Tile]:
        """Tiles of all stages without a receipt, in order."""
        done = self.ledger.receipts if self.ledger else None
        grid = self.layout.grid
        tiles = (tile for stage in range(grid.stages) for tile in grid.tiles(stage))
        return (tile for tile in tiles if done is not None and tile not in done)

    def close(self) -> None:
        """Flush the ledger and give up its lock; the result stays as it is."""
        if self.ledger is not None:
            self.ledger.close()


def begin(
    uri: str | os.PathLike[str],
    layout: ArrayLayout,
    *,
    job: dict[str, Any],
    inputs: Sequence[str] = (),
    resume: bool = False,
    replace: bool = False,
    part: Part | None = None,
) -> Output:
    """Open a new output, or an unfinished or damaged one of the same job (resume).

    job: the fingerprint, plain JSON values. inputs: paths and URLs that are read. replace: an existing result that
    tiledblend made is exchanged for this one by `commit` (directories only). part: several drivers share the output.
    With resume and nothing there, a new run begins. Raises RefusedError, StorageError, UsageError.
    """
    final = open_store(uri)
    if replace:
        _local(final)
    refuse_overlap(final, inputs)
    document = {"layout": layout.as_dict(), "job": job, "building": "", "older": None}
    stored = ledgers.stored_job(final)
    if stored is not None and (resume or part):
        kept = {"building": stored.get("building", ""), "older": stored.get("older")}
        opened = _continue(final, layout, {**document, **kept}, part)
        if opened.complete and (finished := read_result(final)) is not None:
            # A driver died at its very end, or at the start of a repair: what is there is looked at like any result.
            repaired = _repair(final, finished, layout, document)
            repaired.warnings += opened.warnings
            return repaired
        return opened
    if stored is not None:
        _refuse_unfinished(final)
    occupied = _occupied(final)
    older = read_result(final) if occupied else None
    if older and resume and not (replace and _unlike(older, layout, job)):
        return _repair(final, older, layout, document)
    if occupied and not (replace and older):
        raise RefusedError(_existing(final, replace, resume))
    if older:
        refuse_foreign(final, older.layout)
        document |= {"building": _BUILDING, "older": older.layout.as_dict()}
    return _start(final, layout, document, part)


def refuse_taken(uri: str | os.PathLike[str], inputs: Sequence[str] = ()) -> None:
    """Raise RefusedError where `begin` would not begin a new run: something is there, or an input. Writes nothing.

    inputs: as of `begin`. Raises StorageError where that cannot be told, UsageError.
    """
    final = open_store(uri)
    refuse_overlap(final, inputs)
    if ledgers.stored_job(final) is not None:
        _refuse_unfinished(final)
    if _occupied(final):
        raise RefusedError(_existing(final, replace=False, resume=False))
    _refuse_foreign_manifest(final)


def _refuse_unfinished(final: ObjectStore) -> None:
    # Says who is at work, if somebody is; otherwise what can be done.
    refuse_living(beside(final, ledgers.SUFFIX), "lock.")
    raise RefusedError(
        f"{final.uri}: an unfinished run is there; continue it with --resume or remove it with `tiledblend clean`"
    )


def require_agreement(output: Output) -> None:
    """Two attempts at one tile must have stored the same bytes. Raises VerificationError; both receipts are kept."""
    ledger = output.open_ledger()
    if ledger.conflicts:
        ledger.flush()
        first = ledger.conflicts[0]
        raise VerificationError(
            f"{output.uri}: two attempts at {first.tile} stored different bytes in {first.keys[0]}; "
            "check the machine's memory and package versions, then run again"
        )


def commit(output: Output, image: ImageMetadata) -> str:
    """Make a complete result visible: array metadata, manifest, then the root's; then exchange and clear up.

    Returns the manifest's SHA-256. Raises StorageError if an object is missing or torn, VerificationError if two
    attempts at a tile differed, RefusedError if another driver took over. Can be repeated after a failure.
    """
    ledger = output.open_ledger()
    ledger.flush()
    require_agreement(output)
    _require_complete(output)
    documents = array_documents(output.layout)
    output.store.put_many(documents.items())
    attributes = root_attributes(output.layout, _described(output, image))
    of_documents = (Receipt(key, len(data), digest(data)) for key, data in documents.items())
    count = len(ledger.receipts.sizes) + len(documents)
    manifest = dump_manifest(attributes, chain(ledger.receipts.planned(), of_documents), count)
    ledger.publish(SUFFIX, manifest, output.store)
    ledger.lock.check()
    for key, data in root_documents(output.layout, with_manifest(attributes, digest(manifest))).items():
        _reveal(output, key, data)
    _finish(output)
    return digest(manifest)


def _reveal(output: Output, key: str, data: bytes) -> None:
    """Put a root document: in a bucket by a conditional create, which tells when another run has put its own."""
    if output.store.local_path() is not None:
        output.store.put(key, data)
    elif not output.store.put_new(key, data) and output.store.get(key) != data:
        raise RefusedError(f"{output.uri}/{key}: another run has committed here; this run's result stays hidden")


def refuse_overlap(output: ObjectStore, inputs: Sequence[str]) -> None:
    """Raise RefusedError if the output is, lies in, or holds an input."""
    for given in inputs:
        own, other = _comparable(output.uri), _comparable(given)
        if own is None or other is None:
            continue
        if own == other or own.startswith(other + "/") or other.startswith(own + "/"):
            relation = "is" if own == other else "lies inside" if own.startswith(other) else "would hold"
            raise RefusedError(f"output {output.uri} {relation} the input {given}; give another output path")


def refuse_foreign(store: ObjectStore, layout: ArrayLayout) -> None:
    """Raise RefusedError if a result holds objects that are not of its layout: they would be lost with it."""
    foreign = [key for key, _ in store.list() if not _is_own(key, layout)]
    if foreign:
        raise RefusedError(
            f"{store.uri}: {len(foreign)} files there are not of the run that made it (first: {min(foreign)}); "
            "move them away or give another output path"
        )


@dataclass(frozen=True)
class CleanReport:
    """What `clean` did. removed: objects deleted. kept: files that it found and did not know. finished: the result
    was complete and stays, only the ledger went."""

    removed: int
    kept: tuple[str, ...]
    finished: bool


def clean(uri: str | os.PathLike[str]) -> CleanReport:
    """Remove what a dead run left: only objects of its own plan, its ledger and temporary files.

    A complete result stays. Raises RefusedError if there is no such run or its driver still lives.
    """
    final = open_store(uri)
    document = ledgers.stored_job(final)
    if document is None:
        raise RefusedError(f"{final.uri}: there is no unfinished run to clean up")
    ledger_store = beside(final, ledgers.SUFFIX)
    # Takes the lock, so that no other driver starts while its files go.
    with Ledger.resume(final) as ledger:
        building = _building(final, document)
        if building.uri == final.uri and _is_finished(final):
            ledger.remove()
            return CleanReport(0, (), finished=True)
        if building.uri != final.uri and _settle(final, building, ledger):
            kept = _discard_old(building, ledger)
            ledger.remove()
            return CleanReport(0, kept, finished=True)
        removed, kept = _remove_objects(building, ledger.layout)
        parent, name = split_parent(building)
        if parse_manifest(parent.get(name + SUFFIX) or b"") is not None:
            parent.delete(name + SUFFIX)
        ledger.remove()
    return CleanReport(removed + len(list(ledger_store.list())), kept, finished=False)


def remove_result(uri: str | os.PathLike[str]) -> tuple[str, ...]:
    """Remove a complete result that served its purpose; returns the keys that are not its own and stay.

    Its manifest and its root go last, so that a removal that was cut off can be repeated.
    """
    store = open_store(uri)
    result = read_result(store)
    found = [key for key, _ in store.list()]
    own = [key for key in found if key in ROOT_KEYS or (result is not None and _is_own(key, result.layout))]
    kept = tuple(sorted(set(found) - set(own)))
    if result is None and kept:
        return kept
    for key in sorted(set(own) - set(ROOT_KEYS)):
        store.delete(key)
    parent, name = split_parent(store)
    parent.delete(name + SUFFIX)
    _hide(store)
    if (root := store.local_path()) is not None:
        _prune(root)
    return kept


def _start(final: ObjectStore, layout: ArrayLayout, document: dict[str, Any], part: Part | None) -> Output:
    building = _building(final, document)
    if building.uri != final.uri and _occupied(building):
        raise RefusedError(f"{building.uri} is in the way of --replace; move it away")
    if not document["building"]:
        _refuse_foreign_manifest(final)
    ledger = Ledger.create(final, document, part)
    try:
        folder = building.local_path()
        if folder is not None:
            _make_new_folder(folder, shared=part is not None)
    except BaseException:
        # Another part may be using the ledger already.
        ledger.close() if part else ledger.remove()
        raise
    return Output(final.uri, layout, final, _drafting(building, ledger), ledger, fresh=part is None)


def _refuse_foreign_manifest(final: ObjectStore) -> None:
    beside_it = manifest_bytes(final)
    if beside_it is not None and parse_manifest(beside_it) is None:
        raise RefusedError(f"{final.uri}{SUFFIX} exists and is no manifest of tiledblend; use another path")


def _continue(final: ObjectStore, layout: ArrayLayout, document: dict[str, Any], part: Part | None) -> Output:
    ledger = Ledger.resume(final, document, part)
    try:
        building = _building(final, document)
        output = Output(final.uri, layout, final, _drafting(building, ledger), ledger)
        if output.replaces and _settle(final, building, ledger):
            output.warnings += _warn_kept(_discard_old(building, ledger), building)
            ledger.remove()
            output.ledger = None
        elif not output.replaces and _is_finished(final):
            ledger.remove()
            output.ledger = None
        else:
            _hide(building)
            _discard_unsound(output, by_hash=part is None)
    except BaseException:
        ledger.close()
        raise
    return output


def _repair(final: ObjectStore, result: StoredResult, layout: ArrayLayout, document: dict[str, Any]) -> Output:
    """Resume a finished result: hide it if anything is damaged, and hand out only the tiles that are."""
    if different := _unlike(result, layout, document["job"]):
        raise RefusedError(f"{final.uri}: the result there is of another job: {'; '.join(different[:4])}")
    expected = result.manifest.receipts.get if result.manifest else _unknown
    every = [tile for stage in range(layout.grid.stages) for tile in layout.grid.tiles(stage)]
    sound = _sound_tiles(final, layout, every, expected)
    documents = all(final.get(key) == data for key, data in array_documents(layout).items())
    output = Output(final.uri, layout, final, final, None)
    if result.manifest and not result.problems and documents and len(sound) == len(every):
        # A death at the very end leaves an empty ledger.
        ledgers.remove_ledger(beside(final, ledgers.SUFFIX))
        output.found = sound
        return output
    output.ledger = Ledger.create(final, document)
    output.store = _drafting(final, output.ledger)
    for tile, receipts in sound.items():
        output.ledger.record(tile, receipts)
    output.ledger.flush()
    # Hidden last: a death before this leaves a result that the next driver looks through again.
    _hide(final)
    return output


def _unlike(result: StoredResult, layout: ArrayLayout, job: dict[str, Any]) -> list[str]:
    """What differs between a result's job and this one, as lines for people."""
    was = {"layout": result.layout.as_dict(), "job": result.job}
    return ledgers.differences(was, {"layout": layout.as_dict(), "job": job})


def _unknown(key: str) -> Receipt | None:
    """What is expected of an object where nothing is known."""
    return None


def _sound_tiles(
    store: ObjectStore, layout: ArrayLayout, tiles: Iterable[Tile], expected: Callable[[str], Receipt | None]
) -> ReceiptTable:
    """Receipts of those tiles whose every object is right. expected: the receipt of a key, where one is known."""

    def check(tile: Tile) -> tuple[Tile, list[Receipt | None]]:
        return tile, [checked_receipt(store, layout, key, expected(key)) for key in layout.tile_objects(tile)]

    sound, pending = ReceiptTable(layout), iter(tiles)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        while batch := list(islice(pending, 1024)):
            for tile, receipts in pool.map(check, batch):
                if None not in receipts:
                    sound[tile] = tuple(receipt for receipt in receipts if receipt)
    return sound


def _require_complete(output: Output) -> None:
    """Raise StorageError unless every planned object has a receipt and is stored with its length."""
    wrong = _unlike_stored(output)
    if len(wrong):
        first = next(islice(output.layout.planned_objects(), int(wrong[0]), None))
        raise StorageError(
            f"{output.uri}: {len(wrong)} of {output.layout.object_count()} objects are missing or torn "
            f"(first: {first}); run again with --resume"
        )


def _unlike_stored(output: Output) -> NDArray[np.intp]:
    """Numbers of the planned objects that have no receipt or are not stored with its length."""
    sizes = output.open_ledger().receipts.sizes
    stored = np.full_like(sizes, -1)
    for key, size in output.store.list():
        if (number := output.layout.object_number(key)) is not None:
            stored[number] = size
    return np.flatnonzero((sizes < 0) | (stored != sizes))


def _described(output: Output, image: ImageMetadata) -> ImageMetadata:
    """The image's metadata with the job, which a later --resume compares, and with every display window."""
    job = output.open_ledger().job["job"]
    windows = windows_of(output.layout, output.store, image.windows)
    return replace(image, windows=windows, tiledblend={**(image.tiledblend or {}), "job": job})


def _finish(output: Output) -> None:
    ledger = output.open_ledger()
    if output.replaces:
        _settle(output.final, output.store, ledger)
        output.warnings += _warn_kept(_discard_old(output.store, ledger), output.store)
    try:
        ledger.remove()
    except StorageError as error:
        # The result is complete and visible: what is left beside it is no reason to make it again.
        output.warnings.append(f"the result is complete, but its ledger stays: {error}")
    output.ledger = None


def _settle(final: ObjectStore, building: ObjectStore, ledger: Ledger) -> bool:
    """Carry a --replace on from wherever it was cut off; False if the new result is not complete yet.

    In order: exchange the folders, note it, give the manifest its final name. The manifest's old name tells, before
    the note is there, which of the two folders is the new result.
    """
    new, old = _local(building), _local(final)
    settle_aside(new, old)
    if not ledger.has_note(_EXCHANGED):
        waiting = _manifest_digest(building)
        if waiting is None and not _occupied(building) and _is_finished(final):
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
        _prune(root)
    return len(own), tuple(sorted(set(found) - set(own)))


def _prune(root: Path) -> None:
    """Remove empty folders. Raises StorageError: one that stays would be in the way of the next run."""
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise storage_error(error, "remove", folder) from error


def _is_own(key: str, layout: ArrayLayout) -> bool:
    return key in ROOT_KEYS or layout.owns(key)


def _hide(store: ObjectStore) -> None:
    """Remove root metadata: nothing opens while tiles are made again."""
    for key in ROOT_KEYS:
        store.delete(key)


def _discard_unsound(output: Output, *, by_hash: bool) -> None:
    """Void receipts whose objects are gone or not what was stored, or that contradict each other.

    by_hash: files are read and hashed. Objects of a bucket, whole by its nature and costly to fetch, and those of other
    parts are compared by their lengths.
    """
    ledger, store, layout = output.open_ledger(), output.store, output.layout
    unlike = set(_unlike_stored(output).tolist())
    unsound = {tile for tile in ledger.receipts if not unlike.isdisjoint(layout.tile_numbers(tile))}
    if by_hash and store.local_path() is not None:
        sound = _sound_tiles(store, layout, ledger.receipts, ledger.receipts.of_key)
        unsound |= {tile for tile in ledger.receipts if tile not in sound}
    # Which attempt's bytes are stored is unknown: make those tiles again.
    ledger.discard(unsound | {conflict.tile for conflict in ledger.conflicts})


def _building(final: ObjectStore, document: dict[str, Any]) -> ObjectStore:
    return beside(final, _BUILDING) if document.get("building") else final


def _drafting(store: ObjectStore, ledger: Ledger) -> ObjectStore:
    """The store with its half-written files outside the result."""
    return DirectoryStore(store.path, ledger.drafts) if isinstance(store, DirectoryStore) else store


def _local(store: ObjectStore) -> Path:
    path = store.local_path()
    if path is None:
        raise UsageError(f"{store.uri}: --replace works on directories only; give a new path")
    return path


def _occupied(store: ObjectStore) -> bool:
    path = store.local_path()
    return os.path.lexists(path) if path is not None else next(iter(store.list()), None) is not None


def _existing(store: ObjectStore, replace: bool, resume: bool) -> str:
    if replace:
        return f"{store.uri}: exists and is no result of tiledblend, so --replace does not touch it; use another path"
    if resume:
        return (
            f"{store.uri}: exists and is neither a result of tiledblend nor an unfinished run with its ledger, so "
            "--resume cannot go on; remove it by hand if it is yours to remove, or use another path"
        )
    remedies = "another path, --resume or --replace" if store.local_path() is not None else "another path or --resume"
    return f"{store.uri}: output exists; use {remedies}"


def _manifest_digest(store: ObjectStore) -> str | None:
    data = manifest_bytes(store)
    return None if data is None else digest(data)


def _is_finished(store: ObjectStore) -> bool:
    waiting = _manifest_digest(store)
    return waiting is not None and waiting == root_manifest(store)


def _warn_kept(kept: tuple[str, ...], store: ObjectStore) -> list[str]:
    return [f"{len(kept)} files of the older result are not ours and stay in {store.uri}"] if kept else []


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


def _comparable(uri: str) -> str | None:
    """A text by which one path or URL can be found inside another: links resolved, no slash at the end."""
    if "://" not in uri:
        return os.path.realpath(uri)
    parts = urlsplit(uri)
    return os.path.realpath(unquote(parts.path)) if parts.scheme == "file" else uri.rstrip("/")
