"""Receipts of stored objects by tile, in memory that is taken whole at the start and does not grow with a run."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import NamedTuple

import numpy as np

from tiledblend.containers.container import Container
from tiledblend.errors import ResourceError
from tiledblend.geometry import Tile

DIGEST_BYTES = 32
OBJECT_BYTES = DIGEST_BYTES + 8
KEY_BYTES = 64
"""Of a tile's key, the digest of all that decides its bytes (`compose.keys`); to a container it is opaque."""


class Receipt(NamedTuple):
    """Proof of one stored object. size: bytes. digest: of its content (`digests`), 64 hexadecimal digits."""

    key: str
    size: int
    digest: str


Receipts = tuple[Receipt, ...]


class ReceiptTable(MutableMapping[Tile, Receipts]):
    """Receipts by tile, OBJECT_BYTES for every planned object: a terapixel's quarter of a million take 10 MB.

    A key is not kept: it follows from the object's place in the plan. sizes: int64 bytes of each planned object, -1
    where there is no receipt; digests: their digests, uint8 (objects, 32). tile_keys: of the tiles of the first
    stage, uint8 (tiles, KEY_BYTES) in row order, zeros where none is known. All are only to be read.
    Raises ResourceError when there is no memory for a plan's table.
    """

    def __init__(self, layout: Container) -> None:
        self.layout, count = layout, layout.object_count()
        try:
            # Written to, so that these pages are taken now: a run that begins can note what it makes.
            self.sizes = np.full(count, -1, np.int64)
            self.digests = np.full((count, DIGEST_BYTES), 0, np.uint8)
            rows, self._columns = layout.grid.tile_counts()
            self.tile_keys = np.full((rows * self._columns, KEY_BYTES), 0, np.uint8)
        except MemoryError as error:
            raise ResourceError(
                f"no memory for the receipts of {count} objects ({count * OBJECT_BYTES / 1e6:,.0f} MB); "
                "use a larger --shard"
            ) from error
        self._tiles = 0

    @property
    def stored_bytes(self) -> int:
        """Sum of the sizes of all objects with a receipt."""
        return int(self.sizes.sum(where=self.sizes >= 0))

    def note_key(self, tile: Tile, key: bytes) -> None:
        """Keep the key of a tile of the first stage. Raises ValueError for another length."""
        if len(key) != KEY_BYTES or tile.stage:
            raise ValueError(f"{tile}: a key of {len(key)} bytes")
        self.tile_keys[tile.row * self._columns + tile.column] = np.frombuffer(key, np.uint8)

    def key_of(self, tile: Tile) -> bytes:
        """The key of a tile of the first stage; b"" where none is known."""
        key = self.tile_keys[tile.row * self._columns + tile.column]
        return key.tobytes() if key.any() else b""

    @property
    def has_keys(self) -> bool:
        """True when every tile's key is known."""
        return bool(self.tile_keys.any(axis=1).all())

    def of_key(self, key: str) -> Receipt | None:
        """The receipt of one object, if its tile has receipts."""
        number = self.layout.object_number(key)
        return None if number is None or self.sizes[number] < 0 else self._receipt(key, number)

    def planned(self) -> Iterator[Receipt]:
        """Receipts in the order of `Container.planned_objects`, without those that are missing."""
        for number, key in enumerate(self.layout.planned_objects()):
            if self.sizes[number] >= 0:
                yield self._receipt(key, number)

    def __getitem__(self, tile: Tile) -> Receipts:
        if tile not in self:
            raise KeyError(tile)
        return tuple(map(self._receipt, self.layout.tile_objects(tile), self.layout.tile_numbers(tile)))

    def __setitem__(self, tile: Tile, receipts: Receipts) -> None:
        """Raises ValueError unless these are of the tile's planned objects, in their order."""
        self._require_planned(tile, receipts)
        numbers = self.layout.tile_numbers(tile)
        digests = b"".join(bytes.fromhex(receipt.digest) for receipt in receipts)
        values = np.frombuffer(digests, np.uint8).reshape(len(numbers), DIGEST_BYTES)
        self._tiles += tile not in self
        self.digests[numbers] = values
        self.sizes[numbers] = [receipt.size for receipt in receipts]

    def __delitem__(self, tile: Tile) -> None:
        if tile not in self:
            raise KeyError(tile)
        self.sizes[self.layout.tile_numbers(tile)] = -1
        self._tiles -= 1

    def __contains__(self, tile: object) -> bool:
        if not isinstance(tile, Tile) or not self.layout.grid.has_tile(tile):
            return False
        return bool(self.sizes[self.layout.tile_numbers(tile)[0]] >= 0)

    def __iter__(self) -> Iterator[Tile]:
        grid = self.layout.grid
        return (tile for stage in range(grid.stages) for tile in grid.tiles(stage) if tile in self)

    def __len__(self) -> int:
        return self._tiles

    def _receipt(self, key: str, number: int) -> Receipt:
        return Receipt(key, int(self.sizes[number]), self.digests[number].tobytes().hex())

    def _require_planned(self, tile: Tile, receipts: Sequence[Receipt]) -> None:
        if not self.layout.grid.has_tile(tile) or [r.key for r in receipts] != list(self.layout.tile_objects(tile)):
            raise ValueError(f"{tile}: receipts of other objects than its planned ones")
        if any(not 0 <= r.size < 2**63 or len(r.digest) != 2 * DIGEST_BYTES for r in receipts):
            raise ValueError(f"{tile}: receipts that state no size or digest")
