"""Sound files that hostile ones are made from: every layout of TIFF and zarr that is read, small, without a zero pixel.

A base knows where its parts are, so that a mutation can be aimed: directories, tables, segments, documents, chunks.
"""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

sys.path.append(str(Path(__file__).parents[1]))
from ndpi import ndpi_bytes

# Multiples of the tile: a writer pads a tile at the edge with zeros, which a mutant could bring to light.
HEIGHT, WIDTH = 64, 96
RAGGED = (72, 88)
TILE = 32
DARKEST = 40


@dataclass(frozen=True)
class Span:
    """Bytes of one file. kind: "header", "directory", "table", "segment", "document", "chunk", "text"."""

    file: str
    kind: str
    start: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A tag of a TIFF directory, as stored: where its 12 or 20 bytes are and how they are laid out."""

    at: int
    order: str
    big: bool
    code: int
    kind: int
    count: int
    values_at: int


@dataclass(frozen=True)
class Base:
    """name: of the layout. files: by path, a single file under "". checked: whether its stored pixels carry a checksum,
    so that any damage to them must be found."""

    name: str
    files: dict[str, bytes]
    spans: tuple[Span, ...]
    checked: bool
    entries: tuple[Entry, ...] = ()
    links: tuple[int, ...] = ()

    @property
    def is_tiff(self) -> bool:
        return "" in self.files


def pixels(channels: int = 3, dtype: str = "uint8", shape: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """(y, x, channel): waves and noise, nowhere under DARKEST."""
    rng = np.random.default_rng(11)
    y, x, c = np.meshgrid(*(np.arange(n) for n in (*shape, channels)), indexing="ij")
    waves = 140 + 60 * np.sin(y / 9 + c) * np.cos(x / 13) + rng.integers(-9, 10, (*shape, channels))
    values = np.clip(waves, DARKEST, 250)
    return values.astype(dtype) if dtype == "uint8" else (values * (257 if dtype == "uint16" else 1)).astype(dtype)


# --- TIFF


def _plain(**options: Any) -> Callable[[Path], None]:
    channels, dtype = options.pop("channels", 3), options.pop("dtype", "uint8")

    def write(path: Path) -> None:
        data = pixels(channels, dtype, RAGGED if "rowsperstrip" in options else (HEIGHT, WIDTH))
        if options.get("planarconfig") == "separate":
            data = np.moveaxis(data, 2, 0)
        photometric = "rgb" if channels in (3, 4) else "minisblack"
        how = {"photometric": photometric, "metadata": None, **options}
        tifffile.imwrite(path, data if channels > 1 else data[:, :, 0], **how)

    return write


def _ndpi(path: Path) -> None:
    path.write_bytes(ndpi_bytes(pixels()))


def _pyramid(**options: Any) -> Callable[[Path], None]:
    ome, svs = options.pop("ome", False), options.pop("svs", False)

    def write(path: Path) -> None:
        data = pixels()
        how = {"photometric": "rgb", "tile": (16, 16), **options}
        with tifffile.TiffWriter(path, ome=ome, bigtiff=ome) as file:
            if svs:
                text = "Aperio Image Library v11\r\n96x64 (16x16) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
                file.write(data, metadata=None, description=text, **how)
                file.write(data[::4, ::4], metadata=None, description="Aperio Image Library", photometric="rgb")
                file.write(data[::2, ::2], metadata=None, description=text, **how)
                return
            file.write(data, subifds=2, metadata={"axes": "YXS"} if ome else None, **how)
            file.write(data[::2, ::2], subfiletype=1, metadata=None, **how)
            file.write(data[::4, ::3], subfiletype=1, metadata=None, **how)

    return write


_TILED = {"tile": (TILE, TILE)}
_TIFFS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "raw-tiled": (_plain(**_TILED), False),
    "raw-striped": (_plain(rowsperstrip=16), False),
    "raw-planar": (_plain(**_TILED, planarconfig="separate"), False),
    "deflate": (_plain(**_TILED, compression="zlib", predictor=True), True),
    "deflate-striped": (_plain(rowsperstrip=16, compression="zlib", byteorder=">"), True),
    "deflate-bigtiff": (_plain(**_TILED, compression="zlib", bigtiff=True, dtype="uint16"), True),
    "deflate-float": (_plain(**_TILED, compression="zlib", dtype="float32", channels=1, predictor=True), True),
    "lzw": (_plain(**_TILED, compression="lzw"), False),
    "lzma": (_plain(**_TILED, compression="lzma"), False),
    "packbits": (_plain(rowsperstrip=16, compression="packbits"), False),
    "zstd": (_plain(**_TILED, compression="zstd"), False),
    "jpeg": (_plain(**_TILED, compression="jpeg"), False),
    "jpeg-striped": (_plain(rowsperstrip=16, compression="jpeg", subsampling=(2, 2)), False),
    "jpeg-grey": (_plain(**_TILED, compression="jpeg", channels=1), False),
    "jpeg2000": (_plain(**_TILED, compression="jpeg2000"), False),
    "png": (_plain(**_TILED, compression="png"), True),
    "webp": (_plain(**_TILED, compression="webp"), False),
    "lerc": (_plain(**_TILED, compression="lerc", channels=1, dtype="float32"), True),
    "jpegxl": (_plain(**_TILED, compression="jpegxl"), False),
    "ome-subifds": (_pyramid(ome=True, compression="zlib"), True),
    "subifds-jpeg": (_pyramid(compression="jpeg"), False),
    "bigtiff-jpeg": (_plain(**_TILED, compression="jpeg", bigtiff=True, byteorder=">"), False),
    "planar-deflate": (_plain(**_TILED, planarconfig="separate", compression="zlib", byteorder=">"), True),
    "svs": (_pyramid(svs=True, compression="jpeg"), False),
    "svs-jpeg2000-rgb": (_pyramid(svs=True, compression="aperio_jp2000_rgb"), False),
    "svs-jpeg2000-ycbcr": (_pyramid(svs=True, compression="aperio_jp2000_ycbc"), False),
    "ndpi": (_ndpi, False),
}


def _tiff_base(name: str, path: Path, checked: bool) -> Base:
    data = path.read_bytes()
    spans, entries, links = [Span("", "header", 0, 16)], [], []
    with tifffile.TiffFile(path) as file:
        pages = [page for series in file.pages for page in (series, *(series.pages or ()))]  # type: ignore[union-attr]
        big, order = file.is_bigtiff, file.byteorder
        size, head = (20, 8) if big else (12, 2)
        links.append(8 if big else 4)
        for page in pages:
            number = struct.unpack_from(order + ("Q" if big else "H"), data, page.offset)[0]
            spans.append(Span("", "directory", page.offset, head + number * size + (8 if big else 4)))
            links.append(page.offset + head + number * size)
            for index, tag in enumerate(page.tags):
                at = page.offset + head + index * size
                entries.append(Entry(at, order, big, tag.code, int(tag.dtype), tag.count, tag.valueoffset))
                if tag.valueoffset > at + size or tag.valueoffset < at:
                    kind = "table" if tag.code in (273, 279, 324, 325, 330) else "text"
                    spans.append(Span("", kind, tag.valueoffset, tag.valuebytecount))
            spans += [
                Span("", "segment", offset, count)
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
    return Base(name, {"": data}, tuple(spans), checked, tuple(entries), tuple(links))


# --- zarr


def _v3(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = np.moveaxis(pixels(dtype=options.pop("dtype", "uint8")), 2, 0)
        how = {"chunks": (3, TILE, TILE), "dimension_names": ["c", "y", "x"], **options}
        array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **how)
        array[:] = data

    return write


def _v2(compressor: Any, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = np.moveaxis(pixels(), 2, 0)
        array = zarr.create_array(
            path, shape=data.shape, dtype=data.dtype, chunks=(3, TILE, TILE), zarr_format=2, compressors=compressor,
            attributes={"_ARRAY_DIMENSIONS": ["c", "y", "x"]}, **{"filters": None} | options,
        )  # fmt: skip
        array[:] = data

    return write


def _ome(version: str, *, consolidated: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        base = np.moveaxis(pixels(), 2, 0)
        levels = [base, base[:, ::2, ::2]]
        axes = [{"name": "c", "type": "channel"}] + [
            {"name": n, "type": "space", "unit": "micrometer"} for n in ("y", "x")
        ]
        datasets = [
            {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}]}
            for k in range(2)
        ]
        scales = [{"version": version, "name": "a", "axes": axes, "datasets": datasets}]
        v3 = version == "0.5"
        attributes: dict[str, Any] = (
            {"ome": {"version": version, "multiscales": scales}} if v3 else {"multiscales": scales}
        )
        group = zarr.create_group(path, zarr_format=3 if v3 else 2, attributes=attributes)
        for number, level in enumerate(levels):
            how: dict[str, Any] = {"chunks": (3, 16, 16), "shards": (3, TILE, TILE)} if v3 else {"chunks": (3, 16, 16)}
            array = group.create_array(
                str(number),
                shape=level.shape,
                dtype=level.dtype,
                dimension_names=["c", "y", "x"] if v3 else None,
                **how,
            )
            array[:] = level
        if consolidated:
            with warnings.catch_warnings():  # zarr v3 has no specification of it yet
                warnings.simplefilter("ignore", UserWarning)
                zarr.consolidate_metadata(path)

    return write


def _zarrs() -> dict[str, tuple[Callable[[Path], None], bool]]:
    from numcodecs import BZ2, LZ4, LZMA, Blosc, Delta, GZip, Shuffle, Zlib, Zstd
    from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

    sums = {"compressors": (ZstdCodec(level=1), Crc32cCodec())}
    shards: dict[str, Any] = {"shards": (3, 2 * TILE, 2 * TILE)}
    first: dict[str, Any] = {"shards": {"shape": shards["shards"], "index_location": "start"}}
    return {
        "v3-raw": (_v3(compressors=None), False),
        "v3-zstd": (_v3(compressors=ZstdCodec(level=1)), False),
        "v3-zstd-checksum": (_v3(compressors=ZstdCodec(level=1, checksum=True)), True),
        "v3-crc32c": (_v3(**sums), True),
        "v3-gzip": (_v3(compressors=GzipCodec(level=1)), True),
        "v3-blosc": (_v3(compressors=BloscCodec(cname="lz4")), False),
        "v3-transposed": (_v3(filters=TransposeCodec(order=(1, 2, 0)), compressors=ZstdCodec(level=1)), False),
        "v3-sharded": (_v3(**shards, compressors=ZstdCodec(level=1)), False),
        "v3-sharded-raw": (_v3(**shards, compressors=None), False),
        "v3-sharded-gzip": (_v3(**shards, compressors=GzipCodec(level=1)), True),
        "v3-sharded-blosc": (_v3(**shards, compressors=BloscCodec(cname="zstd"), dtype="uint16"), False),
        "v3-sharded-crc32c": (_v3(**shards, **sums), True),
        "v3-sharded-start": (_v3(**first, **sums), True),
        "v2-raw": (_v2(None), False),
        "v2-blosc": (_v2(Blosc("lz4")), False),
        "v2-gzip": (_v2(GZip(1)), True),
        "v2-zlib": (_v2(Zlib(1)), True),
        "v2-bz2": (_v2(BZ2(1)), True),
        "v2-lzma": (_v2(LZMA(preset=1)), True),
        "v2-zstd": (_v2(Zstd(1)), False),
        "v2-lz4": (_v2(LZ4()), False),
        "v2-filtered": (_v2(Zlib(1), filters=[Delta("u1"), Shuffle(1)]), True),
        "v2-fortran": (_v2(GZip(1), order="F"), True),
        "ome-0.5": (_ome("0.5"), False),
        "ome-0.5-consolidated": (_ome("0.5", consolidated=True), False),
        "ome-0.4": (_ome("0.4"), False),
        "ome-0.4-consolidated": (_ome("0.4", consolidated=True), False),
    }


_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def _zarr_base(name: str, path: Path, checked: bool) -> Base:
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    spans = [
        Span(key, "document" if key.rpartition("/")[2] in _DOCUMENTS else "chunk", 0, len(data))
        for key, data in files.items()
    ]
    return Base(name, files, tuple(spans), checked)


def make_corpus(folder: Path) -> Iterator[Base]:
    """Every base, written below `folder` once."""
    for name, (write, checked) in _TIFFS.items():
        path = folder / f"{name}.tif"
        write(path)
        yield _tiff_base(name, path, checked)
    for name, (write, checked) in _zarrs().items():
        path = folder / f"{name}.zarr"
        write(path)
        yield _zarr_base(name, path, checked)
