"""A result's life from its beginning: begun at a new path, taken up again, or found complete.

Before `commit` there is no metadata, so a reader finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tiledblend.bytes.buckets import path_of_file_url
from tiledblend.bytes.objects import ObjectStore, beside, open_store
from tiledblend.containers import ledger as ledgers
from tiledblend.containers.container import Container
from tiledblend.containers.digests import ALGORITHM
from tiledblend.containers.ledger import Ledger, Part
from tiledblend.containers.lock import refuse_living
from tiledblend.containers.place import Place, drafting
from tiledblend.containers.receipts import ReceiptTable
from tiledblend.containers.soundness import discard_unsound
from tiledblend.errors import RefusedError
from tiledblend.geometry import Tile


@dataclass
class Output:
    """A result being made. uri: what the user named. store: where tiles are put now. ledger: what is done.

    complete: a resumed run found nothing to do; there is nothing to commit. found: the receipts of all tiles then.
    fresh: this driver began it, at a path where nothing was. warnings: lines for the report.
    """

    place: Place
    layout: Container
    store: ObjectStore
    ledger: Ledger | None
    fresh: bool = False
    warnings: list[str] = field(default_factory=list)
    found: ReceiptTable | None = None

    @property
    def uri(self) -> str:
        """What the user named."""
        return self.place.final.uri

    @property
    def stored(self) -> ObjectStore:
        """The parts that are there, wherever a commit that was cut off has moved them."""
        return self.place.stored(self.store)

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
        return self.ledger is not None and self.ledger.job.get("older") is not None

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
    layout: Container,
    *,
    job: dict[str, Any],
    inputs: Sequence[str] = (),
    resume: bool = False,
    replace: bool = False,
    part: Part | None = None,
    history: Sequence[dict[str, Any]] = (),
) -> Output:
    """Open a new output, or an unfinished or damaged one of the same job (resume).

    job: the fingerprint, plain JSON values. inputs: paths and URLs that are read. replace: an existing result that
    tiledblend made is exchanged for this one by `commit` (on file systems only). part: several drivers share the
    output. history: what the root attributes tell of the results before, decided when a run begins. With resume and
    nothing there, a new run begins. Raises RefusedError, StorageError, UsageError.
    """
    place = layout.place(open_store(uri))
    if replace:
        place.require_replaceable()
    refuse_overlap(place.final, inputs)
    document = {"layout": layout.as_dict(), "job": job, "building": "", "older": None, "history": list(history)}
    document["digest"] = ALGORITHM
    stored = ledgers.stored_job(place.final)
    if stored is not None and (resume or part):
        kept = {"building": stored.get("building", ""), "older": stored.get("older")}
        kept |= {"history": stored.get("history")}
        opened = _continue(place, layout, {**document, **kept}, part)
        if opened.complete and place.is_result():
            # A driver died at its very end, or at the start of a repair: what is there is looked at like any result.
            repaired = place.repair(layout, document)
            repaired.warnings += opened.warnings
            return repaired
        return opened
    if stored is not None:
        _refuse_unfinished(place.final)
    place.require_usable()
    is_occupied = place.is_occupied()
    is_result = is_occupied and place.is_result()
    if is_result and resume and not (replace and not place.is_of(layout, job)):
        return place.repair(layout, document)
    if is_occupied and not (replace and is_result):
        raise RefusedError(_existing(place, replace, resume))
    if is_result:
        document |= place.older()
    return _start(place, layout, document, part)


def refuse_taken(uri: str | os.PathLike[str], layout: Container, inputs: Sequence[str] = ()) -> None:
    """Raise RefusedError where `begin` would not begin a new run: something is there, or an input. Writes nothing.

    inputs: as of `begin`. Raises StorageError where that cannot be told, UsageError.
    """
    place = layout.place(open_store(uri))
    refuse_overlap(place.final, inputs)
    if ledgers.stored_job(place.final) is not None:
        _refuse_unfinished(place.final)
    place.require_usable()
    if place.is_occupied():
        raise RefusedError(_existing(place, replace=False, resume=False))
    place.refuse_foreign()


def refuse_overlap(output: ObjectStore, inputs: Sequence[str]) -> None:
    """Raise RefusedError if the output is, lies in, or holds an input."""
    for given in inputs:
        own, other = _comparable(output.uri), _comparable(given)
        if own is None or other is None:
            continue
        if own == other or own.startswith(other + "/") or other.startswith(own + "/"):
            relation = "is" if own == other else "lies inside" if own.startswith(other) else "would hold"
            raise RefusedError(f"output {output.uri} {relation} the input {given}; give another output path")


def _refuse_unfinished(final: ObjectStore) -> None:
    # Says who is at work, if somebody is; otherwise what can be done.
    refuse_living(beside(final, ledgers.SUFFIX), "lock.")
    raise RefusedError(
        f"{final.uri}: an unfinished run is there; continue it with --resume or remove it with "
        f"`tiledblend clean {final.uri}`"
    )


def _start(place: Place, layout: Container, document: dict[str, Any], part: Part | None) -> Output:
    building = place.building(document)
    if document["older"] is None:
        place.refuse_foreign()
    ledger = Ledger.create(place.final, document, part)
    try:
        place.make(building, shared=part is not None)
    except BaseException:
        # Another part may be using the ledger already.
        ledger.close() if part else ledger.remove()
        raise
    return Output(place, layout, drafting(building, ledger.drafts), ledger, fresh=part is None)


def _continue(place: Place, layout: Container, document: dict[str, Any], part: Part | None) -> Output:
    ledger = Ledger.resume(place.final, document, part)
    try:
        building = place.building(document)
        output = Output(place, layout, drafting(building, ledger.drafts), ledger)
        kept = place.settle(building, ledger)
        if kept is not None:
            output.warnings += warn_kept(kept, building)
            ledger.remove()
            output.ledger = None
        else:
            place.hide(building)
            discard_unsound(output, by_hash=part is None)
    except BaseException:
        ledger.close()
        raise
    return output


def _existing(place: Place, replace: bool, resume: bool) -> str:
    uri = place.final.uri
    if replace:
        return f"{uri}: exists and is no result of tiledblend, so --replace does not touch it; use another path"
    if resume:
        return (
            f"{uri}: exists and is neither a result of tiledblend nor an unfinished run with its ledger, so "
            "--resume cannot go on; remove it by hand if it is yours to remove, or use another path"
        )
    is_local = place.final.local_path() is not None
    remedies = "another path, --resume or --replace" if is_local else "another path or --resume"
    return f"{uri}: output exists; use {remedies}"


def warn_kept(kept: tuple[str, ...], store: ObjectStore) -> list[str]:
    """A line for the report about what stays of an older result."""
    return [f"{len(kept)} files of the older result are not ours and stay in {store.uri}"] if kept else []


def _comparable(uri: str) -> str | None:
    """A text by which one path or URL can be found inside another: links resolved, no slash at the end."""
    if "://" not in uri:
        return os.path.realpath(uri)
    parts = urlsplit(uri)
    return os.path.realpath(path_of_file_url(uri)) if parts.scheme == "file" else uri.rstrip("/")
