"""Regions, grids and affine maps: where pixels are, in pixels of a stated level. Pure arithmetic, no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tiledblend.errors import UsageError

LARGEST = 1e12
"""Of any length, shift or scale that is described: what is reckoned with such numbers stays finite."""


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b.

    >>> ceil_div(10, 4), ceil_div(8, 4)
    (3, 2)
    """
    return -(-a // b)


class Region(NamedTuple):
    """Half-open rectangle of pixels [y0, y1) x [x0, x1) of a stated level; may be empty.

    A named tuple: a tile makes thousands, and these are made in less than half of a frozen dataclass's time.

    >>> Region(0, 0, 4, 6) & Region(2, 3, 9, 9)
    Region(y0=2, x0=3, y1=4, x1=6)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Region:
        """The whole of an image of `shape` (y, x)."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), never negative."""
        y0, x0, y1, x1 = self
        return (y1 - y0 if y1 > y0 else 0), (x1 - x0 if x1 > x0 else 0)

    @property
    def size(self) -> int:
        """Number of pixels."""
        height, width = self.shape
        return height * width

    @property
    def is_empty(self) -> bool:
        """True when no pixel lies inside."""
        y0, x0, y1, x1 = self
        return y1 <= y0 or x1 <= x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """(y, x) slices for indexing an array whose pixel (0, 0) is this frame's origin."""
        y0, x0, y1, x1 = self
        return slice(y0, y1), slice(x0, x1)

    def __and__(self, other: Region) -> Region:
        """Intersection (possibly empty)."""
        y0, x0, y1, x1 = self
        top, left, bottom, right = other
        return Region(
            y0 if y0 > top else top,
            x0 if x0 > left else left,
            y1 if y1 < bottom else bottom,
            x1 if x1 < right else right,
        )

    def shift(self, dy: int, dx: int) -> Region:
        """The same rectangle moved by (dy, dx)."""
        y0, x0, y1, x1 = self
        return Region(y0 + dy, x0 + dx, y1 + dy, x1 + dx)

    def grow(self, y: int, x: int | None = None) -> Region:
        """The rectangle extended by `y` pixels on every side, or by `x` at its left and right."""
        x = y if x is None else x
        return Region(self.y0 - y, self.x0 - x, self.y1 + y, self.x1 + x)

    def contains(self, other: Region) -> bool:
        """True when every pixel of `other` lies inside."""
        return other.is_empty or (self & other) == other

    def __str__(self) -> str:
        return f"[{self.y0}:{self.y1}, {self.x0}:{self.x1}]"


def halved(shape: tuple[int, int], times: int = 1) -> tuple[int, int]:
    """Shape of the level `times` below: halved, rounded up, each time.

    >>> halved((5, 4)), halved((5, 1), 2)
    ((3, 2), (2, 1))
    """
    f = 1 << times
    return ceil_div(shape[0], f), ceil_div(shape[1], f)


def is_square(pixel_size_um: tuple[float, float]) -> bool:
    """True when a pixel's (y, x) sides agree to within 1 %.

    >>> is_square((0.25, 0.2501)), is_square((1.0, 0.5))
    (True, False)
    """
    y, x = pixel_size_um
    return abs(y - x) <= 0.01 * max(y, x)


@dataclass(frozen=True, slots=True)
class Affine:
    """x' = a x + b y + c, y' = d x + e y + f, of points in pixels: pixel (y, x) covers [x, x + 1) by [y, y + 1).

    >>> Affine.scaling(2, 3).after(Affine(1, 0, 5, 0, 1, 7)).of(0, 0)
    (10.0, 21.0)
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    @classmethod
    def scaling(cls, x: float, y: float) -> Affine:
        """Along the axes, (0, 0) stays."""
        return cls(float(x), 0.0, 0.0, 0.0, float(y), 0.0)

    @classmethod
    def shifting(cls, x: float, y: float) -> Affine:
        """By (x, y)."""
        return cls(1.0, 0.0, float(x), 0.0, 1.0, float(y))

    @classmethod
    def of_matrix(cls, rows: Any, *, centre: float = 0.5, inverse: bool = False) -> Affine:
        """From rows [[a, b, c], [d, e, f]] (and [0, 0, 1]). centre: where the matrix has the centre of pixel (0, 0),
        0.5 or 0. inverse: the map back.

        Raises UsageError for anything that is no invertible affine matrix.

        >>> Affine.of_matrix([[2, 0, 0], [0, 2, 0]], centre=0).of(0.5, 0.5)
        (0.5, 0.5)
        """
        try:
            values = [[float(value) for value in row] for row in rows]
        except (TypeError, ValueError):
            values = []
        if len(values) not in (2, 3) or any(len(row) != 3 for row in values) or values[2:] not in ([], [[0, 0, 1]]):
            raise UsageError(f"affine {rows!r} must be [[a, b, c], [d, e, f]], or with a third row [0, 0, 1]")
        if not all(abs(value) <= LARGEST for row in values for value in row):
            raise UsageError(f"affine {rows!r} must be of numbers up to {LARGEST:g}")
        if centre not in (0, 0.5):
            raise UsageError(f"affine: the centre of a pixel is at 0.5 or 0, not {centre}")
        given = cls(*values[0], *values[1])
        if abs(given.determinant) < 1e-12 * max(1e-300, given.stretch[1] ** 2):
            raise UsageError(f"affine {rows!r} flattens the layer to a line: it has no inverse")
        if centre == 0:
            given = cls.shifting(0.5, 0.5).after(given).after(cls.shifting(-0.5, -0.5))
        return given.inverse() if inverse else given

    @property
    def rows(self) -> list[list[float]]:
        """[[a, b, c], [d, e, f]]."""
        return [[self.a, self.b, self.c], [self.d, self.e, self.f]]

    @property
    def whole_shift(self) -> tuple[int, int] | None:
        """(y, x) when the map only shifts by whole pixels."""
        shifts = (self.a, self.b, self.d, self.e) == (1, 0, 0, 1) and self.c.is_integer() and self.f.is_integer()
        return (int(self.f), int(self.c)) if shifts else None

    def of(self, x: float, y: float) -> tuple[float, float]:
        """(x', y') of a point."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def after(self, first: Affine) -> Affine:
        """The map that does `first`, then this one."""
        c, f = self.of(first.c, first.f)
        return Affine(
            self.a * first.a + self.b * first.d,
            self.a * first.b + self.b * first.e,
            c,
            self.d * first.a + self.e * first.d,
            self.d * first.b + self.e * first.e,
            f,
        )

    @property
    def determinant(self) -> float:
        """Area of the image of one pixel; negative when it is mirrored."""
        return self.a * self.e - self.b * self.d

    def inverse(self) -> Affine:
        """The map back. Raises ZeroDivisionError when there is none."""
        det = self.determinant
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    @property
    def stretch(self) -> tuple[float, float]:
        """(smallest, largest) singular value: how much lengths shrink or grow, by direction.

        >>> Affine.scaling(2, 3).stretch
        (2.0, 3.0)
        """
        along = math.hypot(self.a + self.e, self.d - self.b)
        across = math.hypot(self.a - self.e, self.d + self.b)
        return abs(along - across) / 2, (along + across) / 2

    @property
    def keeps_axes(self) -> bool:
        """True when rows stay rows and columns columns, in order: no rotation, shear or mirroring."""
        return self.b == 0 and self.d == 0 and self.a > 0 and self.e > 0


@dataclass(frozen=True, slots=True)
class Grid:
    """How a canvas is cut: chunks inside shards, on every level of its pyramid.

    shape: level-0 (y, x). chunk: side of what zarr compresses. shard: side of one stored object
    of level 0. levels: number of pyramid levels, at least 1.

    A level-k shard is `shard / 2**(k % stage)` pixels, where `stage` = log2(shard / chunk) + 1 levels are
    made by one task: the task of a level-0 shard makes its own part of the `stage` levels 0..stage-1,
    and nobody else writes there. Levels stage..2*stage-1 are made the same way from level stage-1, and so on.
    """

    shape: tuple[int, int]
    chunk: int
    shard: int
    levels: int

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise UsageError(f"canvas of {self.shape[0]} x {self.shape[1]} pixels; both sides must be at least 1")
        if self.chunk < 16 or self.chunk % 2:
            raise UsageError(f"chunk {self.chunk} must be even and at least 16; use --chunk 512")
        ratio = self.shard // self.chunk
        if self.shard < self.chunk or self.shard % self.chunk or ratio & (ratio - 1):
            better = self.chunk * (1 << max(0, min(ratio, 64).bit_length() - 1))
            raise UsageError(
                f"shard {self.shard} is not a power of two times chunk {self.chunk}; use --shard "
                f"{max(self.chunk, better)}"
            )
        if not 1 <= self.levels <= 40:
            raise UsageError(f"levels {self.levels} must be from 1 to 40")

    @staticmethod
    def auto_levels(shape: tuple[int, int], chunk: int) -> int:
        """Levels until the smallest one fits into one chunk."""
        levels = 1
        while max(halved(shape, levels - 1)) > chunk:
            levels += 1
        return levels

    @property
    def stage(self) -> int:
        """Levels that one task makes in one pass: log2(shard / chunk) + 1."""
        return (self.shard // self.chunk).bit_length()

    @property
    def stages(self) -> int:
        """Number of passes that make the whole pyramid."""
        return ceil_div(self.levels, self.stage)

    def level_shape(self, level: int) -> tuple[int, int]:
        """(y, x) of a level: ceil(shape / 2**level)."""
        return halved(self.shape, level)

    def level_shard(self, level: int) -> int:
        """Side in pixels of one stored object of a level."""
        return self.shard >> (level % self.stage)

    def stage_levels(self, stage: int) -> range:
        """The levels that a task of this stage writes."""
        first = stage * self.stage
        return range(first, min(first + self.stage, self.levels))

    def tile_counts(self, stage: int = 0) -> tuple[int, int]:
        """(rows, columns) of tiles of a stage."""
        height, width = self.level_shape(stage * self.stage)
        return ceil_div(height, self.shard), ceil_div(width, self.shard)

    def tiles(self, stage: int = 0) -> Iterator[Tile]:
        """All tiles of a stage, in row order."""
        rows, columns = self.tile_counts(stage)
        for row in range(rows):
            for column in range(columns):
                yield Tile(stage, row, column)

    def has_tile(self, tile: Tile) -> bool:
        """True for a tile of this grid."""
        if not 0 <= tile.stage < self.stages:
            return False
        rows, columns = self.tile_counts(tile.stage)
        return 0 <= tile.row < rows and 0 <= tile.column < columns

    def tile_region(self, tile: Tile, level: int | None = None) -> Region:
        """The pixels of a tile on one of its levels (default: its first), clipped to the level."""
        first = tile.stage * self.stage
        level = first if level is None else level
        side = self.level_shard(level)
        height, width = self.level_shape(level)
        return Region(
            tile.row * side,
            tile.column * side,
            min((tile.row + 1) * side, height),
            min((tile.column + 1) * side, width),
        )


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """One task's work: shard (row, column) of the first level of `stage`, and its own part of the stage's other
    levels."""

    stage: int
    row: int
    column: int

    def __str__(self) -> str:
        return f"tile {self.stage}/{self.row}/{self.column}"
