"""The ledger beside an unfinished result: its job, who works on it, and a receipt for every finished tile.

For `OUT` it is the sibling `OUT.ledger/`, never inside the group. It outlives a killed driver; a finished run removes
it. Files: `job.json` (create-only), `lock.NNNNNN`, and receipts: one append-only file per driver on a file system,
batches of create-only objects in a bucket.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from tiledblend.bytes.objects import (
    TEMPORARY_PREFIX,
    ObjectStore,
    beside,
    mapped_errors,
    split_parent,
    sync_folder,
)
from tiledblend.containers.container import Container
from tiledblend.containers.known import container_of
from tiledblend.containers.lock import Lock, refuse_living
from tiledblend.containers.ownership import require_ours
from tiledblend.containers.receipt_log import open_log
from tiledblend.containers.receipts import Receipt, Receipts, ReceiptTable
from tiledblend.errors import RefusedError, StorageError, UsageError
from tiledblend.geometry import Tile

SUFFIX = ".ledger"
_JOB = "job.json"
_DRAFTS = re.compile(r"drafts\.\d{6,}")


@dataclass(frozen=True)
class Conflict:
    """Two attempts at one tile that stored different bytes: a fault of the machine or of the code."""

    tile: Tile
    first: Receipts
    second: Receipts

    @property
    def keys(self) -> tuple[str, ...]:
        """The objects that differ."""
        return tuple(a.key for a, b in zip(self.first, self.second, strict=False) if a != b)


@dataclass(frozen=True)
class Part:
    """Part `index` (from 1) of `count` drivers that share one output and its ledger, each with a lock of its own.

    Raises UsageError for one that is not there.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(f"--part {self.index}/{self.count}: the part must be from 1 to {self.count}")

    @property
    def prefix(self) -> str:
        """Where its lock and receipts lie in the ledger."""
        return f"part-{self.index:05d}-of-{self.count:05d}/"


class Ledger:
    """An open ledger, held by this driver. Made by `create` or `resume`; a context manager that closes."""

    def __init__(
        self, store: ObjectStore, job: dict[str, Any], lock: Lock, receipts: ReceiptTable, prefix: str = ""
    ) -> None:
        self.store, self.job, self.lock, self.receipts = store, job, lock, receipts
        self.conflicts: list[Conflict] = []
        self.damaged_lines = 0
        self._rounds: dict[Tile, int] = {}
        self.drafts = _drafts_folder(store, prefix, lock.generation)
        self._log = open_log(store, f"{prefix}receipts.{lock.generation:06d}")
        self._flushed = time.monotonic()

    @classmethod
    def create(cls, output: ObjectStore, job: dict[str, Any], part: Part | None = None) -> Ledger:
        """A new ledger beside `output`. With a part, an equal job's ledger is joined.

        job: plain JSON values that decide the result, under "layout" its container. Raises RefusedError if there is
        a ledger, or another job's.
        """
        store, prefix = beside(output, SUFFIX), part.prefix if part else ""
        receipts = ReceiptTable(_layout_of(job, output))
        if not store.put_new(_JOB, _dump(job)):
            if part is None:
                raise RefusedError(
                    f"{output.uri}: another run started it; continue with --resume, or `tiledblend clean {output.uri}`"
                )
            return cls.resume(output, job, part)
        try:
            return cls._hold(store, job, receipts, prefix)
        except RefusedError:
            store.delete(_JOB)
            raise

    @classmethod
    def resume(cls, output: ObjectStore, job: dict[str, Any] | None = None, part: Part | None = None) -> Ledger:
        """Take over the ledger beside `output`, with all receipts of all drivers before.

        Raises RefusedError if there is none, if the job differs (naming what), or if its driver still lives here.
        """
        store, prefix = beside(output, SUFFIX), part.prefix if part else ""
        stored = stored_job(output)
        if stored is None:
            raise RefusedError(f"{output.uri}: there is no run to resume; run without --resume")
        if job is not None and (different := differences(stored, json.loads(_dump(job)))):
            raise RefusedError(f"{output.uri}: the run to resume is of another job: {'; '.join(different[:4])}")
        receipts = ReceiptTable(_layout_of(stored, output))
        for lock_prefix in ["lock."] if part else _part_locks(store):
            refuse_living(store, lock_prefix)
        ledger = cls._hold(store, stored, receipts, prefix)
        try:
            ledger._load()
        except BaseException:
            ledger._log.close()
            ledger.lock.forget()
            raise
        return ledger

    @classmethod
    def _hold(cls, store: ObjectStore, job: dict[str, Any], receipts: ReceiptTable, prefix: str) -> Ledger:
        lock = Lock.acquire(store, f"{prefix}lock.")
        with lock.forgotten_on_failure():
            held = cls(store, job, lock, receipts, prefix)
            try:
                require_ours(store, held.drafts)
            except RefusedError:
                held.close()
                raise
            return held

    @property
    def layout(self) -> Container:
        """How the result is stored."""
        return self.receipts.layout

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, tile: Tile, receipts: Iterable[Receipt], key: bytes = b"") -> None:
        """Note that a tile's objects are stored. key: the tile's, where it has one.

        On a file system this outlives the driver at once and a power cut after about a second or a `flush`.
        """
        self._note(tile, tuple(receipts), key)
        if time.monotonic() - self._flushed >= self._log.interval:
            self.flush()

    def flush(self) -> None:
        """Make all receipts durable. Raises RefusedError if another driver took over, StorageError."""
        self.lock.check()
        self._flushed = time.monotonic()
        self._log.sync()

    def close(self) -> None:
        """Flush, and release the lock for the next driver. Idempotent; quiet if another one took over."""
        if self._log.closed:
            return
        try:
            with suppress(RefusedError):
                self.flush()
                self.lock.release()
        finally:
            self.lock.forget()
            self._log.close()
            if self.drafts is not None:
                with suppress(OSError):
                    self.drafts.rmdir()

    def remove(self) -> None:
        """Delete the ledger: the run is finished, or thrown away."""
        self._log.close()
        self.lock.forget()
        remove_ledger(self.store)

    def discard(self, tiles: Iterable[Tile]) -> None:
        """Void the receipts of tiles whose objects turned out not to be what was stored: they are made again.

        Whoever resumes later reads that too: of a tile's lines only those after its last discard count.
        """
        for tile in tiles:
            self._rounds[tile] = self._rounds.get(tile, 0) + 1
            self.receipts.pop(tile, None)
            self.conflicts = [conflict for conflict in self.conflicts if conflict.tile != tile]
            self._note(tile, ())

    def put_note(self, name: str) -> None:
        """Leave a durable mark, such as "exchanged"; repeating it does nothing."""
        self.store.put_new(f"note.{name}", b"")

    def has_note(self, name: str) -> bool:
        """True if this mark was left by this driver or one before it."""
        return self.store.size(f"note.{name}") is not None

    def publish(self, name: str, data: bytes, output: ObjectStore) -> None:
        """Put the sibling `name` of `output`, atomically. A death in between leaves nothing outside the ledger."""
        parent, output_name = split_parent(output)
        staged, target = self.store.local_path("staged"), parent.local_path(output_name + name)
        if staged is None or target is None:
            parent.put(output_name + name, data)
            return
        self.store.put("staged", data)
        with mapped_errors("write", target):
            os.replace(staged, target)
            sync_folder(target.parent)

    def _note(self, tile: Tile, receipts: Receipts, key: bytes = b"") -> None:
        number = self._rounds.get(tile, 0)
        self._remember(tile, receipts, number, key)
        # A contradicting receipt is written too: whoever resumes must not believe the first one.
        self._log.append(_line(tile, receipts, number, key))

    def _remember(self, tile: Tile, receipts: Receipts, number: int, key: bytes) -> None:
        """Add a line's receipts (none: a discard). number: how often the tile was discarded before.

        The order of lines does not matter: several drivers' files are read one after the other.
        """
        if number < self._rounds.get(tile, 0):
            return
        if number > self._rounds.get(tile, 0):
            self._rounds[tile] = number
            self.receipts.pop(tile, None)
            self.conflicts = [conflict for conflict in self.conflicts if conflict.tile != tile]
        if receipts and (known := self.receipts.setdefault(tile, receipts)) != receipts:
            self.conflicts.append(Conflict(tile, known, receipts))
        if key:
            self.receipts.note_key(tile, key)

    def _load(self) -> None:
        for key, _ in sorted(self.store.list()):
            if key.rpartition("/")[2].startswith("receipts."):
                for line in filter(None, (line.rstrip(b"\n") for line in BytesIO(self.store.get(key) or b""))):
                    # A torn last line, a flipped byte, or objects that are not planned: the tile is made again.
                    try:
                        self._remember(*_parse_line(line))
                    except (ValueError, TypeError):
                        self.damaged_lines += 1


def exists(output: ObjectStore) -> bool:
    """True if there is a ledger beside `output`."""
    return stored_job(output) is not None


def stored_job(output: ObjectStore) -> dict[str, Any] | None:
    """The job of the ledger beside `output`, or None. Raises StorageError if it is damaged."""
    data = beside(output, SUFFIX).get(_JOB)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _damaged(output) from error
    if not isinstance(document, dict):
        raise _damaged(output)
    return document


def _layout_of(job: dict[str, Any], output: ObjectStore) -> Container:
    try:
        return container_of(job["layout"])
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise _damaged(output) from error


def _damaged(output: ObjectStore) -> StorageError:
    # Without the job's layout nobody knows which objects are the run's own: `clean` cannot help.
    uri = beside(output, SUFFIX).uri
    return StorageError(
        f"{uri}/{_JOB} is damaged: remove {output.uri} (unless --replace was to exchange it) and {uri}, or use another "
        "output path"
    )


def remove_ledger(store: ObjectStore) -> None:
    """Delete a ledger's own objects, and its folders if that leaves them empty.

    Receipts go first and the job last, so that after a death in between the next driver finds a ledger without some
    receipts, never receipts without their job or a used generation that looks free.
    """
    keys = [key for key, _ in store.list() if is_ledger_key(key)]
    for key in sorted(keys, key=_removal_rank):
        store.delete(key)
    root = store.local_path()
    if root is not None:
        for folder in sorted({root, *(root / Path(key).parent for key in keys), *_drafts_folders(root)}, reverse=True):
            with suppress(OSError):
                folder.rmdir()


def _removal_rank(key: str) -> int:
    ranks = {"lock": 1, "note": 2, "job": 3}
    return ranks.get(key.rpartition("/")[2].split(".")[0], 0)


def is_ledger_key(key: str) -> bool:
    """True for the names that a ledger uses."""
    folder, _, name = key.rpartition("/")
    if _DRAFTS.fullmatch(folder.rpartition("/")[2]):
        return name.startswith(TEMPORARY_PREFIX)
    known = name in (_JOB, "staged") or name.startswith(("lock.", "receipts.", "note.", TEMPORARY_PREFIX))
    return known and (not folder or folder.startswith("part-"))


def _drafts_folders(root: Path, prefix: str = "") -> list[Path]:
    """Folders for drafts of any generation, all parts' own too unless a part is asked for."""
    places = [root / prefix] if prefix else [root, *root.glob("part-*")]
    return [folder for place in places for folder in place.glob("drafts.*") if _DRAFTS.fullmatch(folder.name)]


def _drafts_folder(store: ObjectStore, prefix: str, generation: int) -> Path | None:
    """An empty folder for this driver's half-written files; those of the drivers before go, with what is in them.

    One that was thought dead can begin no file any more, nor finish one. None where objects are no files.
    """
    root = store.local_path()
    if root is None:
        return None
    folder = root / prefix / f"drafts.{generation:06d}"
    with mapped_errors("create", folder):
        for older in _drafts_folders(root, prefix):
            for file in older.glob(f"{TEMPORARY_PREFIX}*"):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                older.rmdir()
        folder.mkdir(exist_ok=True)
    return folder


def differences(stored: Any, given: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, as lines for people.

    >>> differences({"feather": {"sigma": 16}, "x": 1}, {"feather": {"sigma": 8}, "x": 1})
    ['feather.sigma was 16, is now 8']
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        if stored.get("fingerprint") != given.get("fingerprint"):
            was, now = ("with", "without") if stored.get("fingerprint") else ("without", "with")
            return [f"it was begun {was} --deep-fingerprint, and is continued {now} it"]
        keys = list(dict.fromkeys([*stored, *given]))
        parts = [differences(stored.get(key), given.get(key), f"{where}.{key}".lstrip(".")) for key in keys]
        return [line for part in parts for line in part]
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        parts = [differences(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(stored, given, strict=True))]
        return [line for part in parts for line in part]
    return [] if stored == given else [f"{where} was {_short(stored)}, is now {_short(given)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dump(job: dict[str, Any]) -> bytes:
    return (json.dumps(job, indent=1, allow_nan=False) + "\n").encode()


def _part_locks(store: ObjectStore) -> list[str]:
    folders = {key.rpartition("/")[0] for key, _ in store.list("part-")}
    return [f"{folder}/lock." for folder in sorted(folders) if folder]


def _line(tile: Tile, receipts: Receipts, number: int, key: bytes) -> bytes:
    """One receipt line: checksum, space, JSON, newline. number: how often the tile was discarded before."""
    document = [[tile.stage, tile.row, tile.column], receipts, number, *([key.hex()] if key else [])]
    text = json.dumps(document, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse_line(line: bytes) -> tuple[Tile, Receipts, int, bytes]:
    """The inverse of `_line`. Raises ValueError or TypeError for anything else."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("checksum")
    tile, receipts, number, *key = json.loads(text)
    return Tile(*tile), tuple(Receipt(*receipt) for receipt in receipts), int(number), bytes.fromhex("".join(key))
