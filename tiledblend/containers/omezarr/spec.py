"""How a result is stored: chunk and shard sides, levels, codec, OME-Zarr version. Checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiledblend.errors import UsageError
from tiledblend.geometry import Grid

CODEC_LEVELS = {"zstd": (1, 22), "gzip": (1, 9), "blosc-lz4": (1, 9), "blosc-zstd": (1, 9), "none": (0, 0)}
_DEFAULT_LEVELS = {"zstd": 1, "gzip": 1, "blosc-lz4": 5, "blosc-zstd": 1, "none": 0}
_DEFAULT_CODECS = {"0.5": "zstd:1", "0.6": "zstd:1", "0.4": "blosc-lz4:5"}


@dataclass(frozen=True, slots=True)
class Codec:
    """A lossless compressor and its level. name: a key of `CODEC_LEVELS`.

    >>> Codec.parse("blosc-lz4")
    Codec(name='blosc-lz4', level=5)
    >>> str(Codec("zstd", 3))
    'zstd:3'
    """

    name: str
    level: int

    def __post_init__(self) -> None:
        if self.name not in CODEC_LEVELS:
            raise UsageError(f"codec {self.name!r} is not known; use one of {', '.join(CODEC_LEVELS)}, such as zstd:1")
        low, high = CODEC_LEVELS[self.name]
        if not low <= self.level <= high:
            raise UsageError(f"codec level {self.name}:{self.level} must be from {low} to {high}")

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Codec of "name" or "name:level". Raises UsageError."""
        name, colon, level = text.strip().lower().partition(":")
        if not colon:
            return cls(name, _DEFAULT_LEVELS.get(name, 0))
        if not (level.isascii() and level.isdigit()) or name == "none":
            raise UsageError(f"codec {text!r} is not of the form name:level; use zstd:1")
        return cls(name, int(level))

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name}:{self.level}"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """How a result is stored.

    chunk: side in pixels of what is compressed and read at once. shard: side of one stored object of level 0, a
    power of two times chunk (OME-Zarr 0.4 has no shards: there it is only one task's work). levels: number of
    pyramid levels, or "auto": down to one that fits into a chunk. codec: "zstd:1" (1..22), "gzip:1" (1..9),
    "blosc-lz4:5", "blosc-zstd:1" (1..9) or "none"; None takes zstd:1, and blosc-lz4:5 for OME-Zarr 0.4.
    layout: order of the bytes inside an RGB chunk, "planar" (c, y, x) or "interleaved" (y, x, c; 0.5 only);
    the array is c, y, x either way. Raises UsageError.

    >>> OutputSpec().grid((100_000, 80_000)).levels
    9
    """

    chunk: int = 512
    shard: int = 4096
    levels: int | Literal["auto"] = "auto"
    codec: str | None = None
    ome_zarr: str = "0.5"
    layout: str = "planar"

    def __post_init__(self) -> None:
        for name in ("chunk", "shard"):
            if type(getattr(self, name)) is not int:
                raise UsageError(f"{name} {getattr(self, name)!r} is not a whole number of pixels")
        if self.ome_zarr not in _DEFAULT_CODECS:
            raise UsageError(f"OME-Zarr version {self.ome_zarr!r} cannot be written; use 0.6, 0.5 or 0.4")
        if self.layout not in ("planar", "interleaved"):
            raise UsageError(f"layout {self.layout!r} is not known; use planar or interleaved")
        if self.layout == "interleaved" and self.ome_zarr == "0.4":
            raise UsageError("layout interleaved does not exist in OME-Zarr 0.4; use --ome-zarr 0.5 or layout planar")
        if self.levels != "auto" and type(self.levels) is not int:
            raise UsageError(f"levels {self.levels!r} must be auto or a number from 1 to 40")
        if self.codec is not None and not isinstance(self.codec, str):
            raise UsageError(f"codec {self.codec!r} is not a text such as zstd:1")
        Codec.parse(self.codec or _DEFAULT_CODECS[self.ome_zarr])
        Grid((1, 1), self.chunk, self.shard, 1 if self.levels == "auto" else self.levels)

    @property
    def compressor(self) -> Codec:
        """The codec that is used: the one asked for, or the version's default."""
        return Codec.parse(self.codec or _DEFAULT_CODECS[self.ome_zarr])

    def grid(self, shape: tuple[int, int]) -> Grid:
        """The grid of a canvas of `shape` (y, x)."""
        levels = Grid.auto_levels(shape, self.chunk) if self.levels == "auto" else self.levels
        return Grid(shape, self.chunk, self.shard, levels)
