"""Views over another source: starting at a coarser level, keeping some of the channels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import Alpha, Missed, RasterSource, SourceSpec, Unstored

T = TypeVar("T")


def downsampling(fine: int, coarse: int) -> float:
    """How many pixels of an axis of length `fine` one pixel of its coarser level (length `coarse`) stands for.

    A pyramid rounds its sides, so the ratio of the lengths is only near the true factor: a whole number f with
    |f * coarse - fine| < f is taken as the factor, else the ratio itself.

    >>> downsampling(1001, 251), downsampling(1000, 300)
    (4.0, 3.3333333333333335)
    """
    factor = max(1, round(fine / coarse))
    return float(factor) if abs(factor * coarse - fine) < factor else fine / coarse


def select(source: RasterSource, spec: SourceSpec, *, mask: bool = False) -> RasterSource:
    """`source` from `spec.level` on and with `spec.channels` only; `source` itself when nothing is selected.

    Raises BadInputError when the source has no such level or channel.
    """
    if spec.level == 0 and spec.channels is None:
        return source
    return SelectedSource(source, spec, mask=mask)


class SelectedSource(RasterSource):
    """Some levels and channels of another source; pixels are the other's, untouched."""

    def __init__(self, source: RasterSource, spec: SourceSpec, *, mask: bool = False) -> None:
        channels = tuple(range(source.channels)) if spec.channels is None else spec.channels
        _check_selection(source, spec, channels)
        self.spec = spec
        self.dtype = source.dtype
        self.channels = len(channels)
        self.levels = source.levels[spec.level :]
        self.pixel_size_um = _pixel_size(source, spec.level)
        self.origin_um = _origin(source, self.pixel_size_um)
        self.magnification = source.magnification
        self.icc_profile = source.icc_profile
        keeps_alpha = source.alpha is not Alpha.NONE and source.channels - 1 in channels
        alpha_last = keeps_alpha and channels[-1] == source.channels - 1 and self.channels > 1
        self.alpha = source.alpha if alpha_last else Alpha.NONE
        colours = channels[:-1] if alpha_last else channels
        self.is_rgb = source.is_rgb and colours == (0, 1, 2)
        self.info = dataclasses.replace(
            source.info,
            channel_names=_pick(source.info.channel_names, channels),
            channel_colors=_pick(source.info.channel_colors, channels),
            channel_windows=_pick(source.info.channel_windows, channels),
        )
        self._source = source
        self._mask = mask
        self._channels = None if channels == tuple(range(source.channels)) else channels

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        pixels = self._source.read(region, level + self.spec.level)
        if self._channels is None:
            return pixels
        first, last = self._channels[0], self._channels[-1]
        if self._channels == tuple(range(first, last + 1)):
            return pixels[:, :, first : last + 1]
        planes = np.empty((self.channels, *region.shape), self.dtype)
        for plane, channel in zip(planes, self._channels, strict=True):
            plane[...] = pixels[:, :, channel]
        return np.moveaxis(planes, 0, 2)

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """As the other source's."""
        return self._source.expect(regions, level + self.spec.level, fetch=fetch)

    def rest(self) -> None:
        """As `RasterSource.rest`."""
        self._source.rest()

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """As the other source's."""
        return self._source.unstored(level + self.spec.level, missed)

    def take_missed(self, *, of_all_threads: bool = False) -> list[Missed]:
        """As the other source's."""
        return [
            found._replace(level=found.level - self.spec.level)
            for found in self._source.take_missed(of_all_threads=of_all_threads)
        ]

    def require_unchanged(self) -> None:
        """As the other source's."""
        self._source.require_unchanged()

    def contents(self) -> Iterable[tuple[str, str]]:
        """As the other source's."""
        return self._source.contents()

    def fingerprint(self) -> dict[str, Any]:
        """The other source's, with the selection in its structure digest."""
        identity = self._source.fingerprint()
        selection = f"{identity['structure']} level {self.spec.level} channels {self._channels}"
        return {**identity, "structure": hashlib.sha256(selection.encode()).hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, self._mask)


def _check_selection(source: RasterSource, spec: SourceSpec, channels: tuple[int, ...]) -> None:
    if not 0 <= spec.level < len(source.levels):
        raise BadInputError(f"{spec.path}: has no level {spec.level}; it has levels 0 to {len(source.levels) - 1}")
    if not channels or len(set(channels)) != len(channels):
        raise BadInputError(f"{spec.path}: channels {list(channels)} must be one or more, each once")
    for channel in channels:
        if not 0 <= channel < source.channels:
            raise BadInputError(f"{spec.path}: has no channel {channel}; it has channels 0 to {source.channels - 1}")


def _pick(values: tuple[T, ...], channels: tuple[int, ...]) -> tuple[T, ...]:
    return tuple(values[c] for c in channels) if values and max(channels) < len(values) else ()


def _pixel_size(source: RasterSource, level: int) -> tuple[float, float] | None:
    if source.pixel_size_um is None:
        return None
    (fine_y, fine_x), (coarse_y, coarse_x) = source.levels[0].shape, source.levels[level].shape
    size_y, size_x = source.pixel_size_um
    return size_y * downsampling(fine_y, coarse_y), size_x * downsampling(fine_x, coarse_x)


def _origin(source: RasterSource, size: tuple[float, float] | None) -> tuple[float, float] | None:
    """All levels begin at the same corner: the first pixel's centre is where half a pixel of the level is."""
    if source.origin_um is None or source.pixel_size_um is None or size is None:
        return None
    (y, x), fine = source.origin_um, source.pixel_size_um
    return y + (size[0] - fine[0]) / 2, x + (size[1] - fine[1]) / 2
