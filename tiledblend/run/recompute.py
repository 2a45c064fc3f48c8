"""Checking a result against its inputs: tiles are rendered again and compared with what is stored."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tiledblend.bytes.objects import Blob, DirectoryStore, Draft, ObjectStore, parts_of
from tiledblend.bytes.spool import SpooledDraft, contents
from tiledblend.compose.scene import decide
from tiledblend.containers.digests import digest
from tiledblend.containers.ometiff.layout import TiffLayout, part_key
from tiledblend.containers.ometiff.part import PartEnd
from tiledblend.containers.ometiff.place import SUFFIX
from tiledblend.containers.ometiff.seal import Origin, part_ranges
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.stored import read_region
from tiledblend.describe.composite import Composite
from tiledblend.errors import BadInputError
from tiledblend.geometry import Tile
from tiledblend.run.tasks import TileJob


@dataclass(frozen=True)
class RecomputeReport:
    """tiles: how many were rendered again. differing: keys of stored objects whose pixels are not those."""

    tiles: int
    differing: tuple[str, ...]


def recompute(
    store: ObjectStore, layout: ArrayLayout, composite: Composite, count: int | None = None, *, threads: int = 2
) -> RecomputeReport:
    """Render `count` tiles of all stages again (None: all; the sample is the same each time) and compare.

    Bytes are compared first and pixels where the bytes differ, so that another compressor's version is no error.
    Raises BadInputError if the composite is not of the result's size.
    """
    grid = layout.grid
    if (composite.shape, composite.channels, composite.dtype.name) != (grid.shape, layout.channels, layout.dtype):
        raise BadInputError(
            f"{store.uri} is {grid.shape}, {layout.channels} channels of {layout.dtype}, but its inputs now make "
            f"{composite.shape}, {composite.channels} channels of {composite.dtype.name}"
        )
    job = TileJob(decide(composite), layout, store, (), pass_on=False)
    tiles = [tile for stage in range(grid.stages) for tile in grid.tiles(stage)]
    if count is not None and count < len(tiles):
        tiles = sorted(random.Random(0).sample(tiles, count))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        found = pool.map(lambda tile: list(_differing(layout, job, tile)), tiles)
        differing = tuple(key for keys in found for key in keys)
    return RecomputeReport(len(tiles), differing)


def _differing(layout: ArrayLayout, job: TileJob, tile: Tile) -> Iterator[str]:
    store, made = job.store, _WithoutWriting(job.store)
    again = replace(job, store=made).run(tile)
    for receipt in again.receipts:
        data = store.get(receipt.key)
        if data is None or digest(data) != receipt.digest:
            level, region = layout.key_region(receipt.key)
            if data is None or not np.array_equal(
                read_region(layout, store, level, region), read_region(layout, made, level, region)
            ):
                yield receipt.key


def recompute_tiff(
    path: str, origin: Origin, composite: Composite, count: int | None = None, *, threads: int = 2
) -> RecomputeReport:
    """Make `count` parts of an OME-TIFF again (None: all) and compare their bytes: those of tiles that passed with the
    inputs' own, the others with what rendering gives.

    A sample is of parts of level 0: the others start from what all of these make.
    """
    layout = TiffLayout.from_dict(origin.layout)
    grid = layout.grid
    if (composite.shape, composite.channels, composite.dtype.name) != (grid.shape, layout.channels, layout.dtype):
        raise BadInputError(
            f"{path} is {grid.shape}, {layout.channels} channels of {layout.dtype}, but its inputs now make "
            f"{composite.shape}, {composite.channels} channels of {composite.dtype.name}"
        )
    made = _WithoutWriting(DirectoryStore(f"{path}{SUFFIX}"))
    job = TileJob(decide(composite), layout, made, ())
    ranges = dict(zip(layout.tiles(), part_ranges(Path(path))[1:], strict=False))
    stages = range(grid.stages) if count is None or count >= len(ranges) else range(1)
    chosen = [list(grid.tiles(stage)) for stage in stages]
    if count is not None and count < len(chosen[0]) + sum(map(len, chosen[1:])):
        chosen = [sorted(random.Random(0).sample(chosen[0], min(count, len(chosen[0]))))]

    def differs(tile: Tile) -> str | None:
        job.run(tile)
        offset, size = ranges[tile]
        with open(path, "rb") as file:
            file.seek(offset)
            stored = file.read(size)
        again = made.get(part_key(tile)) or b""
        made.forget(part_key(tile))
        return None if again[: -PartEnd.nbytes(layout, tile)] == stored else part_key(tile)

    with ThreadPoolExecutor(max_workers=threads) as pool:
        found = [key for tiles in chosen for key in pool.map(differs, tiles)]
    return RecomputeReport(len(found), tuple(key for key in found if key is not None))


class _WithoutWriting:
    """A store that reads from the result and keeps what is put in memory."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self._made = store, dict[str, bytes]()

    @property
    def uri(self) -> str:
        return self._store.uri

    def put(self, key: str, data: Blob) -> None:
        self._made[key] = b"".join(parts_of(data))

    def put_many(self, items: Iterable[tuple[str, Blob]]) -> None:
        for key, data in items:
            self.put(key, data)

    def draft(self, key: str) -> SpooledDraft:
        return SpooledDraft(key)

    def put_drafts(self, drafts: Iterable[Draft]) -> None:
        self.put_many(contents(drafts))

    def put_new(self, key: str, data: Blob) -> bool:
        self.put(key, data)
        return True

    def get(self, key: str) -> bytes | None:
        return self._made.get(key) or self._store.get(key)

    def forget(self, key: str) -> None:
        self._made.pop(key, None)

    def size(self, key: str) -> int | None:
        return self._store.size(key)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        raise AssertionError(f"{key}: a check deletes nothing")

    def local_path(self, key: str = "") -> Path | None:
        return None
