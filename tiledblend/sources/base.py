"""What every source of pixels offers, whatever its format."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiledblend.display import ShownInNotebooks
from tiledblend.errors import BadInputError, TiledblendError
from tiledblend.geometry import Region
from tiledblend.guard.crash import decoding

if TYPE_CHECKING:
    from tiledblend.sources.zarr.encoded import EncodedImage

SUPPORTED_DTYPES = ("uint8", "uint16", "float32")
MASK_DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


class Alpha(Enum):
    """What the last channel of an image means, if it is an alpha channel."""

    NONE = "none"
    STRAIGHT = "straight"
    PREMULTIPLIED = "premultiplied"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Which image: everything needed to open it again on another machine. No pixels, no credentials.

    path: file path or URL. series: TIFF series or OME-Zarr image index. level: the pyramid level that is taken
    as the image's level 0. channels: indices of the channels kept, None for all. plane: index along each
    further axis by its name, such as (("z", 3), ("t", 0)). allow_sparse: read TIFF tiles that were never written
    as the file's nodata value, or 0 as stored, and zarr chunks that are not stored as the fill value, instead of
    refusing them. rgb: three colour channels that do not say so are red, green, blue.
    """

    path: str
    series: int | None = None
    level: int = 0
    channels: tuple[int, ...] | None = None
    plane: tuple[tuple[str, int], ...] = ()
    allow_sparse: bool = False
    rgb: bool = False

    def __str__(self) -> str:
        extras = [f"series {self.series}"] if self.series is not None else []
        extras += [f"level {self.level}"] if self.level else []
        extras += [f"channels {list(self.channels)}"] if self.channels is not None else []
        extras += [f"{axis} {index}" for axis, index in self.plane]
        return self.path + (f" ({', '.join(extras)})" if extras else "")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a source. shape: (y, x). tile: stored block (y, x) that one decode yields.

    decoding: bytes that decoding one takes besides its pixels, what is stored included.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    decoding: int = 0


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Facts for people: `tiledblend info`, plan and report. Nothing here decides a pixel.

    axes: as stored, such as "YXS" or "tczyx". channel_windows: the display range (low, high) of each channel, None
    where it states none; empty: no channel does. problem: why this cannot be a layer's image (None: it can).
    notes: what a plan and a run say too; asides: what only `tiledblend info` says.
    """

    format: str
    axes: str
    compression: str = "none"
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    channel_windows: tuple[tuple[float, float] | None, ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


class Missed(NamedTuple):
    """Chunks that a read found not to be stored. key: of the object that lacks them; it is counted once."""

    level: int
    key: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Unstored:
    """Chunks of one level of a source that are not stored and read as the fill value.

    missing: of `chunks`. first: pixels of the level where the first one is, None when not known. refused: such a chunk
    is an error when it is read.
    """

    source: str
    level: int
    missing: int
    chunks: int
    fill: str
    first: Region | None = None
    refused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {**asdict(self), "first": None if self.first is None else self.first._asdict()}

    def __str__(self) -> str:
        counts = f"{self.missing:,} of {self.chunks:,} chunks are not stored"
        return (
            f"{self.source}: level {self.level}: {counts} and read as fill value {self.fill}: never written, or lost "
            "in a copy"
        )


class RasterSource(ShownInNotebooks, ABC):
    """A 2-D image with channels, opened by its metadata only, read by region and level.

    Implementations set these attributes when they are made:

    spec: what was asked for. dtype: of the samples as `read` returns them (native byte order).
    channels: number of channels, alpha included. alpha: meaning of the last channel.
    is_rgb: True when the colour channels are red, green, blue. levels: finest first.
    pixel_size_um: (y, x) micrometres per level-0 pixel, or None when not known.
    origin_um: (y, x) micrometres of the centre of level 0's first pixel, where the format says where images lie.
    magnification: nominal, of the objective that the image was taken with, such as 20.0 (OME's `Objective
    NominalMagnification`, Aperio's AppMag, openslide.objective-power); None when not known. It is a fact to carry,
    never a scale: a coarser level taken as level 0 keeps it.
    icc_profile: the ICC profile of the colours as stored, or None. Reading converts nothing.

    Instances are safe to read from several threads at once and pickle by `spec`: unpickling opens again,
    once per process.
    """

    spec: SourceSpec
    dtype: np.dtype[Any]
    channels: int
    alpha: Alpha = Alpha.NONE
    is_rgb: bool = False
    levels: tuple[Level, ...]
    pixel_size_um: tuple[float, float] | None = None
    origin_um: tuple[float, float] | None = None
    magnification: float | None = None
    icc_profile: bytes | None = None
    info: SourceInfo
    is_opened_by_name = True
    """False for pixels in memory, which a pickle would hold."""

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of level 0."""
        return self.levels[0].shape

    @property
    def name(self) -> str:
        """How messages call this source."""
        return str(self.spec)

    @property
    def icc_digest(self) -> str | None:
        """SHA-256 of `icc_profile`, in hex, or None: what two profiles are compared by."""
        return hashlib.sha256(self.icc_profile).hexdigest() if self.icc_profile else None

    def __repr__(self) -> str:
        height, width = self.shape
        return (
            f"<{type(self).__name__} {self.name}: {height} x {width} px (y x x), {self.channels} of {self.dtype.name}>"
        )

    def read(self, region: Region, level: int = 0) -> NDArray[Any]:
        """Pixels of `region` (in pixels of `level`, wholly inside it): shape (height, width, channels).

        The memory may be interleaved or planar (a moved axis): only the logical order is promised. The array is
        the caller's, except that it may be read-only. Raises BadInputError naming source, level and region.
        """
        if not 0 <= level < len(self.levels):
            raise BadInputError(f"{self.name}: has no level {level}; it has {len(self.levels)}")
        bounds = Region.of_shape(self.levels[level].shape)
        if not bounds.contains(region):
            raise BadInputError(f"{self.name}: region {region} lies outside level {level} of shape {bounds.shape}")
        if region.is_empty:
            return np.zeros((*region.shape, self.channels), self.dtype)
        try:
            with decoding(self, region, level):
                return self._read(region, level)
        except (TiledblendError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInputError(f"{self.name}: level {level}, region {region}: cannot be read: {reason}") from error

    @abstractmethod
    def _read(self, region: Region, level: int) -> NDArray[Any]:
        """As `read`, for a non-empty region that was checked."""

    def uniform(self, region: Region, level: int = 0) -> int | None:
        """The one value that all pixels of a region have, where that is known without looking at each; else None.

        Of images with one channel of integers or bool. What cannot be decoded raises BadInputError as `read` does.
        """
        with decoding(self, region, level):
            return self._uniform(region, level)

    def _uniform(self, region: Region, level: int) -> int | None:
        """As `uniform`."""
        return None

    def encoded(self) -> EncodedImage | None:
        """Its chunks as they are stored, where they can be had (zarr); None: only pixels."""
        return None

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """These regions will be read soon. Returns the number of requests that fetch them: 0 on this machine's disks.

        Sources behind a network fetch them meanwhile, so that the reads need not wait. fetch: False only counts.
        """
        return 0

    def rest(self) -> None:  # most keep nothing
        """This thread will read nothing more for now: what is kept only for its next reads may go."""

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """Chunks of a level that are not stored: by a listing, where that is cheap, and `missed` ones that reads found.

        None: there are none.
        """
        return None

    def take_missed(self, *, of_all_threads: bool = False) -> list[Missed]:
        """What this thread's reads have found missing, since it last asked, and `unstored` does not count by itself.

        of_all_threads: what any thread's have found; only for a process that does nothing else with the source.
        """
        return []

    def require_unchanged(self) -> None:  # nothing to do for pixels in memory, or checked at every read
        """Raise BadInputError unless the stored bytes are still those that were opened; asked after every tile."""

    def changed(self) -> BadInputError:
        """The error of an input that is not what it was."""
        return BadInputError(f"{self.name}: the input changed while the run was using it; run again on settled inputs")

    def summary(self) -> dict[str, Any]:
        """Further facts for `info`, which take more than the metadata to know; most have none."""
        return {}

    def contents(self) -> Iterable[tuple[str, str]]:
        """(name, path or URL) of every stored object that the pixels are decoded from; none for pixels in memory."""
        return [("", self.spec.path)]

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Identity of the stored bytes, cheap: {"uri", "size", "modified" or "etag", "structure": hex digest}."""
