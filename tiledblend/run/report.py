"""What a run tells: how far it is, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tiledblend.compose.pyramid import TileStats
from tiledblend.display import ShownInNotebooks
from tiledblend.sources.base import Missed, Unstored

if TYPE_CHECKING:
    from tiledblend.run.tasks import TileResult


@dataclass(frozen=True)
class ProgressEvent:
    """How far a run is, or one part of several: then its own tiles and pixels are counted. pixels: of level 0, those of
    a resumed run's earlier drivers included. seconds: of this driver."""

    done_tiles: int
    tiles: int
    done_pixels: int
    pixels: int
    seconds: float


@dataclass(frozen=True, repr=False)
class RunReport(ShownInNotebooks):
    """What a run did. chunks: level-0 chunks by class. background_pixels: where no layer had weight. resumed_tiles:
    found done. reused_tiles: of `tiles`, those taken from an older result, with `reused_bytes`.

    bytes_written: of the whole result; chunks, background_pixels: of the tiles that this driver made. complete: False
    after one part of several. unstored: chunks of inputs that are not stored and were read as fill value, in
    `warnings` too.
    """

    uri: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    levels: int
    tiles: int
    resumed_tiles: int
    objects: int
    bytes_written: int
    pixels: int
    seconds: float
    chunks: dict[str, int]
    background_pixels: int
    complete: bool = True
    warnings: tuple[str, ...] = ()
    unstored: tuple[Unstored, ...] = ()
    reused_tiles: int = 0
    reused_bytes: int = 0

    def __repr__(self) -> str:
        """One line: what, how large, how long."""
        done = "complete" if self.complete else "not complete yet"
        more = f", {len(self.warnings)} notes" if self.warnings else ""
        size = f"{self.shape[0]} x {self.shape[1]} px (y x x), {self.channels} of {self.dtype}"
        return f"<RunReport {self.uri}: {size}, {self.tiles} tiles in {self.seconds:.1f} s, {done}{more}>"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        unstored = [found.as_dict() for found in self.unstored]
        return {**asdict(self), "shape": list(self.shape), "warnings": list(self.warnings), "unstored": unstored}


Progress = Callable[[ProgressEvent], None]


@dataclass
class Tally:
    """What the driver adds up while results come in."""

    started: float = field(default_factory=time.monotonic)
    done: int = 0
    pixels: int = 0
    stats: TileStats = field(default_factory=TileStats)
    missed: set[tuple[int, Missed]] = field(default_factory=set)
    reused: int = 0
    reused_bytes: int = 0

    def add(self, result: TileResult, pixels: int) -> None:
        self.done += 1
        self.pixels += pixels
        self.missed.update(result.missed)
        if result.reused:
            self.reused += 1
            self.reused_bytes += sum(receipt.size for receipt in result.receipts)
        for name in ("copied", "blended", "empty", "background"):
            setattr(self.stats, name, getattr(self.stats, name) + getattr(result.stats, name))
