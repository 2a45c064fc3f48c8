"""Outlines drawn in a viewer as a mask: rasterised region by region, only the ones that touch it."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import identity_of
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Grid, Region, halved
from tiledblend.kernels.scanline import fill_polygons
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec
from tiledblend.sources.outlines.files import Outlines, read_outlines
from tiledblend.sources.outlines.summary import summary
from tiledblend.sources.outlines.validity import Invalid

TILE = 512


@dataclass(frozen=True, slots=True)
class PolygonSpec(SourceSpec):
    """A file of outlines, and how it becomes a mask.

    level: the coordinates (level-0 pixels of the slide) are halved this many times. classes: the classes that count, in
    this order, later ones over earlier ones; empty: every outline. shape: (y, x) of the grid that the mask lies on, in
    pixels of `level`; None: not placed yet, up to the last outline. labels: the pixels are the number of their class
    (1 for the first of `classes`) instead of inside and outside. invalid: "repair" or "refuse" outlines that are no
    valid polygon.
    """

    classes: tuple[str, ...] = ()
    shape: tuple[int, int] | None = None
    labels: bool = False
    invalid: Invalid = "repair"

    def __str__(self) -> str:
        extras = [f"level {self.level}"] if self.level else []
        extras += [f"classes {', '.join(self.classes)}"] if self.classes else []
        return self.path + (f" ({'; '.join(extras)})" if extras else "")


def open_polygons(spec: SourceSpec) -> PolygonSource:
    """The mask of a file of outlines (`read_outlines`). A plain `SourceSpec` means every outline of it.

    Raises BadInputError when the file cannot be used or has no outline of a class, UsageError for a selection that
    outlines do not have.
    """
    if not isinstance(spec, PolygonSpec):
        if spec.series is not None or spec.channels is not None or spec.plane:
            raise UsageError(f"{spec.path}: outlines have no series, channels or planes")
        spec = PolygonSpec(spec.path, level=spec.level)
    if not 0 <= spec.level <= 30:
        raise UsageError(f"{spec.path}: level {spec.level} must be from 0 to 30")
    return PolygonSource(spec)


class PolygonSource(RasterSource):
    """A mask of polygons: bool (True inside), or uint16 numbers of classes.

    As opened it reaches from (0, 0) to the last outline; `with_shape` puts it on the grid of a canvas or image. Its
    levels are halved until one tile holds all.
    """

    handles_selection = True

    def __init__(self, spec: PolygonSpec) -> None:
        self.spec: PolygonSpec = spec
        with _LOADING:  # two selections from one file, in two threads: read once
            self._outlines = _load(spec.path, _stamp(spec.path), spec.invalid)
        self._groups, missing = _groups(self._outlines, spec)
        self._index = _Index(self._outlines, self._groups)
        self.dtype = np.dtype(np.uint16 if spec.labels else np.bool_)
        self.channels = 1
        self.levels = _levels(spec.shape or self._extent())
        self.info = SourceInfo(
            self._outlines.format,
            "yx",
            problem="outlines can be a mask, not an image",
            notes=(*self._outlines.notes, *missing, *self._placement_notes()),
            metadata={"outlines": len(self._outlines), "classes": sorted(set(self._outlines.classes))},
        )

    @property
    def opening_bytes(self) -> int:
        """Most that reading the file takes in a process: 233 bytes a corner were measured (200,000 cells of 16)."""
        return 240 * len(self._outlines.edges)

    def with_shape(self, shape: tuple[int, int], *, labels: bool | None = None) -> PolygonSource:
        """The same outlines on a grid of `shape` (y, x). labels: as in `PolygonSpec`, None leaves it as it is.

        Raises BadInputError when there are outlines and all lie outside.
        """
        labels = self.spec.labels if labels is None else labels
        placed = PolygonSource(replace(self.spec, shape=shape, labels=labels))
        placed._require_overlap()
        return placed

    @property
    def count(self) -> int:
        """Number of the outlines that count: those of the chosen classes."""
        return len(np.unique(np.concatenate(self._groups))) if self._groups else 0

    def summary(self) -> dict[str, Any]:
        """Number, classes with number and area, and bounds of all outlines of the file (`outlines.summary`)."""
        return summary(self._outlines)

    def _bounds(self) -> NDArray[np.float64]:
        """(n, 4) of x0, y0, x1, y1 of the outlines that count, in pixels of the mask."""
        chosen = np.concatenate(self._groups) if self._groups else np.empty(0, np.int64)
        return self._outlines.bounds[chosen] / 2**self.spec.level

    def _extent(self) -> tuple[int, int]:
        bounds = self._bounds()
        if not len(bounds):
            return 1, 1
        return max(1, int(np.ceil(bounds[:, 3].max()))), max(1, int(np.ceil(bounds[:, 2].max())))

    def _require_overlap(self) -> None:
        bounds, (height, width) = self._bounds(), self.shape
        outside = (bounds[:, 0] >= width) | (bounds[:, 1] >= height) | (np.minimum(bounds[:, 2], bounds[:, 3]) <= 0)
        if len(bounds) and outside.all():
            (x0, y0), (x1, y1) = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
            raise BadInputError(
                f"{self.name}: every outline lies outside the image of {height} x {width} pixels (y x x): they reach "
                f"from y {y0:g}, x {x0:g} to y {y1:g}, x {x1:g}; level-0 pixels of the same slide are needed"
            )

    def _placement_notes(self) -> tuple[str, ...]:
        if self.spec.shape is None:
            return ()
        bounds, (height, width) = self._bounds(), self.spec.shape
        beyond = (bounds[:, :2] < -1).any(axis=1) | (bounds[:, 2] > width + 1) | (bounds[:, 3] > height + 1)
        count = int(beyond.sum())
        return (f"{count} outlines reach beyond the image of {height} x {width} pixels (y x x)",) if count else ()

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        halvings = self.spec.level + level
        found = self._index.touching(region, 1 << halvings)
        if not self.spec.labels:
            return self._filled(np.unique(np.concatenate(found)), region, halvings)[:, :, None]
        out = np.zeros((*region.shape, 1), np.uint16)
        for label, features in enumerate(found, 1):
            if len(features):
                out[self._filled(features, region, halvings)] = label
        return out

    def _uniform(self, region: Region, level: int) -> int | None:
        """0 where no outline is near."""
        found = self._index.touching(region, 1 << (self.spec.level + level))
        return None if any(len(features) for features in found) else 0

    def _filled(self, features: NDArray[np.int64], region: Region, halvings: int) -> NDArray[np.bool_]:
        starts = self._outlines.starts
        count = starts[features + 1] - starts[features]
        polygon = np.repeat(np.arange(len(features)), count)
        edge = np.arange(len(polygon)) - np.repeat(np.cumsum(count) - count - starts[features], count)
        edges = self._outlines.edges[edge]
        if halvings:
            edges = edges / (1 << halvings)  # a power of two: exact
        return fill_polygons(edges, polygon, region)

    def fingerprint(self) -> dict[str, Any]:
        """The file's, with classes, level and repair in its structure digest. Stale when the file has changed."""
        how = f"{self._outlines.digest} {self.spec.classes} {self.spec.level} {self.spec.labels} {self.spec.invalid}"
        return {**identity_of(self.spec.path), "structure": hashlib.sha256(how.encode()).hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, True)


class _Index:
    """Which outlines of each group touch a region: a tree of their bounding boxes."""

    def __init__(self, outlines: Outlines, groups: tuple[NDArray[np.int64], ...]) -> None:
        import shapely

        self._group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        self._feature = np.concatenate(groups) if groups else np.empty(0, np.int64)
        self._count = len(groups)
        self._tree = shapely.STRtree(shapely.box(*outlines.bounds[self._feature].T))
        # The tree is built by its first query; later ones come from several threads.
        self._tree.query(shapely.box(0, 0, 1, 1))

    def touching(self, region: Region, scale: int) -> list[NDArray[np.int64]]:
        """Indices of features, ascending, one array per group (at least one)."""
        import shapely

        box = shapely.box(region.x0 * scale, region.y0 * scale, region.x1 * scale, region.y1 * scale)
        hits = np.sort(self._tree.query(box))
        return [self._feature[hits[self._group[hits] == group]] for group in range(max(1, self._count))]


def _levels(shape: tuple[int, int]) -> tuple[Level, ...]:
    """Outlines have every resolution: each level by the pixel-centre rule on its own grid."""
    count = Grid.auto_levels(shape, TILE)
    return tuple(Level((y, x), (min(TILE, y), min(TILE, x))) for y, x in (halved(shape, k) for k in range(count)))


def _groups(outlines: Outlines, spec: PolygonSpec) -> tuple[tuple[NDArray[np.int64], ...], tuple[str, ...]]:
    """(features of each class, in the order in which later ones lie over earlier ones; notes on absent classes).

    One of several classes may be absent: a slide without it is no error. Raises BadInputError when all are.
    """
    present = sorted(set(outlines.classes))
    wanted = spec.classes or tuple(present)
    if len(wanted) > np.iinfo(np.uint16).max:
        raise BadInputError(f"{spec.path}: {len(wanted)} classes; name up to 65535")
    code = np.searchsorted(present, outlines.classes) if present else np.empty(0, np.int64)
    groups, absent = [], []
    for name in wanted:
        chosen = [i for i, known in enumerate(present) if known == name or (spec.classes and _is_derived(known, name))]
        if not chosen:
            absent.append(repr(name))
        groups.append(np.flatnonzero(np.isin(code, chosen)).astype(np.int64))
    if not absent:
        return tuple(groups), ()
    if len(absent) == len(wanted):
        raise BadInputError(f"{spec.path}: no outline of class {' or '.join(absent)}; it has {_listed(present)}")
    return tuple(groups), (f"no outline of class {' or '.join(absent)}; of those named it has the others",)


def _is_derived(known: str, name: str) -> bool:
    """QuPath's "Tumor: Positive" is a kind of "Tumor"."""
    return known.startswith(f"{name}: ")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "no outlines"


def _stamp(path: str) -> tuple[tuple[str, Any], ...]:
    return tuple(identity_of(path).items())


_LOADING = threading.Lock()


@lru_cache(maxsize=4)
def _load(path: str, stamp: tuple[tuple[str, Any], ...], invalid: Invalid) -> Outlines:
    """`stamp` is part of the key: a changed file is read again."""
    return read_outlines(path, invalid)
