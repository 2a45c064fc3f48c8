"""Are the parts of a run what their receipts say? Asked before a commit, and when a run is taken up again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.objects import ObjectStore
from tiledblend.containers.container import Container
from tiledblend.containers.digests import ALGORITHM, digest
from tiledblend.containers.receipts import Receipt, ReceiptTable
from tiledblend.errors import StorageError, VerificationError
from tiledblend.geometry import Tile

if TYPE_CHECKING:
    from tiledblend.containers.output import Output


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


def require_complete(output: Output) -> None:
    """Raise StorageError unless every planned object has a receipt and is stored with its length."""
    wrong = _unlike_stored(output)
    if len(wrong):
        first = next(islice(output.layout.planned_objects(), int(wrong[0]), None))
        raise StorageError(
            f"{output.uri}: {len(wrong)} of {output.layout.object_count()} objects are missing or torn "
            f"(first: {first}); run again with --resume"
        )


def discard_unsound(output: Output, *, by_hash: bool) -> None:
    """Void receipts whose objects are gone or not what was stored, or that contradict each other.

    by_hash: files are read and hashed. Objects of a bucket, whole by its nature and costly to fetch, and those of other
    parts are compared by their lengths.
    """
    ledger, layout = output.open_ledger(), output.layout
    unlike = set(_unlike_stored(output).tolist())
    unsound = {tile for tile in ledger.receipts if not unlike.isdisjoint(layout.tile_numbers(tile))}
    if by_hash and output.store.local_path() is not None:
        sound = sound_tiles(output.stored, layout, ledger.receipts, ledger.receipts.of_key)
        unsound |= {tile for tile in ledger.receipts if tile not in sound}
    # Which attempt's bytes are stored is unknown: make those tiles again.
    ledger.discard(unsound | {conflict.tile for conflict in ledger.conflicts})


def sound_tiles(
    store: ObjectStore,
    layout: Container,
    tiles: Iterable[Tile],
    expected: Callable[[str], Receipt | None],
    algorithm: str = ALGORITHM,
) -> ReceiptTable:
    """Receipts of those tiles whose every object is right. expected: the receipt of a key, where one is known.
    algorithm: of the digests that are expected."""

    def check(tile: Tile) -> tuple[Tile, list[Receipt | None]]:
        return tile, [
            checked_receipt(store, layout, key, expected(key), algorithm) for key in layout.tile_objects(tile)
        ]

    sound, pending = ReceiptTable(layout), iter(tiles)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        while batch := list(islice(pending, 1024)):
            for tile, receipts in pool.map(check, batch):
                if None not in receipts:
                    sound[tile] = tuple(receipt for receipt in receipts if receipt)
    return sound


def checked_receipt(
    store: ObjectStore, layout: Container, key: str, expected: Receipt | None, algorithm: str = ALGORITHM
) -> Receipt | None:
    """The receipt of a pixel object that is there and right; None if it must be made again.

    expected: the manifest's receipt; without one the object has to decode.
    """
    data = store.get(key)
    if data is None:
        return None
    receipt = Receipt(key, len(data), digest(data))
    if expected is None:
        return receipt if layout.problem(key, data) is None else None
    same = len(data) == expected.size and digest(data, algorithm) == expected.digest
    return receipt if same else None


def _unlike_stored(output: Output) -> NDArray[np.intp]:
    """Numbers of the planned objects that have no receipt or are not stored with its length."""
    sizes = output.open_ledger().receipts.sizes
    stored = np.full_like(sizes, -1)
    for key, size in output.stored.list():
        if (number := output.layout.object_number(key)) is not None:
            stored[number] = size
    return np.flatnonzero((sizes < 0) | (stored != sizes))
