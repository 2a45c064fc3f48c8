"""Opening a source by what it is, not by what it is called; once per process."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiledblend.bytes.archive import MAGIC, split_member
from tiledblend.bytes.buckets import checked_url, path_of_file_url
from tiledblend.bytes.ranges import open_bytes
from tiledblend.errors import BadInputError, StorageError, TiledblendError, UsageError
from tiledblend.sources.base import Alpha, RasterSource, SourceSpec
from tiledblend.sources.colour import rgb_doubt
from tiledblend.sources.outlines.magic import could_be_outlines
from tiledblend.sources.unread import (
    ZARR_METADATA,
    mistaken_address,
    why_no_folder,
    why_no_image,
    why_not_the_slide,
)
from tiledblend.sources.views import select

HEAD_BYTES = 132
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CACHED_SOURCES = 32
MAX_ZARR_BYTES = 64 << 20

Plane = Mapping[str, int] | Iterable[tuple[str, int]]


def open_source(
    path: str | os.PathLike[str] | SourceSpec,
    *,
    series: int | None = None,
    level: int = 0,
    channels: Iterable[int] | None = None,
    plane: Plane = (),
    allow_sparse: bool = False,
    rgb: bool = False,
    classes: str | Iterable[str] = (),
    mask: bool = False,
) -> RasterSource:
    """Open an image by its metadata only; the format is known by its first bytes or its zarr metadata.

    path: a local path, a URL (file://, s3://, gs://, az://, https://), either with "#1" for its series 1, or a
    `SourceSpec` that already says the rest.
    series: TIFF series or OME-Zarr image index. level: the pyramid level taken as level 0. channels: indices kept, in
    this order. plane: index along each further axis, `{"z": 3}`. allow_sparse, rgb: as of `SourceSpec`. classes: of a
    file of outlines, those that count, later ones over earlier ones. mask: accept every dtype that a mask may have
    (`MASK_DTYPES`).

    The same spec gives the same object within a process, until the file changes.
    Raises BadInputError when it is missing, is no image, or cannot be read as one 2-D image, UsageError for an argument
    of another kind.

    >>> import tempfile, numpy, tifffile
    >>> path = tempfile.mkdtemp() + "/slide.tif"
    >>> tifffile.imwrite(path, numpy.zeros((40, 60, 3), "uint8"), photometric="rgb")
    >>> open_source(path).shape
    (40, 60)
    """
    if isinstance(path, SourceSpec):
        if series is not None or level or channels is not None or plane or allow_sparse or rgb or classes:
            raise UsageError(f"{path.path}: series, level, channels and plane are already stated by the spec")
        spec = path
    else:
        made = make_spec(path, series=series, level=level, channels=channels, plane=plane)
        spec = replace(made, allow_sparse=allow_sparse, rgb=rgb)
    named = (classes,) if isinstance(classes, str) else tuple(classes)
    return reopen(outlines_spec(spec, named), True) if named else reopen(spec, mask)


def outlines_spec(spec: SourceSpec, classes: tuple[str, ...], invalid: Any = "repair") -> SourceSpec:
    """The spec of these classes of a file of outlines. Raises UsageError when `spec` is none, or selects channels."""
    from tiledblend.sources.outlines.source import PolygonSpec

    if recognise(spec.path) != "polygons":
        raise UsageError(f"{spec.path}: classes and invalid are for outlines (GeoJSON, XML, HALO, GeoParquet)")
    unfit = {"series": spec.series is not None, "channels": spec.channels is not None, "plane": bool(spec.plane)}
    if any(unfit.values()):
        raise UsageError(f"{spec.path}: outlines have no {', '.join(name for name, is_so in unfit.items() if is_so)}")
    return PolygonSpec(spec.path, level=spec.level, classes=classes, invalid=invalid)


def make_spec(
    path: str | os.PathLike[str],
    *,
    series: int | None = None,
    level: int = 0,
    channels: Iterable[int] | None = None,
    plane: Plane = (),
) -> SourceSpec:
    """The spec of these arguments, with a local path made absolute: it must open in another process too.

    path: `slide.svs#1` is series 1 of slide.svs, where no file is called so.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise UsageError(f"{type(path).__name__} is no path or URL; arrays become sources with tiledblend.from_array")
    name = os.fsdecode(path)
    try:
        kept = None if channels is None else tuple(int(c) for c in channels)
        pairs = plane.items() if isinstance(plane, Mapping) else plane
        at = tuple(sorted((str(axis).lower(), int(index)) for axis, index in pairs))
    except (TypeError, ValueError):
        raise UsageError(
            f'{name}: channels {channels!r} and plane {plane!r} must be as [0, 2] and {{"z": 3}}'
        ) from None
    path, chosen = _selected(_absolute(name))
    if chosen is not None and series not in (None, chosen):
        raise UsageError(f"{name}: says series {chosen}, and series {series} is asked for; give one of them")
    return SourceSpec(path=path, series=chosen if series is None else series, level=level, channels=kept, plane=at)


def _selected(path: str) -> tuple[str, int | None]:
    """The path without `#N` at its end, and N, the series that it selects; a file may be called so itself."""
    found = re.fullmatch(r"(.+)#(\d{1,6})", path)
    if found is None or (not is_remote(path) and os.path.exists(path)):
        return path, None
    return found[1], int(found[2])


def reopen(spec: SourceSpec, mask: bool = False) -> RasterSource:
    """The source of `spec` from this process's cache, opened when it is not there or its file has changed.

    Sources of files pickle as a call of this function.
    """
    return _CACHE.get(spec, mask)


def forget_sources() -> None:
    """Empty the process's cache of open sources: closes files and frees decoded images that nobody else holds."""
    _CACHE.clear()


def is_remote(path: str) -> bool:
    """True for URLs (s3://, gs://, az://, https://, …) other than file://."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path)) and not path.lower().startswith("file://")


def require_possible(path: str) -> None:
    """Raises BadInputError for a path that no file can have: one with a null character or half a character."""
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise BadInputError(f"{path}: no such file; no name has the character that stands in this one")


def _absolute(path: str) -> str:
    require_possible(path)
    if is_remote(path):
        try:
            return checked_url(path)
        except UsageError as error:
            raise BadInputError(str(error)) from None
    mistake = mistaken_address(path)
    if mistake:
        raise BadInputError(f"{path}: {mistake}")
    if path.lower().startswith("file:/"):  # RFC 8089 has it with one slash, too
        path = path_of_file_url(path)
        require_possible(path)
    return os.path.abspath(os.path.expanduser(path))


class _SourceCache:
    """The last few sources by (spec, mask). Opening one holds up only those who ask for the same one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._sources: OrderedDict[tuple[SourceSpec, bool], tuple[Any, RasterSource]] = OrderedDict()
        self._opening: dict[tuple[SourceSpec, bool], threading.Lock] = {}

    def get(self, spec: SourceSpec, mask: bool) -> RasterSource:
        key = (spec, mask)
        state = _stored_state(spec.path)
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            found = self._find(key, state)
            if found is None:
                found = _open(spec, mask)
                self._keep(key, state, found)
            return found

    def clear(self) -> None:
        with self._lock:
            self._sources.clear()
            self._opening = {key: lock for key, lock in self._opening.items() if lock.locked()}

    def _find(self, key: tuple[SourceSpec, bool], state: Any) -> RasterSource | None:
        with self._lock:
            known = self._sources.get(key)
            if known is None or known[0] != state:
                return None
            self._sources.move_to_end(key)
        source = known[1]
        try:
            # Documents below the first, such as those of a zarr's levels, are no part of the state.
            source.require_unchanged()
        except BadInputError:
            return None
        return source

    def _keep(self, key: tuple[SourceSpec, bool], state: Any, source: RasterSource) -> None:
        with self._lock:
            self._sources[key] = (state, source)
            self._sources.move_to_end(key)
            while len(self._sources) > self._size:
                old, _ = self._sources.popitem(last=False)
                self._opening.pop(old, None)


_CACHE = _SourceCache(CACHED_SOURCES)


def _stored_state(path: str) -> Any:
    """Something that changes when the file or object (or a directory's metadata) does; None for what is not there."""
    if (inside := split_member(path)) is not None:
        path = inside[0]
    if is_remote(path):
        from tiledblend.bytes.remote import readable_state

        places = (path, f"{path.rstrip('/')}/zarr.json", f"{path.rstrip('/')}/.zattrs")
        return next((state for state in map(readable_state, places) if state is not None), None)
    names = [path, *(os.path.join(path, name) for name in ZARR_METADATA)] if os.path.isdir(path) else [path]
    states = []
    for name in names:
        try:
            found = os.stat(name)
        except OSError:
            continue
        # A directory's own time moves with every chunk written beside the metadata: only its identity counts.
        is_dir = stat.S_ISDIR(found.st_mode)
        states.append((name, found.st_ino) if is_dir else (name, found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(states)


def recognise(path: str) -> str:
    """What a path or URL holds: "tiff", "slide" (what OpenSlide reads), "image" (PNG, JPEG, WebP), "zarr", "archive" (a
    zarr in a zip, or a folder in one) or "polygons" (outlines: JSON or XML text, gzip, Parquet).

    Raises BadInputError for anything else, StorageError when an object store does not answer.
    """
    if split_member(path) is not None:
        return _archived(path)
    if is_remote(path):
        return _recognise_remote(path)
    if os.path.isdir(path):
        if any(os.path.isfile(os.path.join(path, name)) for name in ZARR_METADATA):
            return "zarr"
        if slide_vendor(path) is not None:
            return "slide"
        raise BadInputError(f"{path}: {why_no_folder(path)}")
    return _recognise_file(path, _stored_state(path))


@lru_cache(maxsize=CACHED_SOURCES)
def _recognise_file(path: str, state: Any) -> str:
    """As `recognise`, of a local file. state: changes when the file does; a file is asked for several times."""
    head = _first_bytes(path)
    if head.startswith(MAGIC):
        return _archived(path)
    kind = "slide" if slide_vendor(path, head) is not None else _kind_of(head, path)
    why_not = why_not_the_slide(path)
    if why_not:
        raise BadInputError(f"{path}: {why_not}")
    if kind is None:
        raise BadInputError(f"{path}: {why_no_image(Path(path), head)}")
    return kind


def slide_vendor(path: str, head: bytes | None = None) -> str | None:
    """The vendor of a local file or folder that OpenSlide reads, None for all else. head: its first bytes, if known."""
    from tiledblend.sources.slides.vendors import has_dicom, tiff_vendor, vendor_of

    if os.path.isdir(path):
        return "dicom" if has_dicom(path) else None
    head = _first_bytes(path) if head is None else head
    if not head.startswith(TIFF_MAGIC):
        return vendor_of(path, head)
    reader = open_bytes(path)
    try:
        return tiff_vendor(reader)
    finally:
        reader.close()


def _kind_of(head: bytes, path: str) -> str | None:
    """What a file or object of these first bytes is, or None."""
    if head.startswith(TIFF_MAGIC):
        return "tiff"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if could_be_outlines(head) and Path(path).name not in ZARR_METADATA:
        return "polygons"
    return None


def _recognise_remote(path: str) -> str:
    """As `recognise`. A web server may answer a directory's address with a page, or deny it, as a bucket does that may
    not be listed: zarr's documents come before text and before errors."""
    from tiledblend.bytes.remote import RemoteFile, read_object, stored_state

    head, found, failure = b"", False, None
    try:
        if found := stored_state(path) is not None:
            reader = RemoteFile(path)
            head = reader.pread(0, min(HEAD_BYTES, reader.size))
    except StorageError as error:
        failure = error
    if head.startswith(MAGIC):
        return _archived(path)
    kind = _kind_of(head, path)
    _require_no_remote_slide(path, head)
    if kind in ("tiff", "image"):
        return kind
    folder = path.rstrip("/")
    if any(_is_document(read_object(f"{folder}/{name}", MAX_ZARR_BYTES)) for name in ZARR_METADATA):
        return "zarr"
    if failure is not None:
        raise failure
    if not found:
        raise BadInputError(f"{path}: no such object, and no zarr metadata below it")
    if kind is None:
        raise BadInputError(f"{path}: {why_no_image(Path(path), head)}")
    return kind


def _archived(path: str) -> str:
    """ "archive" where a zarr is in the zip, at its root or in its one folder, or in the folder that is named."""
    from tiledblend.sources.zarr.root import root_of

    if root_of(path) is None:
        where = "there" if split_member(path) else "at its root"
        raise BadInputError(f"{path}: a zip archive without zarr metadata {where}; unpack it first")
    return "archive"


def _require_no_remote_slide(path: str, head: bytes) -> None:
    """Raise BadInputError for an object that only OpenSlide reads; a TIFF's tags are looked at when it is opened."""
    from tiledblend.sources.slides.vendors import by_first_bytes, on_disks_only

    vendor = by_first_bytes(urlsplit(path).path, head)
    if vendor is not None:
        raise on_disks_only(path, vendor)


def _is_document(data: bytes | None) -> bool:
    """False for the page that some servers give for what they do not have."""
    return data is not None and not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _open(spec: SourceSpec, mask: bool) -> RasterSource:
    try:
        source = _open_whole(spec, mask)
    except (TiledblendError, MemoryError, OSError):
        raise
    except Exception as error:
        # Metadata can be wrong in more ways than its readers foresee: still one line that names the file.
        raise BadInputError(
            f"{spec}: cannot be opened: {str(error) or type(error).__name__}; restore the file"
        ) from error
    if not getattr(type(source), "handles_selection", False):
        source = select(source, spec, mask=mask)
    return source if mask else _with_colours_said(source, spec)


def _with_colours_said(source: RasterSource, spec: SourceSpec) -> RasterSource:
    """The source that was just made, RGB where `spec` says so; a note where it might be. Raises BadInputError."""
    colours = source.channels - (source.alpha is not Alpha.NONE)
    if spec.rgb and colours != 3:
        raise BadInputError(
            f"{spec}: rgb is said of three channels, it has {colours}; select three with channels: [0, 1, 2]"
        )
    source.is_rgb = source.is_rgb or spec.rgb
    doubt = rgb_doubt(source.info.channel_names, colours, source.dtype, is_rgb=source.is_rgb)
    if doubt:
        source.info = replace(source.info, notes=(*source.info.notes, *doubt))
    return source


def _open_whole(spec: SourceSpec, mask: bool) -> RasterSource:
    kind = recognise(spec.path)
    if kind == "zarr":
        from tiledblend.sources.zarr.source import open_zarr

        return open_zarr(spec, mask=mask)
    if kind == "archive":
        from tiledblend.sources.zarr.root import root_of
        from tiledblend.sources.zarr.source import open_zarr

        return open_zarr(spec, mask=mask, root=root_of(spec.path))
    if kind == "image":
        from tiledblend.sources.pictures.source import open_image

        return open_image(spec, mask=mask)
    if kind == "polygons":
        from tiledblend.sources.outlines.source import open_polygons

        return open_polygons(spec)
    if kind == "slide":
        from tiledblend.sources.slides.source import open_slide

        return open_slide(spec, slide_vendor(spec.path) or "")
    from tiledblend.sources.tiff.source import open_tiff

    return open_tiff(spec, mask=mask)


def _first_bytes(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadInputError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
