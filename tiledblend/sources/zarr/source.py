"""Zarr v2 and v3 arrays, sharded or not, and OME-Zarr images, read through zarr-python.

A chunk that is not stored reads as the array's fill value: that is what zarr means by it, and zarr-python leaves out
chunks that hold nothing else. An incomplete copy looks the same, so they are counted and told; in a pyramid of
tiledblend's, which stores every chunk, they are refused unless that is allowed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tiledblend.bytes.archive import split_member
from tiledblend.errors import BadInputError, TiledblendError
from tiledblend.geometry import Region, ceil_div
from tiledblend.kernels.halve import names_alpha
from tiledblend.sources.arrays import check_dtype
from tiledblend.sources.axes import PlaneAxes
from tiledblend.sources.base import Alpha, Level, Missed, RasterSource, SourceInfo, SourceSpec, Unstored
from tiledblend.sources.colour import says_rgb
from tiledblend.sources.zarr.encoded import EncodedImage, encoded_level
from tiledblend.sources.zarr.grid import Listing, ObjectGrid
from tiledblend.sources.zarr.inline_loop import run_inline
from tiledblend.sources.zarr.metadata import ArrayFacts, ZarrNode, read_document
from tiledblend.sources.zarr.ome import ZarrImage, read_image
from tiledblend.sources.zarr.stored import SEEN, ImageStore, Seen, store_path

if TYPE_CHECKING:
    from zarr import AsyncArray

MAX_CHANNELS = 65536
LARGEST_READ = 4096
MAX_CHUNKS_READ = 1 << 20
MOST_MISSED = 100_000
"""Objects that are remembered to lack chunks."""


def open_zarr(spec: SourceSpec, *, mask: bool = False, root: str | None = None) -> ZarrSource:
    """The zarr array or OME-Zarr image that `spec` names (`spec.level` and `spec.channels` are the caller's).

    root: where its documents begin, if not at `spec.path`: in an archive.

    Raises BadInputError: not an image, several planes without a selection, a plate, malformed or absurd metadata.
    """
    called = str(dataclasses.replace(spec, level=0, channels=None, plane=()))
    try:
        image = read_image(spec, called, root or spec.path)
    except BadInputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BadInputError(f"{called}: malformed OME-Zarr metadata: {reason}") from error
    return ZarrSource(spec, image, mask=mask, root=root or spec.path)


def _meaning(image: ZarrImage, dtype: np.dtype[Any], channels: int) -> tuple[bool, Alpha]:
    """(is RGB, alpha): as `says_rgb`; a plain array's three interleaved channels are red, green, blue.

    A result of tiledblend says by its halving rule that it has alpha, of any dtype and any number of colours.
    """
    named = image.channels
    rgb = says_rgb(named.names, named.colors, dtype, photometric=image.photometric)
    if channels > 1 and names_alpha(image.halving):
        return channels == 4 and rgb, Alpha.STRAIGHT
    last = named.names[-1].strip().lower() if len(named.names) == 4 else ""
    if channels == 4 and dtype == np.uint8 and rgb and last in ("alpha", "a"):
        return True, Alpha.STRAIGHT
    interleaved = not image.format.startswith("OME") and image.axes.channel == len(image.axes.names) - 1
    return channels == 3 and (rgb or interleaved), Alpha.NONE


class ZarrSource(RasterSource):
    """One 2-D image of a zarr store; each read decodes in the thread that asks."""

    def __init__(self, spec: SourceSpec, image: ZarrImage, *, mask: bool, root: str) -> None:
        self.spec = spec
        self.root = root
        self._image = image
        self._mask = mask
        axes, facts = image.axes, image.facts
        self.dtype = _checked_dtype(facts[0].dtype, mask, str(spec))
        self.channels = axes.channels(facts[0].shape)
        if self.channels > MAX_CHANNELS:
            raise BadInputError(f"{spec}: {self.channels} channels, more than {MAX_CHANNELS}")
        for number, level in enumerate(facts):
            _require_few_chunks(level, axes, f"{spec}: level {number}")
        self.is_rgb, self.alpha = _meaning(image, self.dtype, self.channels)
        self.levels = tuple(_level(axes, level, self.dtype.itemsize) for level in facts)
        self.pixel_size_um, self.origin_um = image.pixel_size_um, image.origin_um
        self.icc_profile = image.icc_profile
        self.info = _info(image)
        self._opened = [_modified(path) for path in image.documents]
        self._grids = [_grid_of(node, level, axes) for node, level in zip(image.arrays, facts, strict=True)]
        paths = [store_path(node.path, grid) for node, grid in zip(image.arrays, self._grids, strict=True)]
        self._stores: list[ImageStore] = [path.store for path in paths]
        self._arrays = [
            _open_array(path, node, level, math.prod(level.chunk) * self.dtype.itemsize, str(spec))
            for path, node, level in zip(paths, image.arrays, facts, strict=True)
        ]
        self._listed_newest: int | None = None
        self._is_listed: dict[int, bool] = {}
        self._missed: dict[int, dict[tuple[int, str], tuple[Missed, bool]]] = {}
        """What each thread's reads found, by (level, key); True with a whole object, False with chunks of a shard."""

    def expect(self, regions: Sequence[Region], level: int = 0, *, fetch: bool = True) -> int:
        """As `RasterSource.expect`: in a bucket, neighbouring chunks of a shard by merged range requests."""
        return self._stores[level].expect(regions, fetch=fetch)

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        array, seen = self._arrays[level], list[Seen]()
        if self._grids[level].index is not None:
            self.expect([region], level)
        try:
            block = self._block(array, region, seen)
        except MemoryError as error:
            raise self._out_of_memory(region, level) or error from error
        for missing in seen:
            self._take_missing(missing, region, level)
        return self._image.axes.to_yxc(block.astype(self.dtype, copy=False))

    def encoded(self) -> EncodedImage:
        """As `RasterSource.encoded`."""
        image = self._image
        levels = (
            encoded_level(node, facts, image.axes, self.name, number)
            for number, (node, facts) in enumerate(zip(image.arrays, image.facts, strict=True))
        )
        return EncodedImage(tuple(levels), image.halving)

    def require_unchanged(self) -> None:
        """By the times of the metadata documents and of the chunks that were read; in a bucket by what reads found."""
        if any(store.has_changed for store in self._stores):
            raise self.changed()
        if self._opened != [_modified(path) for path in self._image.documents]:
            raise self.changed()
        newest = max((store.newest for store in self._stores), default=0)
        if self._listed_newest is not None and newest > self._listed_newest:
            raise self.changed()

    def unstored(self, level: int = 0, missed: int = 0) -> Unstored | None:
        """As `RasterSource.unstored`."""
        grid, listing = self._grids[level], self._listing(level)
        lacking = grid.lacking(self._image.arrays[level].path, listing) if listing is not None else None
        missing = missed + (0 if lacking is None else lacking.chunks)
        if missing == 0:
            return None
        where = None if lacking is None else grid.needed(*lacking.first, Region.of_shape(self.levels[level].shape))
        return Unstored(self.name, level, missing, grid.chunks, grid.fill, where, self._refuses_missing)

    def take_missed(self, *, of_all_threads: bool = False) -> list[Missed]:
        """As `RasterSource.take_missed`."""
        found = [self._missed.pop(thread, {}) for thread in (list(self._missed) if of_all_threads else [get_ident()])]
        known = {place: entry for of_thread in found for place, entry in of_thread.items()}
        return [missed for missed, is_object in known.values() if not self._is_counted(missed.level, is_object)]

    def _is_counted(self, level: int, is_object: bool) -> bool:
        """True for what `unstored` counts by itself: objects where there is a listing, chunks inside of some."""
        is_seen = is_object or self._grids[level].reads_indices(self._image.arrays[level].path)
        return is_seen and self._is_listed.get(level, False)

    @property
    def _refuses_missing(self) -> bool:
        return self._image.halving is not None and not self.spec.allow_sparse

    def _listing(self, level: int) -> Listing | None:
        found = self._grids[level].listing(self._image.arrays[level].path)
        self._is_listed[level] = found is not None
        return found

    def _take_missing(self, missing: Seen, region: Region, level: int) -> None:
        """Refuse or count chunks that a read found not to be stored."""
        grid = self._grids[level]
        coords = grid.coords(missing.key)
        if coords is None:
            return
        if self._refuses_missing and (chunk := grid.needed(coords, missing.index, region)) is not None:
            raise BadInputError(
                f"{self.name}: level {level}, region {region}: the chunk at {chunk} is not stored ({missing.key}) and "
                f"would read as fill value {grid.fill}, but tiledblend has stored every chunk of it; copy the image "
                "again, or pass --allow-sparse"
            )
        found, place = self._missed.setdefault(get_ident(), {}), (level, missing.key)
        if place not in found and len(found) < MOST_MISSED:
            count = int(grid.places(coords, missing.index).sum())
            found[place] = Missed(level, missing.key, count), missing.index is None

    def _block(self, array: AsyncArray[Any], region: Region, seen: list[Seen]) -> NDArray[Any]:
        async def watched() -> Any:
            SEEN.set(seen)
            return await array.getitem(self._image.axes.index(region))

        try:
            # A shard's damaged index may name places that overflow: the error is enough.
            with np.errstate(over="ignore"):
                return np.asarray(run_inline(watched))
        except ExceptionGroup as group:
            # Requests that went together: the first failure says it.
            raise group.exceptions[0] from None

    def _out_of_memory(self, region: Region, level: int) -> BadInputError | None:
        """A chunk's own header can claim any size, and its decoder believes it; None where memory is really short."""
        facts = self._image.facts[level]
        needed = (region.size * self.channels + math.prod(facts.chunk)) * self.dtype.itemsize
        if psutil.virtual_memory().available < 8 * needed + (1 << 28):
            return None
        return BadInputError(
            f"{self.name}: level {level}, region {region}: a chunk claims more memory than there is, "
            f"chunks of {facts.chunk} need {math.prod(facts.chunk) * self.dtype.itemsize} bytes; it is damaged"
        )

    def contents(self) -> Iterable[tuple[str, str]]:
        """The metadata documents, and every object of the plane on every level."""
        for path in self._image.documents:
            yield os.path.relpath(path, self.root), path
        for node, grid in zip(self._image.arrays, self._grids, strict=True):
            folder = node.path.rstrip("/")
            for key in grid.keys(folder):
                yield os.path.relpath(f"{folder}/{key}", self.root), f"{folder}/{key}"

    def fingerprint(self) -> dict[str, Any]:
        """Digest of the metadata documents, the latest time that one of them was changed, and what a listing of the
        chunks' objects says: how many bytes, and a digest of their names, sizes and times or ETags."""
        digest = hashlib.sha256(str(self.spec.plane).encode())
        modified = 0.0
        for path in self._image.documents:
            content = read_document(path)
            if content is None:
                raise BadInputError(f"{self.name}: {path} is not there any more; restore it and run again")
            # An object's time is not asked for: its bytes are in the digest.
            modified = modified if "://" in path else max(modified, os.stat(_file_of(path)).st_mtime)
            digest.update(f"{os.path.relpath(path, self.root)} {len(content)}\n".encode())
            digest.update(content)
        listings = [self._listing(level) for level in range(len(self._grids))]
        known = [listing for listing in listings if listing is not None]
        objects, size, self._listed_newest = None, None, None
        if len(known) == len(listings):
            objects, size = [listing.digest for listing in known], sum(listing.size for listing in known)
            self._listed_newest = max(listing.newest for listing in known)
        for store, listing in zip(self._stores, listings, strict=True):
            if listing is not None:
                store.renew(listing.digest)
        times = {"documents": modified, "objects": objects}
        return {"uri": self.spec.path, "size": size, "modified": times, "structure": digest.hexdigest()}

    def __reduce__(self) -> tuple[Any, ...]:
        from tiledblend.sources.opening import reopen

        return reopen, (self.spec, self._mask)


def _require_few_chunks(facts: ArrayFacts, axes: PlaneAxes, called: str) -> None:
    """Raise BadInputError where a tile would be read from so many chunks that it takes minutes or more."""
    read = [axis for axis in (axes.y, axes.x, axes.channel) if axis is not None]
    sides = {axis: facts.shape[axis] if axis == axes.channel else min(facts.shape[axis], LARGEST_READ) for axis in read}
    count = math.prod(ceil_div(sides[axis], facts.chunk[axis]) for axis in read)
    if count > MAX_CHUNKS_READ:
        raise BadInputError(
            f"{called}: chunks of {facts.chunk} are {count:,} in {LARGEST_READ} x {LARGEST_READ} px, more than "
            f"{MAX_CHUNKS_READ:,}; store it again with larger chunks"
        )


def _modified(path: str) -> int | None:
    """Nanoseconds; None for what is missing and for objects by URL."""
    try:
        return os.stat(_file_of(path)).st_mtime_ns if "://" not in path else None
    except OSError:
        return None


def _file_of(path: str) -> str:
    """The file that a document's path is in: its own, or an archive."""
    found = split_member(path)
    return path if found is None else found[0]


def _checked_dtype(name: str, mask: bool, called: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError):
        raise BadInputError(f"{called}: dtype {name} is not one of an image") from None
    return check_dtype(dtype, mask=mask, source=called)


def _level(axes: PlaneAxes, facts: ArrayFacts, itemsize: int) -> Level:
    (height, width), (rows, columns) = axes.yx(facts.shape), axes.yx(facts.chunk)
    # Another chunk than the one that is being used, and itself as stored.
    return Level((height, width), (min(rows, height), min(columns, width)), 2 * math.prod(facts.chunk) * itemsize)


def _info(image: ZarrImage) -> SourceInfo:
    facts = image.facts[0]
    metadata: dict[str, Any] = {"chunk": list(facts.chunk)}
    if facts.shard:
        metadata["shard"] = list(facts.shard)
    return SourceInfo(
        format=image.format + (" sharded" if facts.shard else ""),
        axes="".join(image.axes.names) if all(len(n) == 1 for n in image.axes.names) else ",".join(image.axes.names),
        compression=facts.compression,
        channel_names=image.channels.names,
        channel_colors=image.channels.colors,
        channel_windows=image.channels.windows,
        notes=image.notes,
        metadata=metadata,
    )


def _grid_of(node: ZarrNode, facts: ArrayFacts, axes: PlaneAxes) -> ObjectGrid:
    if facts.edges is None:
        return ObjectGrid(node, facts, axes)
    from tiledblend.sources.zarr.uneven import UnevenGrid

    return UnevenGrid(node, facts, axes)


def _open_array(store: Any, node: ZarrNode, facts: ArrayFacts, chunk_bytes: int, called: str) -> AsyncArray[Any]:
    """The array by the document that was read and judged: the store is not asked for it once more."""
    from zarr import AsyncArray, config

    from tiledblend.sources.zarr.bounded import with_bounded_codecs

    document = {**node.document, "attributes": {}, "zarr_format": node.zarr_format}
    setting = nullcontext()
    if facts.edges is not None:
        from tiledblend.sources.zarr.uneven import require_support

        setting = config.set(require_support(called))
    try:
        # Here, by one thread: two that read first at once would both open it, which zarr refuses.
        run_inline(store.store._ensure_open)
        with setting:
            return with_bounded_codecs(AsyncArray.from_dict(store, document), chunk_bytes)
    except TiledblendError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{called}: array {node.path} cannot be opened: {reason}") from error
