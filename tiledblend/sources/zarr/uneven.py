"""Rectilinear chunk grids: chunks, or shards of equal chunks, of unlike sizes along an axis (zarr 3.2 and later)."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.axes import PlaneAxes
from tiledblend.sources.zarr.grid import ENTRY_BYTES, Coords, ObjectGrid
from tiledblend.sources.zarr.metadata import ArrayFacts, ZarrNode


class UnevenGrid(ObjectGrid):
    """As `ObjectGrid`; an object is one part of it: chunks that a shard lacks are not counted."""

    def __init__(self, node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes) -> None:
        assert facts.edges is not None
        super().__init__(node, facts, axes)
        self._edges = tuple(np.array([0, *along]) for along in facts.edges)
        self._outer = tuple(int(np.diff(along).max()) for along in self._edges)
        self._in_shard = math.prod(self._outer) // math.prod(facts.chunk)
        self._fixed = {axis: self._number(axis, position) for axis, position in axes.fixed}
        self._places = dict(self._fixed)
        self._whole = tuple(self._number(axis, size - 1) + 1 for axis, size in enumerate(facts.shape))
        self.counts = tuple(1 if axis in self._fixed else count for axis, count in enumerate(self._whole))

    @property
    def chunks(self) -> int:
        """Objects that hold the plane: what is known of them."""
        return self.objects

    @property
    def most_bytes(self) -> int:
        """As `ObjectGrid.most_bytes`; a shard may keep dead bytes."""
        raw = math.prod(self._outer) * np.dtype(self._facts.dtype).itemsize
        return (2 + 6 * (self._in_shard > 1)) * raw + (ENTRY_BYTES + 64) * self._in_shard + (1 << 16)

    def places(self, coords: Coords, index: bytes | None) -> NDArray[np.bool_]:
        """As `ObjectGrid.places`."""
        return np.full(self.inner, index is None)

    def needed(self, coords: Coords, index: bytes | None, region: Region) -> Region | None:
        """As `ObjectGrid.needed`."""
        (y0, y1), (x0, x1) = (self._edges[axis][coords[axis] :][:2] for axis in (self._axes.y, self._axes.x))
        found = Region(int(y0), int(x0), int(y1), int(x1))
        if (found & region).is_empty:
            return None
        return found & Region.of_shape(self._axes.yx(self._facts.shape))

    def chunks_of(self, region: Region) -> dict[str, list[int]]:
        """As `ObjectGrid.chunks_of`; none of shards, of which parts are read."""
        if self._in_shard > 1:
            return {}
        spans = {self._axes.y: (region.y0, region.y1), self._axes.x: (region.x0, region.x1)}
        along: list[range] = []
        for axis, size in enumerate(self._facts.shape):
            first, end = spans.get(axis, (0, size))
            place = self._places.get(axis)
            numbers = range(self._number(axis, first), self._number(axis, end - 1) + 1)
            along.append(numbers if place is None else range(place, place + 1))
        return {self.key(coords): [0] for coords in product(*along)}

    def _chunks_along(self, axis: int, count: int) -> NDArray[np.int64]:
        return np.ones(count, np.int64)

    def _number(self, axis: int, position: int) -> int:
        return int(np.searchsorted(self._edges[axis], position, side="right")) - 1


def require_support(called: str) -> dict[str, Any]:
    """The setting of zarr that opens these grids. Raises BadInputError where the installed zarr has none."""
    import zarr

    if zarr.config.get("array.rectilinear_chunks", None) is None:
        raise BadInputError(
            f"{called}: its chunk grid is rectilinear, which zarr {zarr.__version__} does not read; install zarr 3.2 "
            "or later (Python 3.12), or store it again with equal chunks"
        )
    return {"array.rectilinear_chunks": True}
