"""The end of a run: a complete result made visible in one last step, or what a dead run left removed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tiledblend.bytes.objects import beside, open_store
from tiledblend.containers import ledger as ledgers
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ledger import Ledger
from tiledblend.containers.output import Output, warn_kept
from tiledblend.containers.soundness import require_agreement, require_complete
from tiledblend.errors import RefusedError, StorageError


def commit(output: Output, image: ImageMetadata) -> str:
    """Make a complete result visible, its root last; then exchange and clear up.

    Returns the result's digest. Raises StorageError if an object is missing or torn, VerificationError if two attempts
    at a tile differed, RefusedError if another driver took over. Can be repeated after a failure.
    """
    ledger = output.open_ledger()
    ledger.flush()
    require_agreement(output)
    require_complete(output)
    done, kept = output.place.commit(output, image)
    output.warnings += warn_kept(kept, output.store)
    try:
        ledger.remove()
    except StorageError as error:
        # The result is complete and visible: what is left beside it is no reason to make it again.
        output.warnings.append(f"the result is complete, but its ledger stays: {error}")
    output.ledger = None
    return done


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
        place = ledger.layout.place(final)
        building = place.building(document)
        settled = place.settle(building, ledger)
        if settled is not None:
            ledger.remove()
            return CleanReport(0, settled, finished=True)
        removed, kept = place.remove(building, ledger.layout)
        ledger.remove()
    return CleanReport(removed + len(list(ledger_store.list())), kept, finished=False)
