"""TIFF and what is built on it: SVS, NDPI, OME-TIFF, ImageJ, pyramids of reduced pages.

tifffile parses the metadata and decodes single tiles (`page.decode`); which bytes are read is decided here. Every
page object is dropped after opening: what stays is offsets, byte counts and a decoder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import ByteReader, open_bytes
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec, Unstored
from tiledblend.sources.tiff.coding import Coding
from tiledblend.sources.tiff.images import Images, open_images
from tiledblend.sources.tiff.internal_mask import alpha_of, mask_levels
from tiledblend.sources.tiff.kept import CACHE_BYTES, PartlyUsed
from tiledblend.sources.tiff.layout import StoredLevel, store_level
from tiledblend.sources.tiff.metadata import ImageFacts
from tiledblend.sources.tiff.pages import dimensions, page_numbers
from tiledblend.sources.tiff.reading import LevelReader, arrange, channel_planes
from tiledblend.sources.tiff.told import compression_name, facts_of, format_name, level_pixel_size, strip_notes

_ICC = 34675

# tifffile logs what it repairs; a file that cannot be used is an error of ours, in one line. Handlers that an
# application installs still get the messages.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """One image of a TIFF file, for people. shape is over `axes`. problem: why it is no layer's image, or None."""

    index: int
    name: str
    kind: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    levels: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Orientation:
    """How stored rows and columns become the picture's: transposed first, then flipped (TIFF 6.0, Orientation)."""

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False

    @classmethod
    def of_tag(cls, value: int) -> _Orientation:
        """Of the tag's value; readers take values other than 1 to 8 as 1."""
        flips = {
            2: (False, True),
            3: (True, True),
            4: (True, False),
            6: (False, True),
            7: (True, True),
            8: (True, False),
        }
        return cls(5 <= value <= 8, *flips.get(value, (False, False)))

    def stored(self, region: Region, shape: tuple[int, int]) -> Region:
        """The stored region of a picture's region; shape: (y, x) of the picture."""
        (height, width), (y0, x0, y1, x1) = shape, (region.y0, region.x0, region.y1, region.x1)
        if self.flip_y:
            y0, y1 = height - y1, height - y0
        if self.flip_x:
            x0, x1 = width - x1, width - x0
        return Region(x0, y0, x1, y1) if self.transpose else Region(y0, x0, y1, x1)

    def picture(self, region: Region, shape: tuple[int, int]) -> Region:
        """The picture's region of a stored one; shape: (y, x) of the picture."""
        y0, x0, y1, x1 = (region.x0, region.y0, region.x1, region.y1) if self.transpose else region
        if self.flip_y:
            y0, y1 = shape[0] - y1, shape[0] - y0
        if self.flip_x:
            x0, x1 = shape[1] - x1, shape[1] - x0
        return Region(y0, x0, y1, x1)

    def turn(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Stored (y, x, channel) as the picture's, a view."""
        pixels = pixels.swapaxes(0, 1) if self.transpose else pixels
        return pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def pair(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """A stored (y, x) as the picture's."""
        return (pair[1], pair[0]) if self.transpose else pair


class TiffSource(RasterSource):
    """One image of a TIFF file: a series, a plane of it, some of its levels and channels. Made by `open_tiff`."""

    handles_selection = True

    def __init__(
        self,
        spec: SourceSpec,
        reader: ByteReader,
        stored: Sequence[StoredLevel],
        *,
        mask: bool,
        facts: ImageFacts,
        icc_profile: bytes | None,
        info: SourceInfo,
        masks: Sequence[StoredLevel] = (),
    ) -> None:
        total = _channel_count(stored[0]) + bool(masks)
        whole, stored, masks = stored, stored[spec.level :], masks[spec.level :]
        chosen = tuple(range(total)) if spec.channels is None else spec.channels
        _check_channels(spec, chosen, total)
        samples = stored[0].samples
        alpha = Alpha.STRAIGHT if masks else samples.alpha
        has_alpha = alpha is not Alpha.NONE and total == samples.count + bool(masks)
        keeps_alpha = has_alpha and len(chosen) > 1 and chosen[-1] == total - 1
        self.spec = spec
        self.dtype = samples.dtype
        self.channels = len(chosen)
        self.alpha = alpha if keeps_alpha else Alpha.NONE
        self.is_rgb = samples.is_rgb and (chosen[:-1] if keeps_alpha else chosen) == (0, 1, 2)
        self._orientation = _Orientation.of_tag(whole[0].orientation)
        turned = self._orientation.pair
        self._masked = bool(masks) and total - 1 in chosen
        beside = masks if self._masked else (None,) * len(stored)
        self.levels = tuple(
            Level(turned(s.shape), turned(s.access), s.decoding_bytes + (m.decoding_bytes + m.tile_bytes if m else 0))
            for s, m in zip(stored, beside, strict=True)
        )
        size = level_pixel_size(facts.pixel_size_um, whole, spec.level)
        self.pixel_size_um = size if size is None else turned(size)
        self.magnification = facts.magnification
        self.icc_profile = icc_profile
        names, colors = info.channel_names, info.channel_colors
        if masks:
            names, colors = names and (*names, "alpha"), colors and (*colors, "FFFFFF")
        self.info = replace(info, channel_names=_pick(names, chosen), channel_colors=_pick(colors, chosen))
        self._mask = mask
        self._reader = reader
        self._stored = tuple(stored)
        self._chosen = chosen
        self._readers = self._level_readers(stored, self.name)
        self._mask_readers = self._level_readers(masks if self._masked else (), f"{self.name}, its mask page")
        self._masks = tuple(masks) if self._masked else ()
        # Where the mask's channel goes; the others are the image's own.
        self._alpha_at = [place for place, channel in enumerate(chosen) if self._masked and channel == total - 1]
        own = [channel for place, channel in enumerate(chosen) if place not in self._alpha_at]
        self._planes = [channel_planes(level, own) if own else ([], []) for level in stored]

    def _level_readers(self, stored: Sequence[StoredLevel], name: str) -> list[LevelReader]:
        cache = PartlyUsed(CACHE_BYTES)
        return [
            LevelReader(self._reader, level, cache, name=name, number=number, allow_sparse=self.spec.allow_sparse)
            for number, level in enumerate(stored)
        ]

    @property
    def stored(self) -> tuple[StoredLevel, ...]:
        """Each level as it is stored."""
        return self._stored

    @property
    def level_readers(self) -> list[LevelReader]:
        """Of each level."""
        return self._readers

    @property
    def is_whole(self) -> bool:
        """True when `read` gives all channels, as they lie."""
        return self._orientation == _Orientation() and self._chosen == tuple(range(_channel_count(self._stored[0])))

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        stored = self._orientation.stored(region, self.levels[level].shape)
        return self._orientation.turn(self._stored_pixels(stored, level))

    def _stored_pixels(self, region: Region, level: int) -> NDArray[Any]:
        """(y, x, channel) as stored, before it is turned."""
        planes, places = self._planes[level]
        if not self._masked:
            return arrange(self._readers[level].read(region, planes), places)
        pixels = np.empty((*region.shape, self.channels), self.dtype)
        mask = self._mask_readers[level].read(region, [(0, 0)])[0]
        pixels[:, :, self._alpha_at] = alpha_of(mask, self.dtype)
        if planes:
            own = [place for place in range(self.channels) if place not in self._alpha_at]
            pixels[:, :, own] = arrange(self._readers[level].read(region, planes), places)
        return pixels

    def _uniform(self, region: Region, level: int) -> int | None:
        """Of tiles that are stored in a few bytes, as masks have them."""
        planes, _ = self._planes[level]
        is_plain = self.channels == 1 and self._stored[level].samples.count == 1 and not self._masked
        if not is_plain or self.dtype.kind not in "bu":
            return None
        stored = self._orientation.stored(region, self.levels[level].shape)
        return self._readers[level].uniform(stored, planes[0])

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """As `RasterSource.expect`: by merged range requests when the file is behind a network."""
        if not self._reader.has_latency:
            return 0
        shape, (planes, _) = self.levels[level].shape, self._planes[level]
        stored = [self._orientation.stored(region, shape) for region in regions]
        masks = self._mask_readers[level].expect(stored, [(0, 0)], fetch=fetch) if self._masked else 0
        return masks + self._readers[level].expect(stored, planes, fetch=fetch)

    def rest(self) -> None:
        """As `RasterSource.rest`."""
        for reader in (*self._readers, *self._mask_readers):
            reader.rest()

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """As `RasterSource.unstored`: every tile's place is known, reads find no others."""
        found = [self._readers[level].absent(self._planes[level][0])]
        if self._masked:
            found.append(self._mask_readers[level].absent([(0, 0)]))
        lacking = [each for each in found if each is not None]
        if not lacking:
            return None
        _, _, first, fill = lacking[0]
        missing, number = sum(each[0] for each in lacking), sum(each[1] for each in lacking)
        where = self._orientation.picture(first, self.levels[level].shape)
        return Unstored(self.name, level, missing, number, fill, where, not self.spec.allow_sparse)

    def require_unchanged(self) -> None:
        """By the file's size and time; an object's version is checked at every read."""
        if not self._reader.is_as_opened():
            raise self.changed()

    def fingerprint(self) -> dict[str, Any]:
        """Of the file as it is now, with a digest of the levels' geometry, samples and tile tables."""
        digest = hashlib.sha256()
        for level in (*self._stored, *self._masks):
            facts = (level.shape, *_coding_facts(level.coding))
            meaning = (level.samples.count, str(level.samples.dtype), level.samples.alpha.value, level.samples.notes)
            digest.update(repr((facts, meaning, level.coding.jpegheader, self._orientation, self._chosen)).encode())
            for table in level.pages:
                if level.notes or table.coding.fill.any():
                    digest.update(repr((_coding_facts(table.coding), table.coding.fill.tolist())).encode())
                digest.update(table.offsets.tobytes())
                digest.update(table.counts.tobytes())
                digest.update(table.jpegtables or b"")
        return {**self._reader.identity(), "structure": digest.hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, self._mask)


def open_tiff(spec: SourceSpec, *, mask: bool = False) -> TiffSource:
    """Open one image of a TIFF file (SVS, NDPI, OME-TIFF, ImageJ, pyramids) by its metadata only.

    Without `spec.series` it is the first image that is no thumbnail, label, macro or map; of a plain TIFF the largest.
    mask: accept `MASK_DTYPES`, and palette indices as they are.
    Raises BadInputError in one line for what is damaged, or not one 2-D image of 8 or 16-bit or float32 samples.
    """
    reader = open_bytes(spec.path)
    with open_images(reader) as images:
        index = images.choose(spec)
        stored, notes = _store_levels(images, index, spec, mask=mask)
        masks = [] if mask else _add_masks(images, index, stored, notes, str(spec))
        if spec.level >= len(stored) or spec.level < 0:
            raise BadInputError(f"{spec}: has no level {spec.level}; it has {len(stored)}")
        facts = facts_of(images, index, _channel_count(stored[0]))
        info = _describe(images, index, stored, facts, notes)
        profile = images.series[index].keyframe.tags.valueof(_ICC)
    return TiffSource(
        spec,
        reader,
        stored,
        mask=mask,
        facts=facts,
        icc_profile=profile if isinstance(profile, bytes) and profile else None,
        info=info,
        masks=masks,
    )


def _add_masks(images: Images, index: int, stored: list[StoredLevel], notes: list[str], name: str) -> list[StoredLevel]:
    """The mask pages of an image's levels; levels without one are left out where the finest has one."""
    masks, note = mask_levels(images.series, images.series[index], stored, name, images.structure)
    if note:
        notes.append(note)
    if masks and len(masks) < len(stored):
        notes.append(f"pyramid ends at level {len(masks) - 1}: the next is not used: it has no mask page")
        del stored[len(masks) :]
    return masks


def list_series(path: str) -> list[SeriesSummary]:
    """Every image in a TIFF file, and for each why it cannot be a layer's image, if it cannot."""
    reader = open_bytes(path)
    with open_images(reader) as images:
        return [_summarise(images, index, path) for index in range(len(images.series))]


def _summarise(images: Images, index: int, path: str) -> SeriesSummary:
    series = images.series[index]
    problem, levels = None, len(series.levels)
    try:
        levels = len(_store_levels(images, index, SourceSpec(path, series=index), mask=False)[0])
    except BadInputError as error:
        problem = str(error)
    return SeriesSummary(
        index, series.name, series.kind, series.axes, tuple(series.shape), str(series.dtype), levels, problem
    )


def _store_levels(images: Images, index: int, spec: SourceSpec, *, mask: bool) -> tuple[list[StoredLevel], list[str]]:
    series = images.series[index]
    name = str(spec)
    numbers = page_numbers(series, spec)
    stored = [store_level(series, numbers, name, images.structure, mask=mask)]
    notes = list(stored[0].notes)
    for candidate in images.levels(index):
        try:
            if page_numbers(candidate, spec) != numbers:
                raise BadInputError("its axes differ")
            level = store_level(candidate, numbers, name, images.structure, mask=mask, base=series.keyframe)
            _check_alike(stored, level)
        except BadInputError as error:
            notes.append(f"pyramid ends at level {len(stored) - 1}: the next is not used: {error}")
            break
        stored.append(level)
        notes += [f"level {len(stored) - 1}: {note}" for note in level.notes]
    return stored, notes


def _check_alike(stored: list[StoredLevel], level: StoredLevel) -> None:
    if level.samples.meaning != stored[0].samples.meaning:
        raise BadInputError("its samples differ from level 0")
    if level.shape[0] > stored[-1].shape[0] or level.shape[1] > stored[-1].shape[1] or level.shape == stored[-1].shape:
        raise BadInputError(f"its shape {level.shape} is not smaller than {stored[-1].shape}")


def _describe(
    images: Images, index: int, stored: Sequence[StoredLevel], facts: ImageFacts, notes: Sequence[str]
) -> SourceInfo:
    series, structure = images.series[index], images.structure
    page, first = series.keyframe, stored[0]
    orientation = first.orientation
    others = [
        f"{i} {s.name or s.kind} {'x'.join(map(str, s.shape))}" for i, s in enumerate(images.series) if i != index
    ]
    all_notes = [
        *images.notes,
        *facts.notes,
        *(images.ome[index].notes if index in images.ome else ()),
        *first.samples.notes,
        *notes,
        *strip_notes(first),
    ]
    all_notes += [f"orientation {orientation} is applied"] if orientation in range(2, 9) else []
    asides = (f"series {index} is read; others: {', '.join(others[:8])}",) if others else ()
    metadata: dict[str, Any] = {
        "reader": "tiledblend (TIFF)",
        "series": index,
        "bigtiff": structure.is_bigtiff,
        "byteorder": "little" if structure.byteorder == "<" else "big",
        "layout": "planar" if first.coding.separate > 1 or len(first.pages) > 1 else "interleaved",
        "tiled": first.coding.is_tiled,
        "photometric": getattr(page.photometric, "name", str(page.photometric)).lower(),
    }
    return SourceInfo(
        format=format_name(series.kind),
        axes="".join(axis for axis, _ in dimensions(series)).upper(),
        compression="none" if first.coding.compression == 1 else compression_name(page),
        channel_names=facts.names,
        channel_colors=facts.colors,
        notes=tuple(all_notes),
        asides=asides,
        metadata=metadata,
    )


def _coding_facts(coding: Coding) -> tuple[Any, ...]:
    return coding.tile, coding.separate, coding.contiguous, str(coding.dtype), coding.compression


def _channel_count(level: StoredLevel) -> int:
    return len(level.pages) * level.samples.count


def _check_channels(spec: SourceSpec, chosen: Sequence[int], total: int) -> None:
    if not chosen:
        raise BadInputError(f"{spec}: no channels selected; it has {total}")
    for channel in chosen:
        if not 0 <= channel < total:
            raise BadInputError(f"{spec}: has no channel {channel}; it has {total}, counted from 0")


def _pick(values: Sequence[str], chosen: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[channel] for channel in chosen) if values else ()
