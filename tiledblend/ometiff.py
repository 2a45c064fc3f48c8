"""A result as one OME-TIFF: BigTIFF, tiled, a pyramid in SubIFDs, for QuPath and whatever else reads TIFF."""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import RefusedError, StorageError, TiledblendError, UsageError
from tiledblend.export import refuse_existing
from tiledblend.geometry import Region, ceil_div
from tiledblend.run import ProgressEvent
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.opening import open_source

Compression = Literal["deflate", "zstd", "jpeg", "none"]
COMPRESSIONS: tuple[Compression, ...] = ("deflate", "zstd", "jpeg", "none")
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
PIXEL_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}
BLOCK_TILES = 8
"""Tiles that are read from the source at once, side by side."""
AHEAD = 3
"""Blocks that are read before the writer asks for them."""


@dataclass(frozen=True, slots=True)
class TiffOptions:
    """compression: deflate, zstd and none keep every bit; jpeg is for uint8 grey or RGB, at `quality` 1 to 100.
    tile: side in pixels, a multiple of 16. threads: for reading, and as many for compressing."""

    compression: Compression = "deflate"
    quality: int = 90
    tile: int = 512
    threads: int = 2

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"compression {self.compression!r} must be one of {', '.join(COMPRESSIONS)}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality {self.quality} must be from 1 to 100")
        if self.tile < 16 or self.tile % 16 or self.tile > 8192:
            raise UsageError(f"tile {self.tile} must be a multiple of 16 from 16 to 8192; use --tile 512")
        if self.threads < 1:
            raise UsageError(f"threads {self.threads} must be at least 1")


@dataclass(frozen=True)
class ExportReport:
    """What an export did. pixels: of all levels and planes that were written one by one."""

    uri: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    levels: int
    compression: str
    bytes_written: int
    pixels: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {**asdict(self), "shape": list(self.shape)}


def export_ometiff(
    result: str | os.PathLike[str] | RasterSource,
    path: str | os.PathLike[str],
    options: TiffOptions | None = None,
    *,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> ExportReport:
    """Write a result (or any source) with all its levels as an OME-TIFF at the new `path`.

    RGB and RGBA are stored pixel by pixel, other images one page a channel. Pixel size, channel names and colours go
    into the OME-XML; nothing else of the source's metadata does. The file is written under another name in the same
    folder and gets its own when it is whole and on disk. Memory is a few blocks of tiles, whatever the size.

    Raises RefusedError when `path` exists, UsageError when jpeg cannot hold the image, BadInputError, StorageError.
    """
    options = options or TiffOptions()
    path = Path(path)
    source = result if isinstance(result, RasterSource) else open_source(result)
    _check(source, path, options)
    refuse_existing(path)
    started = time.perf_counter()
    temporary = path.with_name(f".{path.name}.tiledblend-tmp-{uuid.uuid4().hex[:12]}")
    writer = _Writer(source, options, progress)
    try:
        writer.write(temporary)
        size = _sync(temporary)
        _publish(temporary, path)
    except TiledblendError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return ExportReport(
        str(path),
        source.shape,
        source.channels,
        source.dtype.name,
        len(source.levels),
        options.compression,
        size,
        writer.pixels,
        time.perf_counter() - started,
    )


def _check(source: RasterSource, path: Path, options: TiffOptions) -> None:
    if source.dtype.name not in PIXEL_TYPES:
        raise UsageError(f"{source.name}: {source.dtype.name} is not written as OME-TIFF; {', '.join(PIXEL_TYPES)} are")
    if options.compression == "jpeg" and (source.dtype != np.uint8 or source.alpha is not Alpha.NONE):
        alpha = " with alpha" if source.alpha is not Alpha.NONE else ""
        raise UsageError(
            f"{path}: jpeg holds uint8 without alpha, not {source.dtype.name}{alpha}; use --compression deflate"
        )
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(f"{path}: an OME-TIFF is named .ome.tif, so that readers know it")


def _sync(path: Path) -> int:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name, only if that is still free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise RefusedError(f"{path}: exists; name another output or remove it first") from None
    except OSError:
        # No hard links here (FAT, some network shares): the gap between looking and naming is as small as can be.
        refuse_existing(path)
        os.rename(temporary, path)


class _Writer:
    """One export: the pages of level 0, then those of each smaller level in their SubIFDs."""

    def __init__(
        self, source: RasterSource, options: TiffOptions, progress: Callable[[ProgressEvent], None] | None
    ) -> None:
        self.source, self.options, self.progress = source, options, progress
        self.interleaved = source.is_rgb and source.channels in (3, 4)
        self.planes = 1 if self.interleaved else source.channels
        tile = options.tile
        shapes = [level.shape for level in source.levels]
        self.tiles = self.planes * sum(ceil_div(h, tile) * ceil_div(w, tile) for h, w in shapes)
        self.pixels = self.planes * sum(h * w for h, w in shapes)
        self._done = self._done_pixels = 0
        self._started = time.monotonic()

    def write(self, path: Path) -> None:
        import tifffile

        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            for level in range(len(self.source.levels)):
                tiff.write(self._tiles(level), **self._page(level))

    def _page(self, level: int) -> dict[str, Any]:
        """Arguments of `tifffile.TiffWriter.write` for one level."""
        import tifffile

        source, options = self.source, self.options
        height, width = source.levels[level].shape
        page: dict[str, Any] = {
            "shape": (height, width, source.channels) if self.interleaved else (self.planes, height, width),
            "dtype": source.dtype,
            "tile": (options.tile, options.tile),
            "photometric": "rgb" if self.interleaved else "minisblack",
            "metadata": None,
            "software": False,
            "maxworkers": options.threads,
            "buffersize": 1 << 25,
        }
        if self.interleaved:
            page |= {"planarconfig": "contig", "extrasamples": ["unassalpha"] if source.channels == 4 else None}
        page |= _compression(options, source.dtype, is_rgb=self.interleaved)
        size = source.pixel_size_um
        if size is not None:
            fine_y, fine_x = source.shape
            per_cm = (1e4 * width / (fine_x * size[1]), 1e4 * height / (fine_y * size[0]))
            page |= {"resolution": per_cm, "resolutionunit": tifffile.RESUNIT.CENTIMETER}
        if level:
            return page | {"subfiletype": 1}
        return page | {"subifds": len(source.levels) - 1, "description": ome_xml(source, interleaved=self.interleaved)}

    def _tiles(self, level: int) -> Iterator[NDArray[Any]]:
        """Tiles of a level, plane after plane, row after row; those at the edges are smaller."""
        blocks = self._blocks(level)
        with ThreadPoolExecutor(self.options.threads) as pool:
            ahead: deque[tuple[Region, Future[NDArray[Any]]]] = deque()
            for source, region in blocks:
                ahead.append((region, pool.submit(source.read, region, level)))
                if len(ahead) > AHEAD:
                    yield from self._cut(*ahead.popleft())
            while ahead:
                yield from self._cut(*ahead.popleft())

    def _blocks(self, level: int) -> Iterator[tuple[RasterSource, Region]]:
        height, width = self.source.levels[level].shape
        tile = self.options.tile
        for plane in range(self.planes):
            source = self._plane(plane)
            for y in range(0, height, tile):
                for x in range(0, width, tile * BLOCK_TILES):
                    yield source, Region(y, x, min(y + tile, height), min(x + tile * BLOCK_TILES, width))

    def _plane(self, plane: int) -> RasterSource:
        """One channel as a source of its own, so that the others are not decoded with it."""
        if self.planes == 1:
            return self.source
        from tiledblend.sources.views import SelectedSource

        spec = replace(self.source.spec, channels=(plane,), level=0)
        if self.source.spec.channels is None and os.path.exists(spec.path):
            return open_source(replace(self.source.spec, channels=(plane,)))
        return SelectedSource(self.source, spec)

    def _cut(self, region: Region, reading: Future[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        pixels = reading.result()
        for x in range(0, pixels.shape[1], self.options.tile):
            part = pixels[:, x : x + self.options.tile]
            self._tell(part.shape[0] * part.shape[1])  # before: nobody asks for more after the last tile
            yield _padded(part if self.interleaved else part[:, :, 0], self.options.tile)

    def _tell(self, pixels: int) -> None:
        self._done += 1
        self._done_pixels += pixels
        if self.progress is not None:
            seconds = time.monotonic() - self._started
            self.progress(ProgressEvent(self._done, self.tiles, self._done_pixels, self.pixels, seconds))


def _padded(part: NDArray[Any], tile: int) -> NDArray[Any]:
    """A tile of full size: the last row and column repeated, which compresses best and bleeds least in JPEG."""
    missing = [(0, tile - part.shape[0]), (0, tile - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
    if missing[0][1] or missing[1][1]:
        part = np.pad(part, missing, mode="edge")
    return np.ascontiguousarray(part)


def _compression(options: TiffOptions, dtype: np.dtype[Any], *, is_rgb: bool) -> dict[str, Any]:
    if options.compression == "none":
        return {}
    if options.compression == "jpeg":
        arguments: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": options.quality}}
        # From RGB, tifffile makes YCbCr by itself; told "ycbcr", it takes the pixels for YCbCr already.
        return arguments | ({"subsampling": (2, 2)} if is_rgb else {})
    level = 6 if options.compression == "deflate" else 5
    predictor = {"predictor": True} if dtype.kind == "u" or options.compression == "deflate" else {}
    return {"compression": options.compression, "compressionargs": {"level": level}, **predictor}


def ome_xml(source: RasterSource, *, interleaved: bool) -> bytes:
    """OME-XML (schema 2016-06) of one image: size, type, pixel size in µm, channel names and colours. ASCII.

    A Color is RGBA as a signed 32-bit number. Level-0 pages are the IFDs 0, 1, …: SubIFDs are not counted.
    """
    import tiledblend

    ElementTree.register_namespace("", OME)
    height, width = source.shape
    planes = 1 if interleaved else source.channels
    root = _element(None, "OME", Creator=f"tiledblend {tiledblend.__version__}")
    image = _element(root, "Image", ID="Image:0", Name=_name(source))
    attributes = {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": PIXEL_TYPES[source.dtype.name],
        "BigEndian": "false",
        "Interleaved": "true" if interleaved else "false",
        "SizeX": width,
        "SizeY": height,
        "SizeC": source.channels,
        "SizeZ": 1,
        "SizeT": 1,
    }
    if source.pixel_size_um is not None:
        y, x = source.pixel_size_um
        attributes |= {"PhysicalSizeX": repr(float(x)), "PhysicalSizeY": repr(float(y))}
    pixels = _element(image, "Pixels", **attributes)
    for channel in range(planes):
        own = _channel_attributes(source, channel) if not interleaved else {}
        samples = source.channels if interleaved else 1
        _element(pixels, "Channel", ID=f"Channel:0:{channel}", SamplesPerPixel=samples, **own)
    for plane in range(planes):
        _element(pixels, "TiffData", IFD=plane, FirstC=plane, FirstZ=0, FirstT=0, PlaneCount=1)
    text: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=False)
    return b'<?xml version="1.0" encoding="UTF-8"?>' + text


def _element(parent: Any, tag: str, **attributes: Any) -> Any:
    values = {key: str(value) for key, value in attributes.items()}
    name = f"{{{OME}}}{tag}"
    return ElementTree.Element(name, values) if parent is None else ElementTree.SubElement(parent, name, values)


def _name(source: RasterSource) -> str:
    name = os.path.basename(source.spec.path.rstrip("/"))
    return name.removesuffix(".zarr").removesuffix(".ome")


def _channel_attributes(source: RasterSource, channel: int) -> dict[str, Any]:
    names, colors = source.info.channel_names, source.info.channel_colors
    attributes: dict[str, Any] = {}
    if len(names) == source.channels and names[channel]:
        # XML has no control characters, and a name is no place for them.
        attributes["Name"] = "".join(c for c in names[channel] if c.isprintable())
    if len(colors) == source.channels and (color := ome_color(colors[channel])) is not None:
        attributes["Color"] = color
    return attributes


def ome_color(rgb: str) -> int | None:
    """ "RRGGBB" as OME's signed RGBA number, opaque; None when it is no colour.

    >>> ome_color("FF0000"), ome_color("#00FF00")
    (-16776961, 16711935)
    """
    try:
        value = int(rgb.lstrip("#")[:6], 16) << 8 | 0xFF
    except ValueError:
        return None
    return value - (1 << 32) if value >= 1 << 31 else value
