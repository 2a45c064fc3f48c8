"""A file of outlines as flat arrays of edges, whatever program wrote it. Coordinates are level-0 pixels."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiledblend.bytes.ranges import read_whole
from tiledblend.errors import BadInputError
from tiledblend.kernels.scanline import edges_of_rings
from tiledblend.sources.outlines.bounds import MAX_FILE_BYTES, most_bytes
from tiledblend.sources.outlines.features import Feature
from tiledblend.sources.outlines.geojson import parse_geojson
from tiledblend.sources.outlines.magic import GZIP, PARQUET, first_sign
from tiledblend.sources.outlines.markup import parse_xml
from tiledblend.sources.outlines.validity import Invalid, checked


@dataclass(frozen=True)
class Outlines:
    """Every polygon feature of a file.

    edges: (m, 4) float64, as `edges_of_rings`, feature after feature. starts: (features + 1,) int64, where each
    feature's edges begin. bounds: (features, 4) float64 of x0, y0, x1, y1. areas: (features,) float64, square pixels,
    NaN where a feature was repaired. classes: a name per feature, such as "Tumor: Positive", or "unclassified".
    format: for people. notes: what was repaired or left out. digest: of the file.
    """

    edges: NDArray[np.float64]
    starts: NDArray[np.int64]
    bounds: NDArray[np.float64]
    areas: NDArray[np.float64]
    classes: tuple[str, ...]
    format: str
    notes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.classes)


def read_outlines(path: str, invalid: Invalid = "repair") -> Outlines:
    """The polygons of a GeoJSON (FeatureCollection, bare array of features, Feature or geometry), an XML file of ASAP,
    ImageScope or HALO, or a GeoParquet file; GeoJSON and XML also inside gzip.

    Each feature that is no valid polygon (an outline that crosses itself, a ring of two points) is named, and repaired
    or refused: a repaired one keeps what lies inside by the even-odd rule; overlapping parts of one feature are united.
    Points and lines have no inside and are left out, with a note.

    Raises BadInputError when the file is none of these, or a feature's coordinates are no numbers.
    """
    with _no_collection():
        kind, digest, features, notes = _parsed_file(path)
        features, areas, repaired = checked(features, path, invalid)
        return _flat(features, areas, kind, (*notes, *repaired), digest)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new objects and no cycle among them: looking for cycles takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parsed_file(path: str) -> tuple[str, str, list[Feature], list[str]]:
    """(format, digest, features, notes)."""
    data = read_whole(path, MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(PARQUET):
        from tiledblend.sources.outlines.geoparquet import parse_geoparquet

        return "GeoParquet", digest, *parse_geoparquet(data, path)
    if data.startswith(GZIP):
        data = _inflated(data, path)
        if first_sign(data) not in (b"{", b"[", b"<"):
            raise BadInputError(f"{path}: gzip, but no GeoJSON and no XML in it; unpack it and give the file itself")
    if first_sign(data) == b"<":
        kind, features, notes = parse_xml(data, path)
        return kind, digest, features, notes
    try:
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise BadInputError(f"{path}: not GeoJSON: {' '.join(str(error).split())}") from error
    del data  # as large as all that is made of it
    return "GeoJSON", digest, *parse_geojson(text, path)


def _inflated(data: bytes, path: str) -> bytes:
    """What gzip holds, of one or several members, up to `most_bytes`."""
    limit = most_bytes(len(data))
    try:
        text = gzip.GzipFile(fileobj=io.BytesIO(data)).read(limit + 1)
    except EOFError as error:
        raise BadInputError(f"{path}: its gzip stream ends early; the file is truncated") from error
    except (OSError, zlib.error) as error:
        raise BadInputError(f"{path}: broken gzip: {error}") from error
    if len(text) > limit:
        raise BadInputError(f"{path}: gzip of more than {limit >> 20:,} MiB; unpack it and give the file itself")
    return text


def _flat(
    features: list[Feature], areas: NDArray[np.float64], kind: str, notes: tuple[str, ...], digest: str
) -> Outlines:
    rings = [[ring for polygon in feature.polygons for ring in polygon] for feature in features]
    every = [ring for part in rings for ring in part]
    feature_of_ring = np.repeat(np.arange(len(features)), [len(part) for part in rings])
    edges, ring_of_edge = edges_of_rings(every)
    starts = np.searchsorted(feature_of_ring[ring_of_edge], np.arange(len(features) + 1)).astype(np.int64)
    bounds = np.empty((0, 4))
    if features:
        first = np.cumsum([0, *(sum(map(len, part)) for part in rings[:-1])])
        points = np.concatenate(every)
        bounds = np.hstack([np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)])
    return Outlines(edges, starts, bounds, areas, tuple(f.klass for f in features), kind, notes, digest)
