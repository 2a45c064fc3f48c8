"""What a run asks of a container: which parts a tile makes, how pixels become a part, where a result's life is led.

A run knows tiles, receipts and a commit, and no format. Implemented by `omezarr.layout` and `ometiff.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from tiledblend.bytes.objects import ObjectStore
from tiledblend.geometry import Grid, Region, Tile

if TYPE_CHECKING:
    from tiledblend.containers.place import Place
    from tiledblend.containers.receipts import Receipt

Pixels = NDArray[Any]


class PartWriter(Protocol):
    """One tile's parts, filled row by row and put whole by `finish`. Used by one thread."""

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Pixels) -> None:
        """All chunks of one row of chunks: (h, w, channels), exactly the tile's pixels of that level and row."""

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Pixels) -> None:
        """One chunk: (h, w, channels), exactly the tile's pixels of that level and place."""

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        """One chunk as it is stored. group: the channel, or 0 where a chunk holds all channels."""

    def finish(self) -> tuple[Receipt, ...]:
        """Put every part; their receipts, in the order of `Container.tile_objects`."""

    def close(self) -> None:
        """Leave nothing of what was not put."""


class Container(Protocol):
    """How one result is stored. Picklable; plain arithmetic, but for `writer` and `read`.

    grid: how the canvas is cut. channels, dtype: of the canvas. is_rgb: a chunk holds all channels.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def is_rgb(self) -> bool: ...

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `known.container_of` understands."""

    def planned_objects(self) -> Iterator[str]:
        """Keys of all objects of pixels: complete means that every one of these is there."""

    def object_count(self) -> int:
        """Number of `planned_objects`, without making them."""

    def tile_objects(self, tile: Tile) -> tuple[str, ...]:
        """Keys of the objects that the task of a tile writes, and nobody else."""

    def tile_numbers(self, tile: Tile) -> list[int]:
        """Where `tile_objects` stand in `planned_objects`, from 0."""

    def object_number(self, key: str) -> int | None:
        """Where a key stands in `planned_objects`, from 0; None for a key that is not one of these."""

    def object_reads(self) -> int:
        """About how many objects a run reads back: for its later stages, for its commit."""

    @property
    def documents(self) -> int:
        """Objects besides the planned ones."""

    @property
    def is_drafted(self) -> bool:
        """True where a part that is written grows in a file, not in memory (on file systems)."""

    def writer(self, store: ObjectStore, tile: Tile) -> PartWriter:
        """For one tile, whose parts go into `store`."""

    def read(self, store: ObjectStore, level: int, region: Region) -> Pixels:
        """Pixels (h, w, channels) of a level that a stage has made, for the stage after it."""

    def problem(self, key: str, data: bytes) -> str | None:
        """What is wrong with an object's content by itself, decoded; None if nothing."""

    def place(self, final: ObjectStore) -> Place:
        """Where a result of this container lies, or will lie."""
