"""An older result whose parts a run may take instead of making them: those of equal keys, checked and copied whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.objects import ObjectStore, open_store
from tiledblend.bytes.taking import Wanted, take_objects
from tiledblend.containers.container import Container
from tiledblend.containers.digests import ALGORITHM, hasher
from tiledblend.containers.ledger import differences
from tiledblend.containers.omezarr.result import StoredResult, read_result
from tiledblend.containers.receipts import KEY_BYTES, Receipts, ReceiptTable
from tiledblend.errors import BadInputError
from tiledblend.geometry import Grid, Tile


@dataclass(frozen=True)
class Older:
    """A finished result, by its manifest. Picklable; holds no bytes of it, and works as well when they go away.

    layout: how it is stored. receipts: of its objects, and its tiles' keys. attributes: its root's own, without OME's.
    """

    store: ObjectStore
    layout: Container
    receipts: ReceiptTable
    attributes: dict[str, Any]

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.store.uri

    @property
    def job(self) -> Any:
        """The fingerprint of what it was made from."""
        return self.attributes.get("job")

    def why_nothing(self, layout: Container) -> str | None:
        """Why no part of it can be one of a result of this layout; None if some may be."""
        if not self.receipts.has_keys:
            return f"{self.uri}: its manifest has no keys of tiles (it is of an older version), so nothing is reused"
        if different := differences(self.layout.as_dict(), layout.as_dict()):
            return f"{self.uri}: it is stored in another way ({different[0]}), so nothing is reused"
        return None

    def key_of(self, tile: Tile) -> bytes:
        """Of a tile of the first stage, b"" where none is known."""
        return self.receipts.key_of(tile)

    def stands_on_same(self, tile: Tile, keys: NDArray[np.uint8]) -> bool:
        """True when a tile of a later stage stands on tiles whose keys are what they were. keys: as of
        `ReceiptTable.tile_keys`, of a result of the same layout."""
        numbers = tiles_below(self.layout.grid, tile)
        was, now = self.receipts.tile_keys[numbers], keys[numbers]
        return bool(now.any(axis=1).all() and np.array_equal(was, now))

    def take(self, tile: Tile, target: ObjectStore) -> Receipts | None:
        """Copy a tile's parts into `target`, each whole; their receipts. None: they are not there any more, or not what
        the manifest says, and the tile is to be made.

        Bytes are checked where they arrive. Within one bucket the store copies by itself, and lengths are compared.
        """
        expected = [self.receipts.of_key(key) for key in self.layout.tile_objects(tile)]
        receipts = tuple(receipt for receipt in expected if receipt is not None)
        wanted = [Wanted(receipt.key, receipt.size, receipt.digest) for receipt in receipts]
        if len(receipts) < len(expected) or not take_objects(self.store, target, wanted, hasher):
            return None
        return receipts


def tiles_below(grid: Grid, tile: Tile) -> NDArray[np.int64]:
    """Numbers, in row order, of the tiles of the first stage that lie below a tile of any stage."""
    rows, columns = grid.tile_counts()
    side = 1 << (tile.stage * grid.stage)
    y = np.arange(tile.row * side, min((tile.row + 1) * side, rows))
    x = np.arange(tile.column * side, min((tile.column + 1) * side, columns))
    found: NDArray[np.int64] = (y[:, None] * columns + x[None]).reshape(-1)
    return found


def open_older(uri: str | os.PathLike[str]) -> Older:
    """The finished result at `uri`. Raises BadInputError if there is none, or its manifest cannot be relied on."""
    store = open_store(uri)
    result = read_result(store)
    if result is None:
        raise BadInputError(f"{store.uri}: no result of tiledblend here whose parts could be reused")
    if result.manifest is None:
        told = f"; {result.problems[0]}" if result.problems else ""
        raise BadInputError(f"{store.uri}: has no manifest by which its parts could be checked{told}")
    return Older(store, result.layout, _receipts(result), dict(result.attributes["tiledblend"]))


def _receipts(result: StoredResult) -> ReceiptTable:
    assert result.manifest is not None
    table, known = ReceiptTable(result.layout), result.manifest.receipts
    if result.manifest.algorithm != ALGORITHM:
        return table  # what its parts are is told in another way than a new result's manifest has it
    for number, key in enumerate(result.layout.planned_objects()):
        table.sizes[number] = known[key].size
        table.digests[number] = np.frombuffer(bytes.fromhex(known[key].digest), np.uint8)
    if len(result.manifest.keys) == table.tile_keys.size == len(table.tile_keys) * KEY_BYTES:
        table.tile_keys.flat[:] = np.frombuffer(result.manifest.keys, np.uint8)
    return table
